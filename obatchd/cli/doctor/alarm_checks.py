"""The check of ``obatchctl doctor`` on alarms."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

from obatchd.cli.doctor.result import CheckResult, bad, ok
from obatchd.settings.settings import Settings


def alarms(settings: Settings) -> CheckResult:
    """Whether administrators are told of alarms; the daemon's notices say whether the last one arrived."""
    rules = settings.alarms
    if rules.command and shutil.which(rules.command[0]) is None:
        text = f"there is no program {rules.command[0]} (alarms.command): nobody is told of alarms"
        return bad("alarms", text, f"ls -l {rules.command[0]}")
    ways = [f"command {rules.command[0]}"] if rules.command else []
    ways += [f"webhook at {urlsplit(rules.webhook).hostname}"] if rules.webhook else []
    return ok("alarms", f"told by {' and '.join(ways)}" if ways else "nobody is told: [alarms] names no way")
