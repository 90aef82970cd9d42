"""One line of ``obatchctl doctor``."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from obatchd.settings.settings import Settings


class CheckResult(NamedTuple):
    """What was looked at, how it is, and the next command where something should be done; ``host`` is one that joined,
    which looked on its own machine, empty: here."""

    level: Literal["ok", "warn", "bad"]
    about: str
    text: str
    next_command: str = ""
    host: str = ""


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


def missing_groups(settings: Settings) -> Iterator[tuple[str, str]]:
    """The settings that name a group that this host does not have, each with the group."""
    for key, name in (
        ("access.submit_group", settings.access.submit_group),
        ("access.admin_group", settings.access.admin_group),
    ):
        try:
            grp.getgrnam(name)
        except KeyError:
            yield key, name
