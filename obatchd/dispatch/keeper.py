"""Keeps a worker at every server: replaces one that is lost, kills one that hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.context import ForkServerContext

from obatchd import log
from obatchd.dispatch import protocol
from obatchd.dispatch.link import Link
from obatchd.dispatch.pool import WorkerHandle

_log = log.get(__name__)
_TICK_S = 1.0
_ASK_TICKS = 5  # a busy worker speaks every second
_HUNG_TICKS = 30
_SHORT_LIFE_S = 5.0  # a worker that lived no longer is replaced after a pause
_WORKER_PAUSE_S = 1.0


class WorkerKeeper:
    """The life of the workers.

    Args:
        links: the servers, by id.
        on_message: a worker said something.
        on_lost: a worker is gone, for this reason; its offers are still in the link.
        wake: there may be something to offer: a worker has started, or a second has passed.
    """

    def __init__(
        self,
        links: Mapping[str, Link],
        context: ForkServerContext,
        *,
        on_message: Callable[[Link, protocol.ToMain], None],
        on_lost: Callable[[Link, str], None],
        wake: Callable[[], None],
    ) -> None:
        self._links = links
        self._context = context
        self._on_message = on_message
        self._on_lost = on_lost
        self._wake = wake
        self._ticker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self) -> None:
        """Start a worker for each server."""
        await asyncio.gather(*(self._new_worker(link) for link in self._links.values()))
        self._ticker = asyncio.create_task(self._tick(), name="dispatch-tick")

    async def stop(self) -> None:
        """End every worker, and replace none from now on."""
        self._closing = True
        if self._ticker is not None:
            self._ticker.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(link.worker.close() for link in self._links.values() if link.worker))

    async def _new_worker(self, link: Link) -> None:
        worker = WorkerHandle(
            self._context, link.server.id, partial(self._on_message, link), partial(self._worker_lost, link)
        )
        await worker.start()
        link.worker, link.configured, link.worker_since_s = worker, None, time.monotonic()
        link.unheard_ticks = 0
        link.contexts.clear()
        self._wake()

    def _worker_lost(self, link: Link, reason: str) -> None:
        link.worker = None
        link.recalling = 0
        self._on_lost(link, reason)
        if not self._closing:
            task = asyncio.create_task(self._replace_worker(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _replace_worker(self, link: Link) -> None:
        """Give a server another worker; one that cannot live is not started again without a pause."""
        while True:
            if time.monotonic() - link.worker_since_s < _SHORT_LIFE_S:
                await asyncio.sleep(_WORKER_PAUSE_S)
            try:
                await self._new_worker(link)
                return
            except Exception:  # noqa: BLE001 - no process, descriptor or memory now: a server must not stay without
                _log.exception("worker_not_started", server=link.server.id)
                link.worker_since_s = time.monotonic()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for link in self._links.values():
                self._listen_for(link)
            self._wake()

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
