"""Times as text."""

from __future__ import annotations

from datetime import UTC, datetime


def instant(at_s: float | None) -> str | None:
    """Wall-clock seconds as ISO 8601 in UTC."""
    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
