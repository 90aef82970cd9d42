"""Numbers, times and tables for people.

The tables are our own: rich takes 50 ms to import, a third of what ``obatchctl status`` may take in all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import click

from obatchd.cli.command import clean

NOTHING = "–"
_PIPED_WIDTH = 10_000  # a pipe has no edge
_LEAST_WIDTH = 6  # of a column that gives way
_COLOURS = {
    "green": ("ready", "running", "done", "ok", "drained"),
    "red": ("failed", "quarantined", "refused", "bad", "degraded"),
    "yellow": ("backoff", "starting", "draining", "stopping", "paused", "warn", "publishing"),
}
_COLOUR_OF = {state: colour for colour, states in _COLOURS.items() for state in states}


def styled(state: str) -> str:
    """A state in its colour; ``click.echo`` takes the colour away where the output is no terminal."""
    return click.style(state, fg=_COLOUR_OF.get(state.split(" ")[0]))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows as lines that fit the terminal.

    Args:
        headings: a leading ``>`` aligns the column to the right; a leading ``~`` lets it give way where the terminal is
            narrow; the column ``STATE`` is coloured.
        rows: cells; ``None`` is shown as a dash.
    """
    names = [heading.lstrip(">~") for heading in headings]
    cells = [[clean(NOTHING if cell is None else cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [names, *cells]) for column in range(len(names))]
    _fit(widths, [column for column, heading in enumerate(headings) if heading.startswith("~")])
    gap = _fit(widths, [column for column, heading in enumerate(headings) if heading.startswith("~")])
    lines = [click.style(gap.join(_padded(headings, names, widths)).rstrip(), bold=True)]
    for row in cells:
        padded = _padded(headings, row, widths)
        shown = [styled(cell) if name == "STATE" else cell for name, cell in zip(names, padded, strict=True)]
        lines.append(gap.join(shown).rstrip())
    return lines


def _fit(widths: list[int], flexible: list[int]) -> str:
    """Narrow the flexible columns, the widest first, until a line fits or they are at their least; returns the gap."""
    for gap in ("  ", " "):
        room = _width() - len(gap) * (len(widths) - 1)
        while sum(widths) > room:
            widest = max(flexible, key=lambda column: widths[column], default=None)
            if widest is None or widths[widest] <= _LEAST_WIDTH:
                break
            widths[widest] -= 1
        else:
            return gap
    return " "


def _padded(headings: Sequence[str], row: Sequence[str], widths: Sequence[int]) -> list[str]:
    padded = []
    for heading, cell, width in zip(headings, row, widths, strict=True):
        cut = cell if len(cell) <= width else cell[: width - 1] + "…"
        padded.append(cut.rjust(width) if heading.startswith(">") else cut.ljust(width))
    return padded


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _PIPED_WIDTH
    except (OSError, ValueError):  # not a terminal
        return _PIPED_WIDTH


def size(size_bytes: float | None) -> str:
    """Bytes with a binary unit."""
    if size_bytes is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    for unit_s, unit, part_s, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            rest = whole % unit_s // part_s
            return f"{whole // unit_s} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def age_s(time: str | None) -> float | None:
    """Seconds since an ISO-8601 time of the API."""
    return None if time is None else (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    """A number with its unit."""
    return NOTHING if value is None else f"{value:.{digits}f}{unit}"


def bar(done: int, total: int | None, width: int = 6) -> str:
    """Progress as a bar with a percentage."""
    if not total:
        return NOTHING
    filled = width * min(done, total) // total
    return "█" * filled + "░" * (width - filled) + f" {100 * min(done, total) // total:3d} %"
