"""What the GPUs and the servers did over some time, for people, and the looks at the work that are kept for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from attrs import define, field
from msgspec import UNSET

from obatchd import log
from obatchd.cluster.head import gpus as elsewhere
from obatchd.cluster.head.joined import JoinedHost
from obatchd.control.operations import SpanAsked
from obatchd.documents.history import GpuHistory, HostWork, ServerWorked, WorkHistory
from obatchd.engine.engine import Engine
from obatchd.errors import ObatchError
from obatchd.gpucare.past import MOST_EVENTS, Past
from obatchd.gpus.history import History, Work
from obatchd.operations.gpus import GpuService
from obatchd.tasks import TaskOwner, TaskSet
from obatchd.words import in_order

_log = log.get(__name__)
_LOOK_S = 10.0


@define(eq=False)
class Histories:
    """Implements :class:`obatchd.control.operations.HistoryOperations`, which says what each method does."""

    _past: Past
    _gpus: GpuService
    _hosts: Mapping[str, JoinedHost] = field(factory=dict)

    async def gpus(self, asked: SpanAsked, name: str | None) -> GpuHistory:
        hosted, name = self._gpus.place(name) if name else (None, None)
        if hosted is not None:
            return await elsewhere.history(hosted.host, *asked, hosted.uuid)
        found = await self._past.gpus(*asked, name)
        if name is None:
            await self._add_hosts(found, asked)
        return found

    async def _add_hosts(self, found: GpuHistory, asked: SpanAsked) -> None:
        here = [host for _, host in sorted(self._hosts.items(), key=_by_name) if host.session is not None]
        for told in await asyncio.gather(*(self._of_host(host, asked) for host in here)):
            if told is not None:
                found.gpus += elsewhere.on_the_grid(told, found.at_s)
                found.events += told.events
                found.more_events |= told.more_events
        found.events.sort(key=lambda event: event.at_s)
        found.more_events |= len(found.events) > MOST_EVENTS
        found.events = found.events[-MOST_EVENTS:]

    async def _of_host(self, host: JoinedHost, asked: SpanAsked) -> GpuHistory | None:
        try:
            return await elsewhere.history(host, *asked, None)
        except ObatchError as error:
            _log.warning("host_not_asked", host=host.name, reason=error.message)
            return None

    async def work(self, asked: SpanAsked) -> WorkHistory:
        history = self._past.history
        grid = history.grid(*asked)
        found = await self._past.columns(("work", grid), lambda: history.work(grid))
        unknown = {name: [None] * grid.steps for name in HostWork.__struct_fields__}
        host = HostWork(**found.get("", unknown))
        servers = [
            ServerWorked(name, columns["tokens_per_s"], columns["in_flight"]) for name, columns in found.items() if name
        ]
        return WorkHistory(grid.step_s, grid.at_s, host, servers)


def _by_name(named: tuple[str, JoinedHost]) -> list[str | int]:
    return in_order(named[0])


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
