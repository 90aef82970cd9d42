"""The main process's end of the process that writes response files."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from obatchd import log
from obatchd.child import Child, End, Keeper
from obatchd.spool import response_process
from obatchd.spool.response_process import Batch
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_SETTLE_S = 10.0  # at the end of the daemon


class ResponseWriter:
    """Writes response files in the background, in order; the parent of the process that does it.

    A job whose files could not be written is remembered in ``incomplete``: publishing the whole of such a job
    writes its files again from the store.
    """

    def __init__(self, owner: TaskOwner) -> None:
        self.incomplete: set[Path] = set()
        self.backlog = 0  # responses given and not written yet
        self._keeper = Keeper("response-writer", response_process.main, response_process.errors, self)
        self._tasks = TaskSet(owner)
        self._child: Child | None = None
        self._waiting: deque[list[tuple[Path, int]]] = deque()
        self._pending: Counter[Path] = Counter()
        self._progress = asyncio.Event()  # replaced whenever something was written or lost

    async def start(self) -> None:
        self._tasks.start(self._keeper.run(), self._keeper.name)
        await self._keeper.tried.wait()

    async def stop(self) -> None:
        """Wait for a while until everything given is written, then end the process."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                await self.settle(list(self._pending))
        await self._tasks.stop()

    def write(self, given: Sequence[tuple[Path, list[tuple[int, bytes]], str]]) -> None:
        """Write two files per success: the record, and its text.

        Args:
            given: by job, its outbox, its successes as (line, record), and the suffix of its texts.
        """
        batches = [Batch(str(outbox), records, suffix) for outbox, records, suffix in given]
        if self._child is None or not self._child.send(batches):
            self.incomplete.update(outbox for outbox, *_ in given)
            return
        self._waiting.append([(outbox, len(records)) for outbox, records, _ in given])
        for outbox, records, _ in given:
            self.backlog += len(records)
            self._pending[outbox] += 1

    async def settle(self, outboxes: Iterable[Path]) -> None:
        """Wait until everything given for these jobs is written or known to be incomplete."""
        wanted = self._pending.keys() & set(outboxes)
        while not self._pending.keys().isdisjoint(wanted):
            await self._progress.wait()

    # Messages of the process.

    def started(self, child: Child) -> None:
        self._child = child

    def heard(self, errors: list[str]) -> None:
        done = self._waiting.popleft()
        for (outbox, count), error in zip(done, errors, strict=True):
            if error:
                self.incomplete.add(outbox)
                job = outbox.name.rpartition(".")[2]
                _log.error("responses_not_written", job=job, responses=count, reason=error)
        self._done(done)

    def ended(self, end: End) -> float:
        remedy = "a new one is started; its files are written again"
        _log.warning("response_writer_lost", reason=end.words, remedy=remedy)
        self._child = None
        while self._waiting:
            lost = self._waiting.popleft()
            self.incomplete.update(outbox for outbox, _ in lost)
            self._done(lost)
        return end.pause_s

    def _done(self, written: Sequence[tuple[Path, int]]) -> None:
        for outbox, count in written:
            self.backlog -= count
            self._pending[outbox] -= 1
            if not self._pending[outbox]:
                del self._pending[outbox]
        self._progress.set()
        self._progress = asyncio.Event()
