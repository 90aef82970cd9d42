"""Tells interactive requests from those of jobs, of which alone the rest of the daemon hears."""

from __future__ import annotations

import attrs

from obatchd.dispatch.events import INTERRUPTED, DispatchEvents, Failed, Finished
from obatchd.dispatch.interactive.desk import Desk
from obatchd.dispatch.protocol import INTERACTIVE, JobContext
from obatchd.errors import ObatchError
from obatchd.jobs.model import Profile


@attrs.define(eq=False)
class Routed:
    """Implements :class:`obatchd.dispatch.events.DispatchEvents`, which says what each method does."""

    _events: DispatchEvents  # of jobs
    _desk: Desk

    def finished(self, finished: Finished) -> None:
        if finished.job != INTERACTIVE:
            self._events.finished(finished)
            return
        if finished.succeeded:
            self._events.served(finished)
        self._desk.finished(finished)

    def served(self, finished: Finished) -> None:
        self._events.served(finished)

    def failed(self, failed: Failed) -> None:
        if failed.job != INTERACTIVE:
            self._events.failed(failed)
        elif failed.fault == INTERRUPTED:
            self._desk.absolved(failed.line)

    def hindered(self, job: int, reason: str) -> None:
        if job != INTERACTIVE:
            self._events.hindered(job, reason)

    def model_missing(self, model: str) -> None:
        self._events.model_missing(model)

    def unservable(self, profile: Profile, error: ObatchError) -> None:
        self._desk.unservable(profile, error)
        self._events.unservable(profile, error)

    def context_of(self, job: int) -> JobContext:
        return self._events.context_of(job) if job != INTERACTIVE else self._desk.context()

    def name_of(self, job: int) -> str:
        return self._events.name_of(job) if job != INTERACTIVE else "interactive"

    def defective(self, job: int) -> None:
        self._events.defective(job)
