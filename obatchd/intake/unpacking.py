"""Has drops unpacked, each by a process of its own, and says durably that one is."""

from __future__ import annotations

import asyncio
import errno
from collections import defaultdict
from functools import partial

from attrs import define, field

from obatchd import crash_points, log
from obatchd.child import Child, End, Keeper
from obatchd.errors import DropRefused
from obatchd.jobs.containers import unpacker
from obatchd.jobs.containers.messages import FromUnpacker, Order, Refused, Trouble, Unpacked, from_unpacker
from obatchd.jobs.containers.unpacked import conclude
from obatchd.jobs.store import JobRow
from obatchd.live.work import Work
from obatchd.spool.flush import sync_filesystem

_log = log.get(__name__)
_AT_A_TIME = 4  # each may need unpack_memory_bytes
_TRIES = 2  # a drop whose process was killed so often is the cause of it, for all we know


@define(eq=False)
class _Process:
    """The process that unpacks one drop, seen by its parent."""

    answer: FromUnpacker | None = None
    words: str = ""  # how it ended
    has_run: bool = False

    def started(self, child: Child) -> None:
        """It has its order already."""
        self.has_run = True

    def heard(self, message: FromUnpacker) -> None:
        self.answer = message

    def ended(self, end: End) -> None:
        self.words = end.words


@define(eq=False)
class DropUnpacker:
    """One drop of an owner at a time, so that a bomb holds up its owner alone."""

    _work: Work
    _free: asyncio.Semaphore = field(factory=lambda: asyncio.Semaphore(_AT_A_TIME), init=False)
    _turns: dict[int, asyncio.Semaphore] = field(factory=lambda: defaultdict(lambda: asyncio.Semaphore(1)), init=False)
    # By key, of drops that the disk had no room for: they are not unpacked again and again in vain.
    _needed_bytes: dict[int, int] = field(factory=dict, init=False)

    async def unpack(self, row: JobRow) -> None:
        """Unpack the drop of a job.

        Raises DropRefused where it cannot be unpacked, OSError where the disk refuses or no process can be started: it
        can be tried again.
        """
        await asyncio.to_thread(self._require_room, row)
        async with self._turns[row.owner], self._free:
            found = await self._found(row)
            await asyncio.to_thread(self._keep, row, found)
        self._needed_bytes.pop(row.key, None)
        _log.info("drop_unpacked", job=row.job, owner=row.owner)

    async def _found(self, row: JobRow) -> Unpacked:
        for _ in range(_TRIES):
            process = _Process()
            task = partial(unpacker.main, order=self._order(row))
            await Keeper("unpacker", task, from_unpacker, process).run()
            match process.answer:
                case Unpacked():
                    return process.answer
                case Refused(code, message):
                    raise DropRefused(message, code=code)
                case Trouble(number, message, needed_bytes):
                    self._needed_bytes[row.key] = needed_bytes
                    raise OSError(number, message)
            if not process.has_run:  # no descriptor or memory now, which is not the fault of the drop
                raise OSError(errno.EAGAIN, f"the process that unpacks it {process.words}")
            _log.warning("unpacker_lost", job=row.job, reason=process.words)
        reason = f"the process that unpacked it {process.words}, {_TRIES} times; unpack it yourself and drop the files"
        raise DropRefused(reason, code="unpack_crash")

    def _require_room(self, row: JobRow) -> None:
        needed_bytes = self._needed_bytes.get(row.key, 0)
        free_bytes = self._work.layout.free().bytes - self._keep_free_bytes
        if free_bytes < needed_bytes:
            reason = f"unpacking needs at least {needed_bytes} bytes, and the disk can spare {free_bytes}"
            raise OSError(errno.ENOSPC, reason)

    @property
    def _keep_free_bytes(self) -> int:
        """More than what holds up everybody's work when it is not free."""
        return 2 * self._work.settings.value.disk.min_free_bytes

    def _order(self, row: JobRow) -> Order:
        inbox = self._work.settings.value.inbox
        return Order(
            directory=str(self._work.layout.job_dir(row.job)),
            name=row.label,
            max_bytes=inbox.max_unpacked_bytes,
            keep_free_bytes=self._keep_free_bytes,
            timeout_s=inbox.unpack_timeout_s,
            memory_bytes=inbox.unpack_memory_bytes,
        )

    def _keep(self, row: JobRow, found: Unpacked) -> None:
        directory = self._work.layout.job_dir(row.job)
        crash_points.reach("unpack.after_write")
        sync_filesystem(directory)
        crash_points.reach("unpack.after_flush")
        conclude(directory, found)
        crash_points.reach("unpack.after_conclude")
