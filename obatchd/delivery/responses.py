"""The main process's end of the process that writes response files."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from obatchd import log
from obatchd.spool import response_process
from obatchd.spool.response_process import HEADER, Batch

_log = log.get(__name__)


class ResponseWriter:
    """Writes response files in the background, in order.

    What could not be written, for whatever reason, is remembered in ``incomplete``: publishing the whole of such a job
    writes its files again from the store.
    """

    def __init__(self, context: ForkServerContext) -> None:
        self.incomplete: set[Path] = set()
        self.backlog = 0  # responses given and not written yet
        self._context = context
        self._waiting: deque[list[tuple[Path, int]]] = deque()
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._pending: Counter[Path] = Counter()
        self._progress = asyncio.Condition()
        self._closing = False

    async def start(self) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        process = self._context.Process(
            target=response_process.main, args=(theirs,), name="response-writer", daemon=True
        )
        await asyncio.to_thread(process.start)
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._listener = asyncio.create_task(self._listen(reader), name="response-writer")

    async def stop(self) -> None:
        """Wait until everything given is written, then end the process."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await self.settle(list(self._pending))
        self._closing = True
        if self._writer is not None:
            self._writer.close()
        if self._listener is not None:
            await self._listener

    def write(self, given: Sequence[tuple[Path, list[tuple[int, bytes]], str]]) -> None:
        """Write two files per success: the record, and its text.

        Args:
            given: by job, its outbox, its successes as (line, record), and the suffix of its texts.
        """
        if self._writer is None or self._writer.is_closing():
            self.incomplete.update(outbox for outbox, *_ in given)
            return
        self._waiting.append([(outbox, len(records)) for outbox, records, _ in given])
        for outbox, records, _ in given:
            self.backlog += len(records)
            self._pending[outbox] += 1
        body = response_process.encode([Batch(str(outbox), records, suffix) for outbox, records, suffix in given])
        self._writer.write(HEADER.pack(len(body)) + body)

    async def settle(self, outboxes: Iterable[Path]) -> None:
        """Wait until everything given for these jobs is written or known to be incomplete."""
        wanted = self._pending.keys() & set(outboxes)
        async with self._progress:
            await self._progress.wait_for(lambda: self._pending.keys().isdisjoint(wanted))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                errors = response_process.errors.decode(await reader.readexactly(length))
                done = self._waiting.popleft()
                for (outbox, count), error in zip(done, errors, strict=True):
                    if error:
                        self._failed(outbox, count, error)
                await self._done(done)
        self._writer = None
        while self._waiting:
            lost = self._waiting.popleft()
            self.incomplete.update(outbox for outbox, _ in lost)
            await self._done(lost)
        if not self._closing:
            _log.warning("response_writer_lost", remedy="a new one is started; its files are written again")
            await self.start()

    def _failed(self, outbox: Path, count: int, reason: str) -> None:
        self.incomplete.add(outbox)
        job = outbox.name.rpartition(".")[2]
        _log.error("responses_not_written", job=job, responses=count, reason=reason)

    async def _done(self, written: Sequence[tuple[Path, int]]) -> None:
        for outbox, count in written:
            self.backlog -= count
            self._pending[outbox] -= 1
            if not self._pending[outbox]:
                del self._pending[outbox]
        async with self._progress:
            self._progress.notify_all()
