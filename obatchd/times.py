"""Times as text, and a clock that nobody sets."""

from __future__ import annotations

import math
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SPANS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SPELT = {  # other ways to write them
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"), **dict.fromkeys(("day", "days"), "d"),
    **dict.fromkeys(("week", "weeks"), "w"),
}  # fmt: skip
_SPAN = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]+) ?")
_MOST_SKEW_S = 5.0  # of two clocks, of which nobody needs to hear
_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def instant(at_s: float | None) -> str | None:
    """Wall-clock seconds as ISO 8601 in UTC."""
    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(at_s: float, form: str = "%H:%M:%S") -> str:
    """The time of day at wall-clock seconds, as clocks show it here."""
    return time.strftime(form, time.localtime(at_s))


def epoch_s(instant: str) -> float:
    """ISO 8601 as wall-clock seconds."""
    return datetime.fromisoformat(instant).timestamp()


def span_s(text: str) -> float:
    """Seconds in a length of time as people write it: ``90m``, ``2h``, ``3d``, ``1h30m``; a plain number is seconds.

    The one reader of every setting and option. Raises ValueError, with what may be written, for anything else.
    """
    said = text.strip().lower()
    parts = [] if said.isdigit() else _SPAN.findall(said)
    try:
        if not parts or _SPAN.sub("", said):
            if not math.isfinite(plain := float(said)) or plain < 0:
                raise ValueError
            return plain
        return math.fsum(float(number) * _SPANS_S[_SPELT.get(unit, unit)] for number, unit in parts)
    except (ValueError, KeyError):
        raise ValueError(f"{text} is no length of time; write 90s, 90m, 2h, 3d or plain seconds") from None


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they fill."""
    whole = round(seconds)
    for unit_s, unit, part_s, part in _UNITS:
        if whole >= unit_s:
            rest = whole % unit_s // part_s
            return f"{whole // unit_s} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def skew(ahead_s: float) -> str:
    """How the clock of another machine differs from ours, in words; empty: by no more than a few seconds."""
    if abs(ahead_s) <= _MOST_SKEW_S:
        return ""
    return f"its clock is {duration(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} ours"


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
