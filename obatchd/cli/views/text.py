"""Numbers, times and tables for people.

The tables are our own: rich takes 50 ms to import, a third of what ``obatchctl status`` may take in all.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from unicodedata import combining, east_asian_width

import click

from obatchd import times
from obatchd.cli.command import clean
from obatchd.naming import user_name
from obatchd.words import binary_size

NOTHING = "–"
_PIPED_WIDTH = 10_000  # a pipe has no edge
_MARKS = ">~?="
_LEAST_WIDTH = 6  # of a column that gives way
_UID_DIGITS = 9
_NAME_WIDTH = 24  # of a column of names
_NAME_END = 8  # characters at the end of a name that stay
_ROOM = 20  # that it keeps while there are columns that may be left out
_COLOURS = {
    "green": ("ready", "running", "done", "ok", "drained", "here"),
    "red": ("failed", "quarantined", "quarantine", "unknown", "refused", "bad", "degraded", "away"),
    "yellow": (
        "down",
        "starting",
        "waiting",
        "draining",
        "stopping",
        "leaving",
        "paused",
        "warn",
        "publishing",
        "cancelled",
        "expired",
    ),
}
_COLOUR_OF = {state: colour for colour, states in _COLOURS.items() for state in states}


class Painted(NamedTuple):
    """A cell of a table in a colour of its own."""

    value: object
    colour: str

    def __str__(self) -> str:
        return str(self.value)


def styled(state: str) -> str:
    """A state in its colour; ``click.echo`` takes the colour away where the output is no terminal."""
    return click.style(state, fg=_COLOUR_OF.get(state.split(" ")[0]))


def gpu_name(gpu: Mapping[str, Any]) -> str:
    """A GPU as commands take it: its index, behind the name of the joined host that has it."""
    host = gpu.get("host")
    return f"{host}/{gpu['index']}" if host else str(gpu["index"])


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows as lines that fit the terminal.

    Args:
        headings: before the name ``>`` aligns the column to the right; where the terminal is narrow ``~`` lets it give
            way, ``~~`` only after others were left out, ``=`` shortens names in their middle, and ``?`` leaves it out,
            the last one first. ``STATE`` and ``HEALTH`` are coloured.
        rows: cells, some :class:`Painted`; ``None`` is shown as a dash.
    """
    names = [heading.lstrip(_MARKS) for heading in headings]
    given = [[*row] for row in rows]
    cells = [[clean(NOTHING if cell is None else cell) for cell in row] for row in given]
    plain = [None] * len(names)
    widths = {column: max(_columns(row[column]) for row in [names, *cells]) for column in range(len(names))}
    spare = [column for column, heading in enumerate(headings) if "?" in heading]
    named = {column: _NAME_WIDTH for column, heading in enumerate(headings) if "=" in heading}
    flexible = {
        column: _ROOM if "~~" in heading else _LEAST_WIDTH for column, heading in enumerate(headings) if "~" in heading
    }
    least = dict.fromkeys(flexible, _LEAST_WIDTH) | named
    while (fitted := _fitted(widths, flexible | named if spare else least)) is None and spare:
        del widths[spare.pop()]
    shown, gap = fitted or ({column: min(width, least.get(column, width)) for column, width in widths.items()}, " ")

    def line(row: Sequence[str], whole: Sequence[object], is_heading: bool = False) -> str:
        parts = []
        for column, width in shown.items():
            cell = _cut(row[column], width, _NAME_END if column in named else 0)
            room = " " * (width - _columns(cell))
            cell = room + cell if ">" in headings[column] else cell + room
            painted = whole[column]
            if isinstance(painted, Painted):
                cell = click.style(cell, fg=painted.colour)
            parts.append(styled(cell) if names[column] in ("STATE", "HEALTH") and not is_heading else cell)
        return gap.join(parts).rstrip()

    return [click.style(line(names, plain, is_heading=True), bold=True), *map(line, cells, given)]


def _columns(text: str) -> int:
    """How many columns of a terminal ``text`` takes: Chinese, Japanese, Korean and emoji take two each."""
    if text.isascii():
        return len(text)
    return sum((east_asian_width(c) in "WF") + (not combining(c)) for c in text)


def wrapped(text: str, begin: str) -> list[str]:
    """A text behind ``begin``, in lines that fit the terminal and break between words."""
    return textwrap.wrap(
        clean(text), _width(), initial_indent=begin, subsequent_indent=" " * len(begin), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _cut(text: str, width: int, kept: int = 0) -> str:
    """A text in so many columns; ``kept`` characters at its end stay."""
    if _columns(text) <= width:
        return text
    text, end = text[: len(text) - kept], text[len(text) - kept :]
    while _columns(text) > width - 1 - _columns(end):
        text = text[:-1]
    return f"{text}…{end}"


def _fitted(widths: Mapping[int, int], flexible: Mapping[int, int]) -> tuple[dict[int, int], str] | None:
    """Widths with the flexible columns narrowed down to theirs, the widest first, and the gap; None when a line does
    not fit."""
    for gap in ("  ", " "):
        fitted = dict(widths)
        room = _width() - len(gap) * (len(fitted) - 1)
        while sum(fitted.values()) > room:
            wide = [column for column, least in flexible.items() if fitted.get(column, 0) > least]
            if not wide:
                break
            fitted[max(wide, key=lambda column: fitted[column])] -= 1
        else:
            return fitted, gap
    return None


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _PIPED_WIDTH
    except (OSError, ValueError):  # not a terminal
        return _PIPED_WIDTH


def size(size_bytes: float | None) -> str:
    """Bytes with a binary unit."""
    return NOTHING if size_bytes is None else binary_size(size_bytes)


def place(path: str) -> str:
    """A directory of results as people find it: below its owner's name, where a service has a link of that name."""
    owner, name = os.path.split(path)
    parent, uid = os.path.split(owner)
    if uid.isdigit() and len(uid) <= _UID_DIGITS:
        link = os.path.join(parent, user_name(int(uid)))
        with suppress(OSError):
            if os.readlink(link) == uid:
                return os.path.join(link, name)
    return path


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units."""
    return NOTHING if seconds is None else times.duration(seconds)


def age_s(instant: str | None) -> float | None:
    """Seconds since an ISO-8601 time of the API."""
    return None if instant is None else time.time() - times.epoch_s(instant)


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    """A number with its unit."""
    return NOTHING if value is None else f"{value:.{digits}f}{unit}"


def bar(done: int, total: int | None, width: int = 6) -> str:
    """Progress as a bar with a percentage."""
    if not total:
        return NOTHING
    filled = width * min(done, total) // total
    return "█" * filled + "░" * (width - filled) + f" {100 * min(done, total) // total:3d} %"
