"""The jobs in work, and the state that all parts working on them share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from attrs import define, field

from obatchd import log
from obatchd.counters import JobCounters
from obatchd.dispatch.events import Finished
from obatchd.dispatch.holds import Holds
from obatchd.documents import excerpt
from obatchd.documents.alarms import Announcer, JobDone
from obatchd.documents.jobs import Counts
from obatchd.jobs.formats import contents, request_file
from obatchd.jobs.store import JobRow, Segment, Store
from obatchd.live.audit import AuditLog
from obatchd.live.conditions import Conditions
from obatchd.live.job import LiveJob
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout
from obatchd.tasks import TaskOwner, TaskSet, set_within

_log = log.get(__name__)


class Outcomes(Protocol):
    """Takes outcomes of requests; :class:`obatchd.delivery.committer.Committer`."""

    def finish(self, result: Finished) -> None:
        """A request has its outcome, which is to be made durable."""


class EndListener(Protocol):
    """Tells submitters; :class:`obatchd.telling.notifications.Notifications`."""

    def job_over(self, row: JobRow) -> None:
        """A job is published, or was refused, whose submitter wants to be told; that is in the store."""


class RequestSource(NamedTuple):
    """Where the requests of a job are read: its segment, opened when it is needed, and the file with their bytes."""

    open_segment: Callable[[], Segment]
    request_file: Path


def job_done(row: JobRow, counts: Counts) -> JobDone:
    """What is told of a published job."""
    return excerpt(JobDone, counts, job=row.job, owner=row.owner)


@define(eq=False)
class Work:
    """Made once, handed to every part of the path."""

    settings: Current[Settings]  # those in force
    layout: Layout
    store: Store
    owner: TaskOwner  # answers for the long-lived tasks of the parts
    announcer: Announcer
    jobs: dict[int, LiveJob] = field(factory=dict, init=False)  # by key; only the main loop changes it
    audit: AuditLog = field(init=False)  # who did what to the work of others, to keys and GPUs
    holds: Holds = field(factory=Holds, init=False)  # reasons for which nothing new is offered
    conditions: Conditions = field(init=False)  # hindrances from outside
    counters: JobCounters = field(factory=JobCounters, init=False)  # for the metrics
    _listeners: list[EndListener] = field(factory=list, init=False)
    _ends: dict[int, asyncio.Event] = field(factory=dict, init=False)  # by key of a job that somebody waits for

    @audit.default
    def _audit_log(self) -> AuditLog:
        return AuditLog(self.layout.work)

    @conditions.default
    def _conditions(self) -> Conditions:
        return Conditions(self.holds, self.announcer)

    def listen(self, listener: EndListener) -> None:
        self._listeners.append(listener)

    def input_of(self, row: JobRow) -> Path:
        """The drop of a job as it lies in the spool: a file or a folder."""
        return self.layout.job_dir(row.job) / "input"

    def contents_of(self, row: JobRow) -> Path:
        """The file or folder that is read: the drop, or what was unpacked from it."""
        return contents(self.input_of(row), row.label).path

    def request_file(self, row: JobRow) -> Path:
        """The file with the bytes of a job's requests."""
        return request_file(self.input_of(row))

    def outbox_of(self, row: JobRow) -> Path:
        return self.layout.outbox_dir(row.job, row.name, row.owner)

    def source_of(self, job: int) -> RequestSource | None:
        """Where the requests of a live job are read; None when the job is gone."""
        live = self.jobs.get(job)
        return RequestSource(partial(self.store.of, live.row), self.request_file(live.row)) if live else None

    def forget(self, job: int) -> LiveJob | None:
        """The job with this key is not in work any more."""
        if (end := self._ends.pop(job, None)) is not None:
            end.set()
        return self.jobs.pop(job, None)

    async def until_forgotten(self, job: int, timeout_s: float) -> bool:
        """Wait for the end of the work on a job; whether it came within ``timeout_s``."""
        return job not in self.jobs or await set_within(timeout_s, self._ends.setdefault(job, asyncio.Event()))

    def over(self, row: JobRow, counts: Counts) -> None:
        """A job is published: forget it, and tell."""
        self.forget(row.key)
        self.conditions.of_jobs.pop(row.key, None)
        self.store.of(row).forget_lanes(row.key)
        done = job_done(row, counts)
        self.counters.jobs[done.ending] += 1
        _log.info(
            "job_done", job=done.job, requests=done.requests, succeeded=done.succeeded, failed=done.failed,
            wall_s=done.wall_s, ending=done.ending,
        )  # fmt: skip
        self.announcer.announce(done)
        self.tell_submitter(row)

    def tell_submitter(self, row: JobRow) -> None:
        """A job is over in the store, where it says whom to tell."""
        for listener in self._listeners if row.settings.notify else ():
            listener.job_over(row)


@define(eq=False)
class Part:
    """A part of the path with tasks of its own."""

    _work: Work
    _tasks: TaskSet = field(init=False)

    @_tasks.default
    def _of_the_owner(self) -> TaskSet:
        return TaskSet(self._work.owner)

    async def stop(self) -> None:
        """End its tasks; the next start goes on with what they had not done."""
        await self._tasks.stop()
