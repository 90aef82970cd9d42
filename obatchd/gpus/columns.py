"""Reads the samples of ``history.db`` over some time, in columns: one value for each step of a grid, or none."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

_DAY_S = 86_400
_STEPS_S = (
    60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, _DAY_S, 2 * _DAY_S, 5 * _DAY_S, 10 * _DAY_S,
)  # fmt: skip
_HOUR_S = 3600
Values = list[float | None]
Columns = dict[str, Values]  # by name


class Grid(NamedTuple):
    """Steps of equal length, one after another."""

    since_s: int  # when the first begins, in seconds since the epoch
    step_s: int
    steps: int

    @classmethod
    def over(cls, since_s: float, until_s: float, points: int, minutes_since_s: float) -> Grid:
        """The finest grid over this time that has so many steps at most.

        ``minutes_since_s``: what is older is kept by the hour, so a finer grid would be full of holes.
        """
        least_s = _HOUR_S if since_s < minutes_since_s else _STEPS_S[0]
        fitting = (step for step in _STEPS_S if step >= least_s and (until_s - since_s) / step <= points)
        step_s = next(fitting, _STEPS_S[-1])
        begin_s = int(since_s // step_s) * step_s
        return cls(begin_s, step_s, max(1, -int(-(until_s - begin_s) // step_s)))

    @property
    def at_s(self) -> list[int]:
        """When each step begins."""
        return [self.since_s + place * self.step_s for place in range(self.steps)]

    @property
    def until_s(self) -> int:
        return self.since_s + self.steps * self.step_s


class CardColumns(NamedTuple):
    """The samples of one card."""

    uuid: str
    serial: str
    slot: str
    columns: Columns


def _mean(name: str) -> str:
    return f"sum({name} * count) / sum(CASE WHEN {name} IS NOT NULL THEN count END)"


_MEANS = ("temp_c", "power_w", "utilisation_percent", "memory_used_bytes", "clock_mhz")
_IN_TIME = "seconds IN (60, 3600) AND at_s >= ? AND at_s < ?"
# Of each column, how several samples make one value, and to how many digits.
_OF_CARDS: dict[str, tuple[str, int]] = {name: (_mean(name), 1) for name in _MEANS} | {
    "memory_used_bytes": (_mean("memory_used_bytes"), 0),
    "clock_mhz": (_mean("clock_mhz"), 0),
    "temp_max_c": ("max(temp_max_c)", 1),
    "slowed_percent": (f"100 * {_mean('slowed')}", 1),
}
_DONE, _STATE = ("tokens", "requests", "failed"), ("queued", "in_flight", "waiting_people")  # sums, and means
_OF_WORK = ", ".join(
    ["sum(span_s)", "sum(count)", *map("sum({})".format, _DONE), *map("sum({} * count)".format, _STATE)]
)


def of_cards(database: sqlite3.Connection, grid: Grid, uuid: str | None = None) -> list[CardColumns]:
    """The columns of one card or of all that have samples there."""
    cards = [uuid] if uuid is not None else _names(database, "samples", "uuid")
    return [found for card in cards if (found := _card(database, card, grid)) is not None]


def _card(database: sqlite3.Connection, uuid: str, grid: Grid) -> CardColumns | None:
    selected = ", ".join(value for value, _ in _OF_CARDS.values())
    rows = database.execute(
        f"SELECT (at_s - ?) / ?, max(serial), max(slot), {selected} FROM samples WHERE uuid = ? AND {_IN_TIME}"
        " GROUP BY 1 ORDER BY 1",
        (grid.since_s, grid.step_s, uuid, grid.since_s, grid.until_s),
    ).fetchall()
    if not rows:
        return None
    columns: Columns = {name: [None] * grid.steps for name in _OF_CARDS}
    for place, _, _, *values in rows:
        for (name, (_, digits)), value in zip(_OF_CARDS.items(), values, strict=True):
            columns[name][place] = None if value is None else round(value, digits or None)
    _, serial, slot, *_ = rows[-1]
    return CardColumns(uuid, serial, slot, columns)


def of_work(database: sqlite3.Connection, grid: Grid) -> dict[str, Columns]:
    """The columns of each server; those of all together under an empty name.

    A server is kept only while it has work: in the rest of the time that is watched, it did nothing.
    """
    sums = {name: _sums(database, name, grid) for name in _names(database, "work", "server")}
    watched = {place: (max(span_s, 1.0), count) for place, (span_s, count, *_) in sums.get("", {}).items()}
    return {name: _rates(of_one, watched, grid.steps) for name, of_one in sums.items() if of_one}


def _sums(database: sqlite3.Connection, server: str, grid: Grid) -> dict[int, list[float]]:
    """By step, what :data:`_OF_WORK` says."""
    rows = database.execute(
        f"SELECT (at_s - ?) / ?, {_OF_WORK} FROM work WHERE server = ? AND {_IN_TIME} GROUP BY 1",
        (grid.since_s, grid.step_s, server, grid.since_s, grid.until_s),
    )
    return {place: values for place, *values in rows}


def _rates(sums: dict[int, list[float]], watched: dict[int, tuple[float, float]], count: int) -> Columns:
    names = [f"{name}_per_s" for name in _DONE] + [*_STATE]
    columns: Columns = {name: [None] * count for name in names}
    for place, (span_s, looks) in watched.items():
        values = sums.get(place, [0.0] * 8)[2:]
        for number, (name, value) in enumerate(zip(names, values, strict=True)):
            done = number < len(_DONE)
            columns[name][place] = round(value / span_s, 3) if done else round(value / looks, 1)
    return columns


def _names(database: sqlite3.Connection, table: str, key: str) -> Iterator[str]:
    """The names in the first column of the key; each is one step in the tree."""
    (name,) = database.execute(f"SELECT min({key}) FROM {table}").fetchone()
    while name is not None:
        yield name
        (name,) = database.execute(f"SELECT min({key}) FROM {table} WHERE {key} > ?", (name,)).fetchone()
