"""One line of ``obatchctl doctor``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple


class CheckResult(NamedTuple):
    """What was looked at, how it is, and the next command where something should be done."""

    level: Literal["ok", "warn", "bad"]
    about: str
    text: str
    next_command: str = ""


ok = partial(CheckResult, "ok")
warn = partial(CheckResult, "warn")  # works, but not as well as it could
bad = partial(CheckResult, "bad")  # the daemon will not work like this


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
