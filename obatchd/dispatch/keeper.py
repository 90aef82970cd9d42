"""Keeps a worker at every server: replaces one that is lost, kills one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import attrs

from obatchd import log
from obatchd.child import End
from obatchd.dispatch import protocol
from obatchd.dispatch.link import Link, Waker
from obatchd.dispatch.workers import WorkerHandle
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_TICK_S = 1.0
_ASK_TICKS = 5  # a busy worker speaks every second
_HUNG_TICKS = 30


class WorkerEvents(Waker, Protocol):
    """Hears of the workers, and is woken once a second; :class:`obatchd.dispatch.dispatcher.Dispatcher`."""

    def worker_said(self, link: Link, message: protocol.ToMain) -> None:
        """A worker sent a message."""

    def worker_lost(self, link: Link, reason: str) -> None:
        """A worker is gone, for this reason; its offers are still in the link."""


@attrs.define(eq=False)
class WorkerKeeper:
    """The life of the workers."""

    _links: Mapping[str, Link]  # the servers, by id
    _events: WorkerEvents
    _tasks: TaskSet

    async def start(self) -> None:
        """Start a worker for each server."""
        lives = [link.workers.keep(link.server.id, _Place(link, self._events)) for link in self._links.values()]
        for life in lives:
            self._tasks.start(life.run(), life.name)
        self._tasks.start(self._tick(), "dispatch-tick")
        await asyncio.gather(*(life.tried.wait() for life in lives))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for link in self._links.values():
                self._listen_for(link)
            self._events.wake()

    def _listen_for(self, link: Link) -> None:
        """A worker that says nothing, not even when asked, hangs. Counted in ticks: this loop may have stood still."""
        if link.worker is None or not link.offers:
            link.unheard_ticks = 0
            return
        link.unheard_ticks += 1
        if link.unheard_ticks >= _HUNG_TICKS:
            _log.error("worker_hung", server=link.server.id, pid=link.worker.pid, silent_s=_HUNG_TICKS * _TICK_S)
            link.worker.kill()
        elif link.unheard_ticks >= _ASK_TICKS:
            link.worker.send(protocol.Ping())


class _Place:
    """That of the workers at one server. Implements :class:`obatchd.dispatch.workers.WorkerPlace`."""

    def __init__(self, link: Link, events: WorkerEvents) -> None:
        self._link = link
        self._events = events

    def started(self, worker: WorkerHandle) -> None:
        _log.info("worker_started", server=self._link.server.id, pid=worker.pid)
        self._link.worker, self._link.configured = worker, None
        self._link.unheard_ticks = 0
        self._link.contexts.clear()
        worker.listen(self)
        self._events.wake()

    def drained(self) -> None:
        self._events.wake()

    def heard(self, message: protocol.ToMain) -> None:
        self._events.worker_said(self._link, message)

    def ended(self, end: End) -> float:
        _log.warning("worker_lost", server=self._link.server.id, reason=end.words)
        self._link.worker = None
        self._link.recalling = 0
        self._events.worker_lost(self._link, end.words)
        return end.pause_s
