"""Times as text."""

from __future__ import annotations

from datetime import UTC, datetime

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
