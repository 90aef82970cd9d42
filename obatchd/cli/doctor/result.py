"""One line of ``obatchctl doctor``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple


class CheckResult(NamedTuple):
    """What was looked at, how it is, and the next command where something should be done."""

    level: Literal["ok", "warn", "bad"]
    about: str
    text: str
    next_command: str = ""


def ok(about: str, text: str) -> CheckResult:
    """Good as it is."""
    return CheckResult("ok", about, text)


def warn(about: str, text: str, next_command: str) -> CheckResult:
    """Works, but not as well as it could."""
    return CheckResult("warn", about, text, next_command)


def bad(about: str, text: str, next_command: str) -> CheckResult:
    """The daemon will not work like this."""
    return CheckResult("bad", about, text, next_command)


def nearest(path: Path) -> tuple[Path, bool]:
    """``path`` or the nearest directory above it that we can see, and whether there is one that we may not enter."""
    closed = False
    for place in (path.absolute(), *path.absolute().parents):
        try:
            os.stat(place)
        except PermissionError:
            closed = True
        except OSError:
            continue
        else:
            return place, closed
    return Path("/"), closed
