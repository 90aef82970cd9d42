"""Group commits: results of many requests in one flushed transaction, at most one every ``commit_interval_ms``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from attrs import define, field

from obatchd import crash_points, log
from obatchd.counters import DISK_S, Histogram
from obatchd.dispatch.events import Failed, Finished
from obatchd.jobs.model import Outcome
from obatchd.jobs.store import AttemptRow, CostRow, ResultRow
from obatchd.live.work import Part

_log = log.get(__name__)


class CommitListener(Protocol):
    """Hears of durable results; :class:`obatchd.delivery.completion.Completion`."""

    def committed(self, batch: Sequence[Finished]) -> None:
        """These results are durable; none of them is told twice."""


class AttemptsInProgress(Protocol):
    """Knows the attempts at the servers; :class:`obatchd.dispatch.dispatcher.Dispatcher`."""

    def unrecorded_starts(self) -> list[Failed]:
        """Attempts that run and should be remembered with the next commit, each given once."""


class EnergySums(Protocol):
    """Adds up the energy of jobs; :class:`obatchd.delivery.energy.EnergyBill`."""

    def unkept(self) -> list[tuple[str, CostRow]]:
        """Sums to be kept with the next commit, each given once; with the segment of the job."""


@define(eq=False)
class Committer(Part):
    """Makes results durable, then tells its listener. From then on the store is the truth."""

    commits: Histogram = field(factory=lambda: Histogram(DISK_S), init=False)  # until results are durable
    _finished: list[Finished] = field(factory=list, init=False)
    _failed: list[Failed] = field(factory=list, init=False)
    _committing: int = field(default=0, init=False)  # results that a commit in progress has in hand
    _event: asyncio.Event = field(factory=asyncio.Event, init=False)
    _waiters: list[asyncio.Future[None]] = field(factory=list, init=False)
    _thread: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="store"), init=False)

    def start(self, listener: CommitListener, attempts: AttemptsInProgress, energy: EnergySums) -> None:
        self._tasks.start(self._run(listener, attempts, energy), "committer")

    async def stop(self) -> None:
        """Write the remaining results, in at most a few tries, then end."""
        await self.settle(timeout_s=10.0)
        await self._tasks.stop()
        self._thread.shutdown()

    async def settle(self, timeout_s: float) -> None:
        """Wait until everything given so far is committed, however much more comes meanwhile."""
        if not self._tasks:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._event.set()
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            _log.error("results_not_committed", results=self.backlog)

    @property
    def backlog(self) -> int:
        """Results that are only in memory."""
        return len(self._finished) + self._committing

    def finish(self, result: Finished) -> None:
        """A request has its outcome. A late one, of a job that is over or being ended, is dropped."""
        live = self._work.jobs.get(result.job)
        if live is not None and not live.ending:
            self._finished.append(result)
            self._event.set()

    def fail(self, attempt: Failed) -> None:
        self._failed.append(attempt)
        self._event.set()

    async def _run(self, listener: CommitListener, attempts: AttemptsInProgress, energy: EnergySums) -> None:
        while True:
            await self._event.wait()
            self._event.clear()
            begun_s = time.monotonic()
            finished, self._finished = self._finished, []
            failed, self._failed = self._failed, []
            waiters, self._waiters = self._waiters, []
            self._committing = len(finished)
            failed += attempts.unrecorded_starts()
            other = await self._commit(finished, failed, energy.unkept())
            self.commits.add_one(time.monotonic() - begun_s)
            # A result that was ended otherwise meanwhile (cancelled, say) was counted then, and is not counted twice.
            listener.committed([f for f in finished if (f.job, f.line) not in other] if other else finished)
            self._committing = 0
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
            # A lone result is committed at once; under load the next commit waits for company.
            interval_s = self._work.settings.value.dispatch.commit_interval_ms / 1000
            await asyncio.sleep(max(0.0, begun_s + interval_s - time.monotonic()))

    async def _commit(
        self, finished: list[Finished], failed: list[Failed], energy: list[tuple[str, CostRow]]
    ) -> set[tuple[int, int]]:
        """Write; returns the requests (job, line) that had another outcome already."""
        results = [
            (name, ResultRow(f.job, f.line, f.lane, Outcome.SUCCEEDED if f.succeeded else Outcome.FAILED, f.record))
            for f in finished
            if (name := self._segment_of(f.job)) is not None
        ]
        attempts = [
            (name, AttemptRow(f.job, f.line, f.attempt, f.server, f.started_s, f.fault, f.spent_s))
            for f in failed
            if (name := self._segment_of(f.job)) is not None
        ]

        async def write() -> set[tuple[int, int]]:
            crash_points.reach("commit.before")
            other = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._work.store.write_results, results, attempts, energy
            )
            crash_points.reach("commit.after")
            return other

        # On a full or failing disk nothing is lost while the results stay here, and dispatch pauses.
        return await self._work.conditions.until_disk_takes(
            write, "store", "commit_failed", "results cannot be written", results=len(results)
        )

    def _segment_of(self, job: int) -> str | None:
        live = self._work.jobs.get(job)
        return live.row.segment if live is not None else None
