"""``[access]`` and ``[alarms]``: who may use the daemon, and who is told."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

from obatchd.settings.base import Live, Positive, Section, setting
from obatchd.settings.tables.context import opened


class AccessSettings(Section):
    """Who may use the daemon. The system service is started with mode = "service"."""

    mode: Literal["personal", "service"] = setting(
        "personal",
        '"personal": obatchd answers only its own user and root. "service": it answers the members '
        "of submit_group, each of whom sees only their own jobs; outbox and failed have a directory "
        "for each owner.",
    )
    submit_group: str = setting(
        "obatch-submit", "The group whose members may drop files and submit jobs.", min_length=1
    )
    admin_group: str = setting(
        "obatch-admin", "The group whose members see everything and may do everything.", min_length=1
    )


# An address as mail programs take it as an argument: it cannot be an option, nor two addresses.
_MAIL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_MAIL_PATTERN = re.compile(r"[A-Za-z0-9._%+*?-]+@[A-Za-z0-9.*?-]+")
MAIL = "mail:"
# A URL that all libraries read alike. Anything else than ASCII would have to be encoded, and white space is a slip.
_URL = re.compile(
    r"(?=[!-~]{1,2000}\Z)[A-Za-z]+://([^/?#@\[\]\\]*@)?"
    r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\])(:\d*)?([/?#].*)?"
)


def target_problem(target: str) -> str:
    """What is wrong with ``mail:ADDRESS`` or a URL as somebody to be told; empty when nothing is."""
    if target.startswith(MAIL):
        return "" if _MAIL.fullmatch(target.removeprefix(MAIL)) else "what follows mail: must be one mail address"
    try:
        url = urlsplit(target)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    return "" if good and _URL.fullmatch(target) else "must be mail:ADDRESS or an http or https URL"


def _webhook(url: str) -> str:
    if url and (url.startswith(MAIL) or target_problem(url)):
        raise ValueError("must be an http or https URL")
    return url


def _somebody(entry: str) -> str:
    if not _MAIL_PATTERN.fullmatch(entry):
        opened(entry)
    return entry


AlarmKind = Literal[
    "quarantine", "gpus_unknown", "server_failed", "burn_in_finished", "disk_low", "drop_changed", "job_done"
]


class AlarmSettings(Section):
    """Who is told when somebody has to act. etc/alarm-mail is a ready command that sends mail."""

    command: Live[list[str]] = setting(
        [],
        "Program and arguments, run without a shell for each alarm, which it gets as JSON on its standard "
        "input; empty: none.",
    )
    webhook: Live[Annotated[str, AfterValidator(_webhook)]] = setting(
        "",
        "URL to which each alarm is posted as JSON, ready for Slack, Mattermost, Discord and Teams; empty: none. "
        "It is a secret, and never shown.",
        repr=False,
    )
    timeout_s: Live[Positive] = setting(30, "Longest time of one run or post; then it is ended.")
    on: Live[list[AlarmKind]] = setting(
        ["quarantine", "gpus_unknown", "server_failed", "burn_in_finished", "disk_low", "drop_changed"],
        "Which alarms are told.",
    )


class NotificationSettings(Section):
    """Who may be told that a job is over: submitters ask for it with obatchctl submit --notify."""

    allow: Live[list[Annotated[str, AfterValidator(_somebody)]]] = setting(
        [],
        'Mail addresses and hosts of webhooks, such as "*@example.org", "hooks.slack.com", "chat.lab:8065"; empty: '
        "nobody. A host that is named without * may have an address that is not public.",
    )
    mail_command: Live[list[str]] = setting(
        ["/usr/share/obatchd/alarm-mail"],
        "Program and arguments that send a mail: the address comes behind them, the message as JSON on standard input.",
    )
    timeout_s: Live[Positive] = setting(30, "Longest time of one mail or post; then it is tried again later.")
