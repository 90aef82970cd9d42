"""Requests that name sources wait for them here, between the store and the queue's window.

The preparer is a process (:mod:`obatchd.context.preparer`), started with the first request that needs it. What it
prepared stays with the request over all its attempts; a restart of the daemon prepares it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from obatchd import log
from obatchd.child import Child, End, Keeper
from obatchd.context import preparer
from obatchd.context.model import Alive, FromPreparer, Prepared, Rules, Wish, from_preparer
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
_TELLINGS = 2  # a request that is in preparation in so many ends of the preparer has caused them, for all we know


class _Waiting:
    """A request in preparation."""

    def __init__(self, lane: Lane, pending: Pending, queue: JobQueue) -> None:
        self.lane = lane
        self.pending = pending
        self.queue = queue  # where it goes then
        self.told = 0  # preparers that had it


class Preparation:
    """Keeps one preparer, whose parent it is, and the preparer's requests."""

    def __init__(self, work: Work, outcomes: Outcomes) -> None:
        self._work = work
        self._outcomes = outcomes
        self._tasks = TaskSet(work.owner)
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        task = partial(preparer.main, cache_dir=work.layout.sources)
        self._keeper = Keeper("preparer", task, from_preparer, self, silent_s=_SILENT_S)
        self._preparer: Child | None = None

    @property
    def _settings(self) -> ContextSettings:
        return self._work.settings.value.context

    def settings_changed(self) -> None:
        """Tell the preparer, which is a process of its own."""
        if self._preparer is not None:
            self._preparer.send(Rules(self._settings.model_dump()))

    async def stop(self) -> None:
        """End the preparer; requests that wait for it stay pending in the store."""
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
            self._tasks.start(self._keeper.run(), "preparation")
        return ready

    def _needs(self, raw: bytes) -> bool:
        """Whether a request may name sources; the preparer finds out whether it does."""
        return b'"urls"' in raw or b'"files"' in raw or (self._settings.from_links and b"](http" in raw)

    def _tell(self, waiting: _Waiting) -> None:
        if self._preparer is None:
            return  # it is told when there is a preparer
        lane, pending = waiting.lane, waiting.pending
        live = self._work.jobs.get(lane.job)
        if live is None:  # the job is over
            del self._waiting[lane.job, pending.line]
            return
        folder = str(self._work.input_of(live.row)) if live.row.kind == "folder" else ""
        keep_full_prompt = bool(live.row.settings.sample)
        wish = Wish(lane.job, pending.line, lane.owner, pending.raw, folder, keep_full_prompt)
        waiting.told += self._preparer.send(wish)

    # Messages of the preparer.

    def started(self, child: Child) -> None:
        self._preparer = child
        child.send(Rules(self._settings.model_dump()))
        for waiting in list(self._waiting.values()):
            self._tell(waiting)

    def heard(self, message: FromPreparer) -> None:
        if not isinstance(message, Alive):
            self._answered(message)

    def ended(self, end: End) -> float:
        self._preparer = None
        _log.warning("preparer_lost", reason=end.words, requests=len(self._waiting))
        for waiting in list(self._waiting.values()):
            if waiting.told >= _TELLINGS:
                message = f"the process that prepares requests ended {waiting.told} times while it had this one"
                self._answered(Prepared(waiting.lane.job, waiting.pending.line, b"", "preparer_lost", message))
        return end.pause_s

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


def _failure(pending: Pending, answer: Prepared) -> bytes:
    return unanswered_record(request_id(pending.raw), pending.line, Outcome.FAILED, answer.code, answer.message)
