"""The check of ``obatchctl doctor`` on alarms."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from obatchd.cli.doctor.result import CheckResult, bad, ok, warn
from obatchd.settings.settings import Settings

_NOBODY = "nobody is told of alarms: neither command nor webhook is set under [alarms]"


_UNDELIVERED = "alarms do not arrive"  # the beginning of a notice of the daemon
_OUR_MAILER = "alarm-mail"
_SMTP_PORT = 25
_CONNECT_TIMEOUT_S = 1.0


def undelivered(notices: Sequence[str]) -> CheckResult | None:
    """The last alarm that did not arrive, by the daemon's ``notices``."""
    told = "; ".join(notice.partition(". Try it: ")[0] for notice in notices if is_of_alarms(notice))
    return bad("alarms", told, "obatchctl alarms test") if told else None


def alarms(settings: Settings) -> CheckResult:
    """Whether administrators are told of alarms, as far as the configuration says."""
    rules = settings.alarms
    if rules.command and shutil.which(rules.command[0]) is None:
        text = f"there is no program {rules.command[0]} (alarms.command): nobody is told of alarms"
        return bad("alarms", text, f"ls -l {rules.command[0]}")
    mail = settings.notifications
    if any("@" in entry for entry in mail.allow) and not (mail.mail_command and shutil.which(mail.mail_command[0])):
        named = f"there is no program {mail.mail_command[0]}" if mail.mail_command else "no program is named"
        text = (
            f"submitters cannot be told by mail: {named}. Install it, or set mail_command in [notifications] to one "
            "that sends mail; obatchd's own is etc/alarm-mail, which packages install as /usr/share/obatchd/alarm-mail"
        )
        return warn("alarms", text, f"ls -l {mail.mail_command[0]}" if mail.mail_command else "")
    commands = [rules.command, mail.mail_command if any("@" in entry for entry in mail.allow) else []]
    if any(command and os.path.basename(command[0]) == _OUR_MAILER for command in commands) and not _takes_mail():
        text = (
            "there is no sendmail here, and no mail server on port 25 of this host: no mail leaves it, unless the "
            "daemon has SMTP_SERVER=HOST:PORT in its environment"
        )
        return warn("alarms", text, "which sendmail")
    ways = [f"command {rules.command[0]}"] if rules.command else []
    ways += [f"webhook at {urlsplit(rules.webhook).hostname}"] if rules.webhook else []
    return ok("alarms", f"told by {' and '.join(ways)}" if ways else _NOBODY)


def is_of_alarms(notice: str) -> bool:
    """Whether a notice of the daemon says that its alarms do not arrive."""
    return notice.startswith(_UNDELIVERED)


def _takes_mail() -> bool:
    """Whether etc/alarm-mail has a way out of this host that can be seen from here."""
    if os.environ.get("SMTP_SERVER") or shutil.which("sendmail") or shutil.which("sendmail", path="/usr/sbin:/usr/lib"):
        return True
    try:
        socket.create_connection(("localhost", _SMTP_PORT), _CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
