"""The check of ``obatchctl doctor`` on alarms."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

from obatchd.cli.doctor.result import CheckResult, bad, ok, warn
from obatchd.settings.settings import Settings

_NOBODY = "nobody is told of alarms: neither command nor webhook is set under [alarms]"


def alarms(settings: Settings) -> CheckResult:
    """Whether administrators are told of alarms; the daemon's notices say whether the last one arrived."""
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
    ways = [f"command {rules.command[0]}"] if rules.command else []
    ways += [f"webhook at {urlsplit(rules.webhook).hostname}"] if rules.webhook else []
    return ok("alarms", f"told by {' and '.join(ways)}" if ways else _NOBODY)
