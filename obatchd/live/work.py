"""The jobs in work, and the state that all parts working on them share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from obatchd.dispatch.events import Finished
from obatchd.dispatch.holds import Holds
from obatchd.jobs.formats import request_file
from obatchd.jobs.store import JobRow, Segment, Store
from obatchd.live.conditions import Announcer, Conditions
from obatchd.live.job import LiveJob
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout
from obatchd.tasks import TaskOwner


class Outcomes(Protocol):
    """Takes outcomes of requests; :class:`obatchd.delivery.committer.Committer`."""

    def finish(self, result: Finished) -> None:
        """A request has its outcome, which is to be made durable."""


class RequestSource(NamedTuple):
    """Where the requests of a job are read: its segment, opened when it is needed, and the file with their bytes."""

    open_segment: Callable[[], Segment]
    request_file: Path


class Work:
    """Made once, handed to every part of the path.

    Attributes:
        settings: those in force.
        owner: answers for the long-lived tasks of the parts.
        jobs: live jobs by key; only the main loop changes it.
        holds: reasons for which nothing new is offered.
        conditions: hindrances from outside.
    """

    def __init__(
        self, settings: Current[Settings], layout: Layout, store: Store, owner: TaskOwner, announcer: Announcer
    ) -> None:
        self.settings = settings
        self.layout = layout
        self.store = store
        self.owner = owner
        self.announcer = announcer
        self.jobs: dict[int, LiveJob] = {}
        self.holds = Holds()
        self.conditions = Conditions(self.holds, announcer)

    def input_of(self, row: JobRow) -> Path:
        """The drop of a job as it lies in the spool: a file or a folder."""
        return self.layout.job_dir(row.job) / "input"

    def outbox_of(self, row: JobRow) -> Path:
        """The directory of a job's results."""
        return self.layout.outbox_dir(row.job, row.name, row.owner)

    def source_of(self, job: int) -> RequestSource | None:
        """Where the requests of a live job are read; None when the job is gone."""
        live = self.jobs.get(job)
        if live is None:
            return None
        return RequestSource(partial(self.store.of, live.row), request_file(self.input_of(live.row)))
