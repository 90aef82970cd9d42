"""Requests that name sources wait for them here, between the store and the queue's window.

The preparer is a process (:mod:`obatchd.context.preparer`), started with the first request that needs it. What it
prepared stays with the request over all its attempts; a restart of the daemon prepares it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from attrs import define, field

from obatchd import log
from obatchd.child import Child, End, Keeper
from obatchd.context import preparer
from obatchd.context.model import Alive, FromPreparer, Prepared, Rules, Wish, from_preparer
from obatchd.dispatch.events import Finished
from obatchd.jobs.formats.request import request_id
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Outcome, id_at
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import JobRow, unanswered_record
from obatchd.live.work import Outcomes, Part
from obatchd.settings.tables.context import ContextSettings
from obatchd.words import counted

_log = log.get(__name__)
_SILENT_S = 30.0  # a preparer says something every second
_TELLINGS = 2  # a request that is in preparation in so many ends of the preparer has caused them, for all we know


@define(eq=False)
class _Waiting:
    """A request in preparation."""

    lane: Lane
    pending: Pending
    queue: JobQueue  # where it goes then
    told: int = 0  # preparers that had it


@define(eq=False)
class Preparation(Part):
    """Keeps one preparer, whose parent it is, and the preparer's requests; those stay pending in the store."""

    _outcomes: Outcomes
    _waiting: dict[tuple[int, int], _Waiting] = field(factory=dict, init=False)
    _keeper: Keeper[FromPreparer] = field(init=False)
    _preparer: Child | None = field(default=None, init=False)

    @_keeper.default
    def _of_one_preparer(self) -> Keeper[FromPreparer]:
        task = partial(preparer.main, cache_dir=self._work.layout.sources)
        return Keeper("preparer", task, from_preparer, self, silent_s=_SILENT_S)

    @property
    def _settings(self) -> ContextSettings:
        return self._work.settings.value.context

    def settings_changed(self) -> None:
        """Tell the preparer, which is a process of its own."""
        if self._preparer is not None:
            self._preparer.send(Rules(self._settings.model_dump()))

    def ready(self, lane: Lane, pending: Sequence[Pending], queue: JobQueue) -> Sequence[Pending]:
        """Those of ``pending`` that need no preparation; the others come to the queue when they are prepared."""
        if not self._settings.enabled:
            return pending
        ready = []
        for one in pending:
            if one.prepared or not may_name_sources(one.raw, self._settings.from_links):
                ready.append(one)
                continue
            self._waiting[lane.job, one.line] = waiting = _Waiting(lane, one, queue)
            lane.preparing += 1
            self._tell(waiting)
        if len(ready) < len(pending) and not self._tasks:
            self._tasks.start(self._keeper.run(), "preparation")
        return ready

    def _tell(self, waiting: _Waiting) -> None:
        if self._preparer is None:
            return  # it is told when there is a preparer
        lane, pending = waiting.lane, waiting.pending
        live = self._work.jobs.get(lane.job)
        if live is None:  # the job is over
            del self._waiting[lane.job, pending.line]
            return
        keep_full_prompt = bool(live.row.settings.sample)
        wish = Wish(lane.job, pending.line, lane.owner, pending.raw, self._folder(live.row), keep_full_prompt)
        waiting.told += self._preparer.send(wish)

    def _folder(self, row: JobRow) -> str:
        """Where the files lie that requests name: the dropped folder, for a retry that of its first job."""
        if row.settings.lines_of is not None:
            row = next(iter(self._work.store.state.find([row.settings.lines_of])), row)
        drop = self._work.contents_of(row)
        return str(drop) if row.kind == "folder" or drop.is_dir() else ""

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
                message = (
                    f"the process that prepares requests ended {counted(waiting.told, 'time')} while it had this one"
                )
                self._answered(Prepared(waiting.lane.job, waiting.pending.line, b"", "preparer_lost", message))
        return end.pause_s

    def _answered(self, answer: Prepared) -> None:
        waiting = self._waiting.pop((answer.job, answer.line), None)
        if waiting is None:
            return
        lane, pending = waiting.lane, waiting.pending
        if answer.code:
            waiting.queue.prepared(lane, None)
            label = id_at(pending.line, request_id(pending.raw))
            record = unanswered_record(label, pending.line, Outcome.FAILED, answer.code, answer.message)
            self._outcomes.finish(Finished(lane.job, pending.line, lane.number, False, record, 0.0))
            return
        pending.prepared = answer.context
        waiting.queue.prepared(lane, pending)


def may_name_sources(raw: bytes, links: bool) -> bool:
    """Whether a request may name sources; the preparer finds out whether it does."""
    return b'"urls"' in raw or b'"files"' in raw or (links and b"](http" in raw)
