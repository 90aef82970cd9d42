"""Requests that name sources wait for them here, between the store and the queue's window.

The preparer is a process (:mod:`obatchd.context.preparer`), started with the first request that needs it. What it
prepared stays with the request over all its attempts; a restart of the daemon prepares it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext

from obatchd import log
from obatchd.context import model, preparer
from obatchd.context.model import HEADER, Alive, Prepared, Rules, Wish
from obatchd.dispatch.events import Finished
from obatchd.jobs.formats.request import request_id
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Outcome
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import unanswered_record
from obatchd.live.work import Outcomes, Work
from obatchd.settings.tables.context import ContextSettings
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_SILENT_S = 30.0  # a preparer says something every second
_PAUSE_S = 1.0  # before the next one
_TELLINGS = 2  # a request that is in preparation in so many ends of the preparer has caused them, for all we know


class _Waiting:
    """A request in preparation."""

    def __init__(self, lane: Lane, pending: Pending, queue: JobQueue) -> None:
        self.lane = lane
        self.pending = pending
        self.queue = queue  # where it goes then
        self.told = 0  # preparers that had it


class Preparation:
    """Keeps one preparer and what it works on."""

    def __init__(self, work: Work, context: ForkServerContext, outcomes: Outcomes) -> None:
        self._work = work
        self._context = context
        self._outcomes = outcomes
        self._tasks = TaskSet(work.owner)
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        self._writer: asyncio.StreamWriter | None = None

    @property
    def _settings(self) -> ContextSettings:
        return self._work.settings.value.context

    def settings_changed(self) -> None:
        """Tell the preparer, which is a process of its own."""
        if (writer := self._open_writer) is not None:
            writer.write(model.frame(rules_of(self._settings)))

    @property
    def _open_writer(self) -> asyncio.StreamWriter | None:
        """To a preparer that is not known to be dead. uvloop's transport raises for a write after a failed one."""
        return None if self._writer is None or self._writer.is_closing() else self._writer

    async def stop(self) -> None:
        """End the preparer; what waits for it stays pending in the store."""
        await self._tasks.stop()

    def ready(self, lane: Lane, pending: Sequence[Pending], queue: JobQueue) -> Sequence[Pending]:
        """Those of ``pending`` that need no preparation; the others come to the queue when they are prepared."""
        if not self._settings.enabled:
            return pending
        ready = []
        for one in pending:
            if one.prepared or not self._needs(one.raw):
                ready.append(one)
                continue
            self._waiting[lane.job, one.line] = waiting = _Waiting(lane, one, queue)
            lane.preparing += 1
            self._tell(waiting)
        if len(ready) < len(pending) and not self._tasks:
            self._tasks.start(self._run(), "preparation")
        return ready

    def _needs(self, raw: bytes) -> bool:
        """Whether a request may name sources; what only looks so is found out by the preparer."""
        return b'"urls"' in raw or b'"files"' in raw or (self._settings.from_links and b"](http" in raw)

    def _tell(self, waiting: _Waiting) -> None:
        if (writer := self._open_writer) is None:
            return  # it is told when there is a preparer
        lane, pending = waiting.lane, waiting.pending
        live = self._work.jobs.get(lane.job)
        if live is None:  # the job is over
            del self._waiting[lane.job, pending.line]
            return
        folder = str(self._work.input_of(live.row)) if live.row.kind == "folder" else ""
        keep_full_prompt = bool(live.row.settings.sample)
        waiting.told += 1
        wish = Wish(lane.job, pending.line, lane.owner, pending.raw, folder, keep_full_prompt)
        writer.write(model.frame(wish))

    async def _run(self) -> None:
        while True:
            reason = await self._with_preparer()
            _log.warning("preparer_lost", reason=reason, requests=len(self._waiting))
            for waiting in list(self._waiting.values()):
                if waiting.told >= _TELLINGS:
                    message = f"the process that prepares requests ended {waiting.told} times while it had this one"
                    self._answered(Prepared(waiting.lane.job, waiting.pending.line, b"", "preparer_lost", message))
            await asyncio.sleep(_PAUSE_S)

    async def _with_preparer(self) -> str:
        """One preparer, from its start to its end; says how it ended."""
        ours, theirs = socket.socketpair()
        process = self._context.Process(
            target=preparer.main, args=(theirs, str(self._work.layout.sources)), name="preparer", daemon=True
        )
        try:
            await asyncio.to_thread(process.start)
        except OSError as error:
            ours.close()
            return f"it cannot be started: {error.strerror}"
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            writer.write(model.frame(rules_of(self._settings)))
            self._writer = writer
            for waiting in list(self._waiting.values()):
                self._tell(waiting)
            while True:
                async with asyncio.timeout(_SILENT_S):
                    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                    message = model.from_preparer.decode(await reader.readexactly(length))
                if not isinstance(message, Alive):
                    self._answered(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            return "it died"
        except TimeoutError:
            return f"it said nothing for {_SILENT_S:g} s"
        finally:
            self._writer = None
            writer.transport.abort()
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.join, 2.0)

    def _answered(self, answer: Prepared) -> None:
        waiting = self._waiting.pop((answer.job, answer.line), None)
        if waiting is None:
            return
        lane, pending = waiting.lane, waiting.pending
        if answer.code:
            waiting.queue.prepared(lane, None)
            record = _failure(pending, answer)
            self._outcomes.finish(Finished(lane.job, pending.line, lane.number, False, record, 0.0))
            return
        pending.prepared = answer.context
        waiting.queue.prepared(lane, pending)


def rules_of(settings: ContextSettings) -> Rules:
    """What the preparer is told of the settings."""
    return Rules(**{name: getattr(settings, name) for name in Rules.__struct_fields__})


def _failure(pending: Pending, answer: Prepared) -> bytes:
    return unanswered_record(request_id(pending.raw), pending.line, Outcome.FAILED, answer.code, answer.message)
