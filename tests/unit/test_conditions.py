"""What hinders from outside: dispatch is held, drops wait in the inbox, and both go on by themselves.

Of :mod:`obatchd.live.conditions`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from work_support import Alarms, make_work

from obatchd.dispatch.holds import Holds
from obatchd.intake.indexing import Chunk
from obatchd.intake.intake import Intake
from obatchd.jobs.store import JobRow
from obatchd.live.conditions import Conditions
from obatchd.live.work import Work
from obatchd.settings.tables.spool import DiskSettings
from obatchd.spool.layout import FreeSpace

LIMITS = DiskSettings(min_free_bytes=1000, min_free_inodes=100)


class Disk:
    """A file system of which the test says what is left. All directories of a spool are on one."""

    root = Path("/spool")

    def __init__(self) -> None:
        self.left: FreeSpace | OSError = FreeSpace(5000, 500)

    def free(self, *, doubtful: bool = False) -> FreeSpace:
        if isinstance(self.left, OSError):
            raise self.left
        return self.left


@pytest.mark.parametrize(
    ("left", "better", "words"),
    [
        (FreeSpace(999, 500), FreeSpace(1099, 500), "min_free_bytes"),
        (FreeSpace(5000, 99), FreeSpace(5000, 109), "99 inodes free"),
        (FreeSpace(5000, 500, read_only=True), FreeSpace(999, 500), "read-only"),
        (OSError(5, "Input/output error"), FreeSpace(5000, 109), "Input/output error"),
    ],
    ids=["bytes", "inodes", "read_only", "silent"],
)
async def test_a_disk_without_room_holds_dispatch_and_claims_until_there_is_some(
    left: FreeSpace | OSError, better: FreeSpace, words: str
) -> None:
    holds, alarms, disk = Holds(), Alarms(), Disk()
    conditions = Conditions(holds, alarms)
    layout: Any = disk

    async def look(seen: FreeSpace | OSError) -> tuple[bool, bool]:
        disk.left = seen
        await conditions.look_at_disk(layout, LIMITS)
        return bool(holds.reasons), conditions.may_claim

    assert await look(FreeSpace(1000, 100)) == (False, True)
    assert await look(left) == (True, False)
    assert words in conditions.of_all["disk"]
    assert await look(better) == (True, False), "a little more than too little is not enough"
    assert await look(FreeSpace(1101, 111)) == (False, True)
    assert alarms == ["disk_low"], "once, however often it is looked at"


async def test_a_file_system_without_a_count_of_inodes_is_not_full() -> None:
    disk, conditions = Disk(), Conditions(Holds(), Alarms())
    disk.left = FreeSpace(5000, -1)
    layout: Any = disk
    await conditions.look_at_disk(layout, LIMITS)
    assert conditions.of_all == {}


async def until(found: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not found():
            await asyncio.sleep(0.01)


class Jobs(list[str]):
    """The jobs that were taken. Implements :class:`obatchd.intake.intake.IntakeEvents`."""

    def accepted(self, row: JobRow) -> None:
        self.append(row.job)

    def indexed(self, job: int, chunk: Chunk) -> None:
        pass

    def refused(self, row: JobRow) -> None:
        pass


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[tuple[Intake, Work]]:
    work = make_work(tmp_path, inbox={"settle_s": 0.05, "rescan_s": 0.05})
    made = Intake(work, Jobs())
    made.start()
    yield made, work
    await made.stop()
    work.store.close()
    assert work.owner == []


async def test_drops_wait_in_the_inbox_while_there_is_trouble(tmp_path: Path, intake: tuple[Intake, Work]) -> None:
    made, work = intake
    work.conditions.report("disk", "it is full")
    drop = tmp_path / "spool" / "inbox" / "drop.jsonl"
    drop.write_text('{"prompt": "why?"}\n')
    await until(lambda: made.report.ready)
    first = made.report
    await until(lambda: made.report is not first)
    assert drop.exists() and work.store.state.jobs() == set()
    work.conditions.report("disk", "")
    await until(lambda: len(work.store.state.jobs()) == 1)
    assert not drop.exists()
