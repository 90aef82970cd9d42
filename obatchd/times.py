"""Times as text, and a clock that nobody sets."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def instant(at_s: float | None) -> str | None:
    """Wall-clock seconds as ISO 8601 in UTC."""
    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_s(instant: str) -> float:
    """ISO 8601 as wall-clock seconds."""
    return datetime.fromisoformat(instant).timestamp()


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they fill."""
    whole = round(seconds)
    for unit_s, unit, part_s, part in _UNITS:
        if whole >= unit_s:
            rest = whole % unit_s // part_s
            return f"{whole // unit_s} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def boot_id() -> str:
    """The id of this boot of the machine; empty where the kernel does not say (proc(5))."""
    with suppress(OSError):
        return _BOOT_ID.read_text("ascii").strip()
    return ""


def uptime_s() -> float:
    """Seconds since the boot, sleep included: the same for every process, and never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def moment() -> str:
    """Now, as text to be kept: ``<boot>/<seconds since it>``."""
    return f"{boot_id()}/{uptime_s():.3f}"


def since(moment: str | None, at_s: float) -> float:
    """Seconds since an earlier :func:`moment`; where the machine was booted since, those by the wall clock.

    ``at_s`` is the same moment on the wall clock, which may have been set since.
    """
    boot, _, up_s = (moment or "").partition("/")
    if boot and boot == boot_id():
        return uptime_s() - float(up_s)
    return max(time.time() - at_s, uptime_s() if boot else 0.0)
