"""``history.db``: events and samples of this host's GPUs and of its work, for as long as they are worth keeping.

Events and samples know the card by its serial number and by its slot, so that one can see whether an error followed the
card or stayed with the slot. A sample covers a minute; after two days those of an hour are drawn together. Written once
a minute, and at a quarantine; what is not written yet is lost in a crash, and a damaged file is begun anew: nothing
depends on it.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import attrs
import msgspec

import obatchd.log
from obatchd.documents.gpus import GpuEvent
from obatchd.gpus.columns import CardColumns, Columns, Grid, of_cards, of_work
from obatchd.gpus.model import ClockReason, Identity, Reading
from obatchd.gpus.monitor import MonitorListener

log = obatchd.log.get(__name__)

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_MINUTES_KEPT_S = 2 * _DAY_S
_HOURS_KEPT_S = 90 * _DAY_S
_MOST_EVENTS = 20_000
_QUIET_S = 600  # so long minutes without any work may wait to be written: an idle host has nothing to do for us
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, at_s REAL NOT NULL, uuid TEXT NOT NULL, serial TEXT NOT NULL, slot TEXT NOT NULL,
    kind TEXT NOT NULL, level TEXT NOT NULL, signal TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_card ON events (uuid, id);
CREATE TABLE IF NOT EXISTS samples (
    uuid TEXT NOT NULL, seconds INTEGER NOT NULL, at_s INTEGER NOT NULL, serial TEXT NOT NULL, slot TEXT NOT NULL,
    count INTEGER NOT NULL, temp_c REAL, temp_max_c REAL, power_w REAL, utilisation_percent REAL,
    memory_used_bytes REAL, clock_mhz REAL, slowed REAL NOT NULL, PRIMARY KEY (uuid, seconds, at_s)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work (
    server TEXT NOT NULL, seconds INTEGER NOT NULL, at_s INTEGER NOT NULL, count INTEGER NOT NULL, span_s REAL NOT NULL,
    tokens REAL NOT NULL, requests REAL NOT NULL, failed REAL NOT NULL, queued REAL NOT NULL, in_flight REAL NOT NULL,
    waiting_people REAL NOT NULL, PRIMARY KEY (server, seconds, at_s)
) WITHOUT ROWID;
"""
# In the order of the columns.
_MEANS = ("temp_c", "power_w", "utilisation_percent", "memory_used_bytes", "clock_mhz")
_EVENT = ", ".join(GpuEvent.__struct_fields__)


@attrs.define(eq=False)
class _Minute:
    """The readings of one card in one minute."""

    card: Identity
    count: int = 0
    slowed: int = 0
    temp_max_c: float | None = None
    _sums: dict[str, float] = attrs.field(factory=dict)
    _counts: Counter[str] = attrs.field(factory=Counter)

    def add(self, card: Identity, reading: Reading) -> None:
        self.card = card
        self.count += 1
        self.slowed += bool((reading.clock_reasons or 0) & ClockReason.HARDWARE)
        if reading.temp_c is not None:
            self.temp_max_c = max(self.temp_max_c or 0.0, reading.temp_c)
        for name in _MEANS:
            if (value := getattr(reading, name)) is not None:
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] += 1

    def row(self, at_s: int) -> tuple[Any, ...]:
        """The minute that began at ``at_s``, as it is kept."""
        temp_c, *means = (self._sums[name] / self._counts[name] if self._counts[name] else None for name in _MEANS)
        place = self.card.slot or self.card.pci_bus_id
        head = (self.card.uuid, _MINUTE_S, at_s, self.card.serial, place, self.count)
        return (*head, temp_c, self.temp_max_c, *means, self.slowed / self.count)


class Work(NamedTuple):
    """The work of one server, or of all (without a name), since the look before, and how it is now."""

    server: str
    span_s: float  # since the look before
    tokens: float  # of answers, as the next two in this time
    requests: float  # that ended, well or not
    failed: float
    queued: float  # as the next two at this moment
    in_flight: float
    waiting_people: float  # requests of people

    @property
    def idle(self) -> bool:
        return not any(self[2:])

    def and_another(self, other: Work, count: int) -> Work:
        """Both, where this one is of ``count`` looks: sums of what was done, means of how it was."""
        sums = [mine + its for mine, its in zip(self[1:5], other[1:5], strict=True)]
        means = [mine + (its - mine) / (count + 1) for mine, its in zip(self[5:], other[5:], strict=True)]
        return Work(self.server, *sums, *means)


@attrs.define(eq=False)
class History(MonitorListener):
    """Collects in memory; ``flush`` writes. Events can be read at once, samples when they are written."""

    _path: Path
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _events: list[GpuEvent] = attrs.field(factory=list, init=False)
    _minutes: dict[tuple[str, int], _Minute] = attrs.field(factory=dict, init=False)
    _work: dict[tuple[str, int], tuple[int, Work]] = attrs.field(factory=dict, init=False)  # with how many looks
    _tidied_s: float = attrs.field(default=0.0, init=False)
    _database: sqlite3.Connection | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._database = _open(self._path)

    def health_event(self, event: GpuEvent) -> None:
        with self._lock:
            self._events.append(event)
            del self._events[:-_MOST_EVENTS]

    def readings_of_cards(self, readings: Iterable[tuple[Identity, Reading]]) -> None:
        with self._lock:
            for card, reading in readings:
                key = (card.uuid, int(reading.at_s // _MINUTE_S) * _MINUTE_S)
                self._minutes.setdefault(key, _Minute(card)).add(card, reading)

    def worked(self, at_s: float, work: Iterable[Work]) -> None:
        """The work of the host, and of its servers that had some."""
        minute_s = int(at_s // _MINUTE_S) * _MINUTE_S
        with self._lock:
            for one in work:
                count, before = self._work.get((one.server, minute_s), (0, one))
                merged = before.and_another(one, count) if count else one
                self._work[one.server, minute_s] = count + 1, merged

    def flush(self, *, quiet: bool = False) -> None:
        """Write the collected samples, but for the present minute; blocks.

        ``quiet``: also those of a host that has had nothing to do, which else wait for some minutes.
        """
        now_s = time.time()
        with self._lock:
            self._database = self._database or _open(self._path)
            if self._database is None:
                self._minutes = {key: m for key, m in self._minutes.items() if key[1] + _MINUTES_KEPT_S > now_s}
                self._work = {key: work for key, work in self._work.items() if key[1] + _MINUTES_KEPT_S > now_s}
                return
            events, self._events = self._events, []
            done = {key: minute for key, minute in self._minutes.items() if key[1] + _MINUTE_S <= now_s}
            for key in done:
                del self._minutes[key]
            worked = [] if not (quiet or done or events) and self._all_quiet(now_s) else self._work_done(now_s)
            try:
                with self._database as database:
                    database.executemany(
                        f"INSERT INTO events ({_EVENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        [msgspec.structs.astuple(event) for event in events],
                    )
                    rows = [minute.row(at_s) for (_, at_s), minute in done.items()]
                    marks = ", ".join("?" * 13)
                    database.executemany(f"INSERT OR REPLACE INTO samples VALUES ({marks})", rows)
                    database.executemany(f"INSERT OR REPLACE INTO work VALUES ({', '.join('?' * 11)})", worked)
                    if now_s - self._tidied_s > _HOUR_S:
                        self._tidied_s = now_s
                        _tidy(database, now_s)
            except sqlite3.Error as error:
                self._events = [*events, *self._events]
                del self._events[:-_MOST_EVENTS]
                log.warning("gpu_history_not_written", reason=str(error))

    def _all_quiet(self, now_s: float) -> bool:
        looks = self._work.items()
        return all(work.idle and now_s - at_s < _QUIET_S for (_, at_s), (_, work) in looks)

    def _work_done(self, now_s: float) -> list[tuple[Any, ...]]:
        """Rows of the minutes that are over, which are forgotten here."""
        done = {key: looks for key, looks in self._work.items() if key[1] + _MINUTE_S <= now_s}
        for key in done:
            del self._work[key]
        return [(server, _MINUTE_S, at_s, count, *work[1:]) for (server, at_s), (count, work) in done.items()]

    def events(
        self,
        uuid: str | None = None,
        limit: int = 100,
        serial: str = "",
        *,
        since_s: float = float("-inf"),
        until_s: float = float("inf"),
    ) -> list[GpuEvent]:
        """The latest events, oldest first; of one card, by UUID or by serial number, and of some time."""
        with self._lock:
            waiting = [
                event
                for event in self._events
                if (uuid is None or event.uuid == uuid or (serial and event.serial == serial))
                and since_s <= event.at_s < until_s
            ]
            where = "1" if uuid is None else "(uuid = ? OR (serial = ? AND serial <> ''))"
            given: Sequence[Any] = () if uuid is None else (uuid, serial)
            query = f"SELECT {_EVENT} FROM events WHERE {where} AND at_s >= ? AND at_s < ? ORDER BY id DESC LIMIT ?"
            found = self._database.execute(query, (*given, since_s, until_s, limit)) if self._database else None
            rows = found.fetchall() if found else []
        return [*(GpuEvent(*row) for row in reversed(rows)), *waiting][-limit:]

    def grid(self, since_s: float, until_s: float, points: int) -> Grid:
        """The steps over some time, for ``cards`` and ``work``."""
        return Grid.over(since_s, until_s, points, time.time() - _MINUTES_KEPT_S - _MINUTE_S)

    def cards(self, grid: Grid, uuid: str | None = None) -> list[CardColumns]:
        """The samples of one card or of all, in columns; blocks."""
        self.flush(quiet=True)
        with self._reading() as database:
            return of_cards(database, grid, uuid) if database is not None else []

    def work(self, grid: Grid) -> dict[str, Columns]:
        """The work of each server, and of all under an empty name, in columns; blocks."""
        self.flush(quiet=True)
        with self._reading() as database:
            return of_work(database, grid) if database is not None else {}

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection of its own: a long look holds up nobody. None where the file cannot be read."""
        if self._database is None:
            yield None
            return
        with closing(sqlite3.connect(f"file:{quote(str(self._path))}?mode=ro", uri=True)) as database:
            yield database

    def close(self) -> None:
        self.flush()
        if self._database is not None:
            self._database.close()


def _tidy(database: sqlite3.Connection, now_s: float) -> None:
    """Draw old minutes together to hours, and forget samples that are too old."""
    before_s = (now_s - _MINUTES_KEPT_S) // _HOUR_S * _HOUR_S
    database.execute(
        "INSERT OR REPLACE INTO samples SELECT uuid, 3600, at_s / 3600 * 3600, serial, slot, sum(count),"
        " avg(temp_c), max(temp_max_c), avg(power_w), avg(utilisation_percent), avg(memory_used_bytes),"
        " avg(clock_mhz), avg(slowed) FROM samples WHERE seconds = 60 AND at_s < ? GROUP BY uuid, at_s / 3600",
        (before_s,),
    )
    database.execute("DELETE FROM samples WHERE seconds = 60 AND at_s < ?", (before_s,))
    database.execute(
        "INSERT OR REPLACE INTO work SELECT server, 3600, at_s / 3600 * 3600, sum(count), sum(span_s), sum(tokens),"
        " sum(requests), sum(failed), sum(queued * count) / sum(count), sum(in_flight * count) / sum(count),"
        " sum(waiting_people * count) / sum(count)"
        " FROM work WHERE seconds = 60 AND at_s < ? GROUP BY server, at_s / 3600",
        (before_s,),
    )
    database.execute("DELETE FROM work WHERE seconds = 60 AND at_s < ?", (before_s,))
    for table in ("samples", "work"):
        database.execute(f"DELETE FROM {table} WHERE at_s < ?", (now_s - _HOURS_KEPT_S,))
    database.execute("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (_MOST_EVENTS,))


def _open(path: Path) -> sqlite3.Connection | None:
    """The file; None while the disk refuses. A damaged one is set aside and begun anew."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        # The low byte is the primary code (sqlite.org/rescode.html); a full or failing disk is none of these.
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            log.warning("gpu_history_not_opened", path=path, reason=str(error))
            return None
        aside = path.with_name(f"{path.name}.corrupt-{time.time():.0f}")
        log.warning("gpu_history_damaged", path=path, reason=str(error), set_aside=aside.name)
        path.rename(aside)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        return _open(path)  # which the disk may refuse, too


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last minutes
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version={_VERSION}")
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database
