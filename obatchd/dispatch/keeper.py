"""Keeps a worker at every server: replaces one that is lost, kills one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from obatchd import log
from obatchd.child import End
from obatchd.dispatch import protocol
from obatchd.dispatch.link import Link, Waker
from obatchd.dispatch.workers import WorkerHandle, WorkerLife
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_TICK_S = 1.0
_ASK_TICKS = 5
_HUNG_TICKS = 30
_FIRST_S = 10.0  # the start of the daemon waits no longer for first workers: one may be far away, or never come


class WorkerEvents(Waker, Protocol):
    """Hears of the workers, and is woken once a second; :class:`obatchd.dispatch.dispatcher.Dispatcher`."""

    def worker_said(self, link: Link, message: protocol.ToMain) -> None:
        """A worker sent a message."""

    def worker_lost(self, link: Link, end: End) -> None:
        """A worker is gone; its offers are still in the link."""


@attrs.define(eq=False)
class WorkerKeeper:
    """The life of the workers."""

    _links: Mapping[str, Link]  # the servers, by id
    _events: WorkerEvents
    _tasks: TaskSet

    _running: dict[str, asyncio.Task[None]] = attrs.field(factory=dict, init=False)  # by server

    async def start(self, lives: Sequence[WorkerLife]) -> None:
        """Begin to listen for workers that hang, and wait a moment for the first ones of ``lives``."""
        self._tasks.start(self._tick(), "dispatch-tick")
        tried = [asyncio.create_task(life.tried.wait()) for life in lives]
        if tried:
            _, untried = await asyncio.wait(tried, timeout=_FIRST_S)
            for each in untried:
                each.cancel()

    def attach(self, link: Link) -> WorkerLife:
        """Keep workers at a server from now on."""
        life = link.workers.keep(link.server.id, _Place(link, self._events))
        self._running[link.server.id] = self._tasks.start(life.run(), life.name)
        return life

    async def detach(self, link: Link) -> None:
        """Keep none any more, and wait for the end of the one that is there."""
        link.worker = None
        running = self._running.pop(link.server.id)
        running.cancel()
        await asyncio.wait([running])

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_S)
            ticks = (ticks + 1) % _ASK_TICKS
            for link in self._links.values():
                self._listen_for(link, asking=not ticks)
            self._events.wake()

    def _listen_for(self, link: Link, *, asking: bool) -> None:
        """A worker that says nothing, not even when asked, hangs. Counted in ticks: this loop may have stood still.

        A busy one speaks every second, and is asked all the same: so it tells what it holds, as of that moment.
        """
        if link.worker is None or not (link.offers or link.full):
            link.unheard_ticks = 0
            return
        link.unheard_ticks += 1
        if link.unheard_ticks >= _HUNG_TICKS:
            _log.error("worker_hung", server=link.server.id, pid=link.worker.pid, silent_s=_HUNG_TICKS * _TICK_S)
            link.worker.kill()
        elif asking:
            link.worker.send(protocol.Ping(link.offered))


class _Place:
    """That of the workers at one server. Implements :class:`obatchd.dispatch.workers.WorkerPlace`."""

    def __init__(self, link: Link, events: WorkerEvents) -> None:
        self._link = link
        self._events = events

    def started(self, worker: WorkerHandle) -> None:
        _log.info("worker_started", server=self._link.server.id, pid=worker.pid)
        self._link.worker, self._link.configured = worker, None
        self._link.offered, self._link.full = 0, False
        self._link.unheard_ticks = 0
        self._link.contexts.clear()
        worker.listen(self)
        self._events.wake()

    def drained(self) -> None:
        self._link.full = False
        self._events.wake()

    def heard(self, message: protocol.ToMain) -> None:
        self._events.worker_said(self._link, message)

    def ended(self, end: End) -> float:
        _log.warning("worker_lost", server=self._link.server.id, reason=end.words)
        self._link.worker = None
        self._link.recalling = 0
        self._events.worker_lost(self._link, end)
        return end.pause_s
