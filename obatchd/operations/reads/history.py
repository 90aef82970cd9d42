"""What the GPUs and the servers did over some time, for people, and the looks at the work that are kept for it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from attrs import define, field
from msgspec import UNSET

from obatchd.control.operations import SpanAsked
from obatchd.documents.gpus import GpuEvent
from obatchd.documents.history import GpuColumns, GpuHistory, HostWork, ServerWorked, WorkHistory
from obatchd.engine.engine import Engine
from obatchd.errors import ControlError
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpus.columns import CardColumns
from obatchd.gpus.history import History, Work
from obatchd.operations.gpus import GpuService, told
from obatchd.tasks import TaskOwner, TaskSet

_MOST_EVENTS = 1000
_LOOK_S = 10.0
_OLD_S = 15.0
T = TypeVar("T")


@define(eq=False)
class Histories:
    """Implements :class:`obatchd.control.operations.HistoryOperations`, which says what each method does."""

    _policy: GpuPolicy
    _gpus: GpuService
    _kept: dict[Hashable, Any] = field(factory=dict, init=False)  # columns that were read a moment ago, for other tabs
    _turn: asyncio.Lock = field(factory=asyncio.Lock, init=False)

    async def gpus(self, asked: SpanAsked, name: str | None) -> GpuHistory:
        history, uuid = self._policy.watch.history, self._gpus.find(name) if name else None
        tracks = self._policy.monitor.tracks
        serial = tracks[uuid].identity.serial if uuid else ""
        grid = history.grid(*asked)

        def look() -> list[GpuEvent]:
            return history.events(uuid, _MOST_EVENTS + 1, serial, since_s=asked.since_s, until_s=asked.until_s)

        cards = await self._columns(("cards", grid, uuid), lambda: history.cards(grid, uuid))
        events = [told(event) for event in await _read(look)]
        columns = sorted(map(self._card, cards), key=lambda card: (card.index is None, card.index or 0, card.uuid))
        return GpuHistory(grid.step_s, grid.at_s, columns, events[-_MOST_EVENTS:], len(events) > _MOST_EVENTS)

    def _card(self, card: CardColumns) -> GpuColumns:
        track = self._policy.monitor.tracks.get(card.uuid)
        latest = track.latest if track else None
        return GpuColumns(
            uuid=card.uuid,
            index=track.identity.index if track else None,
            name=track.identity.name if track else "",
            serial=card.serial,
            slot=card.slot,
            memory_total_bytes=latest.memory_total_bytes if latest else None,
            **card.columns,
        )

    async def work(self, asked: SpanAsked) -> WorkHistory:
        history = self._policy.watch.history
        grid = history.grid(*asked)
        found = await self._columns(("work", grid), lambda: history.work(grid))
        unknown = {name: [None] * grid.steps for name in HostWork.__struct_fields__}
        host = HostWork(**found.get("", unknown))
        servers = [
            ServerWorked(name, columns["tokens_per_s"], columns["in_flight"]) for name, columns in found.items() if name
        ]
        return WorkHistory(grid.step_s, grid.at_s, host, servers)

    async def _columns(self, key: Hashable, look: Callable[[], T]) -> T:
        """What ``look`` reads, or read some seconds ago: one at a time, for months of many GPUs take a second."""
        async with self._turn:
            if key not in self._kept:
                self._kept[key] = await _read(look)
                asyncio.get_running_loop().call_later(_OLD_S, self._kept.pop, key, None)
            found: T = self._kept[key]
            return found


@define(eq=False)
class WorkLooks:
    """Looks at the work every few seconds, and has it kept. Costs nothing while requests run."""

    _engine: Engine
    _history: History
    _owner: TaskOwner
    _tokens: dict[str, int] = field(factory=dict, init=False)  # of answers since the daemon began, by server
    _ended: tuple[int, int] = field(default=(0, 0), init=False)  # requests, and those of them that failed
    _looked_s: float | None = field(default=None, init=False)  # monotonic
    _tasks: TaskSet = field(init=False)

    @_tasks.default
    def _of_the_owner(self) -> TaskSet:
        return TaskSet(self._owner)

    def start(self) -> None:
        self._tasks.start(self._run(), "work-history")

    async def stop(self) -> None:
        await self._tasks.stop()

    async def _run(self) -> None:
        while True:
            self.look(time.time(), time.monotonic())
            await asyncio.sleep(_LOOK_S)

    def look(self, at_s: float, now_s: float) -> None:
        """Take down what was done since the look before; ``at_s`` is the time of the wall clock."""
        dispatcher, counters = self._engine.dispatcher, self._engine.work.counters
        links = dispatcher.links
        tokens = {name: link.tokens_done for name, link in links.items()}
        people = dispatcher.desk.figures.ended
        failed = counters.requests["failed"] + people["failed"]
        ended = counters.requests["succeeded"] + people["succeeded"] + failed, failed
        before, self._tokens = self._tokens, tokens
        (before_ended, before_failed), self._ended = self._ended, ended
        looked_s, self._looked_s = self._looked_s, now_s
        if looked_s is None:
            return
        span_s = now_s - looked_s
        # A server that is made anew counts from zero.
        done = {name: count - (old if (old := before.get(name, 0)) <= count else 0) for name, count in tokens.items()}
        people_now = dispatcher.desk.state()
        busy = {name: link.started for name, link in links.items()}
        all_of_it = Work(
            "", span_s, sum(done.values()), ended[0] - before_ended, ended[1] - before_failed,
            self._engine.queue.total(), sum(busy.values()), 0 if people_now is UNSET else people_now.waiting,
        )  # fmt: skip
        each = [Work(name, span_s, done[name], 0, 0, 0, busy[name], 0) for name in links]
        self._history.worked(at_s, [all_of_it, *(one for one in each if not one.idle)])


async def _read(look: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(look)
    except sqlite3.Error as error:
        raise ControlError(
            f"history.db cannot be read: {error}; see the log of the daemon", code="no_history"
        ) from error
