"""Group commits: results of many requests in one flushed transaction, at most one every ``interval_s``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from obatchd import crash_points, log
from obatchd.dispatch.dispatcher import Failed, Finished
from obatchd.jobs.model import Outcome
from obatchd.jobs.store import DISK_ERRORS, AttemptRow, ResultRow, Store
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_RETRY_S = 1.0


class Committer:
    """Makes results durable, then tells ``on_committed``. From then on the store is the truth.

    Args:
        segment_of: the segment of a job, by job key; None when the job is gone.
        unrecorded_starts: attempts in progress that should be remembered with the next commit.
        on_trouble: called with a reason while the store cannot be written, with "" when it can again.
    """

    def __init__(
        self,
        store: Store,
        interval_s: float,
        *,
        segment_of: Callable[[int], str | None],
        unrecorded_starts: Callable[[], list[Failed]],
        on_committed: Callable[[Sequence[Finished]], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self.interval_s = interval_s
        self._store = store
        self._segment_of = segment_of
        self._unrecorded_starts = unrecorded_starts
        self._on_committed = on_committed
        self._on_trouble = on_trouble
        self._finished: list[Finished] = []
        self._failed: list[Failed] = []
        self._committing = 0  # results that a commit in progress has in hand
        self._event = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._tasks: TaskSet | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    def start(self, owner: TaskOwner) -> None:
        self._tasks = TaskSet(owner)
        self._tasks.start(self._run(), "committer")

    async def stop(self) -> None:
        """Write what is left, for at most a few tries, then end."""
        await self.settle(timeout_s=10.0)
        if self._tasks is not None:
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
        self._finished.append(result)
        self._event.set()

    def fail(self, attempt: Failed) -> None:
        self._failed.append(attempt)
        self._event.set()

    async def _run(self) -> None:
        while True:
            await self._event.wait()
            self._event.clear()
            begun_s = time.monotonic()
            finished, self._finished = self._finished, []
            failed, self._failed = self._failed, []
            waiters, self._waiters = self._waiters, []
            self._committing = len(finished)
            await self._commit(finished, failed)
            self._committing = 0
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
            # A lone result is committed at once; under load the next commit waits for company.
            await asyncio.sleep(max(0.0, begun_s + self.interval_s - time.monotonic()))

    async def _commit(self, finished: list[Finished], failed: list[Failed]) -> None:
        results = [
            (name, ResultRow(f.job, f.line, f.lane, Outcome.SUCCEEDED if f.succeeded else Outcome.FAILED, f.record))
            for f in finished
            if (name := self._segment_of(f.job)) is not None
        ]
        attempts = [
            (name, AttemptRow(f.job, f.line, f.attempt, f.server, f.started_s, f.fault, f.spent_s))
            for f in (*failed, *self._unrecorded_starts())
            if (name := self._segment_of(f.job)) is not None
        ]
        loop, troubled = asyncio.get_running_loop(), False
        while True:
            try:
                crash_points.reach("commit.before")
                other = await loop.run_in_executor(self._thread, self._store.write_results, results, attempts)
                crash_points.reach("commit.after")
                break
            except DISK_ERRORS as error:
                # A full or failing disk: nothing is lost while the results stay here, and dispatch pauses.
                _log.error("commit_failed", results=len(results), reason=log.reason(error))
                self._on_trouble(f"results cannot be written: {log.reason(error)}")
                troubled = True
                await asyncio.sleep(_RETRY_S)
        if troubled:
            self._on_trouble("")
        # What was ended otherwise meanwhile (cancelled, say) was counted then, and must not be counted twice.
        self._on_committed([f for f in finished if (f.job, f.line) not in other] if other else finished)
