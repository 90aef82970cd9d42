"""What hinders from outside: dispatch is held, drops wait in the inbox, and both go on by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from settings_support import in_force
from task_support import Failures

from obatchd.intake.intake import Intake
from obatchd.intake.limits import OwnerLimits
from obatchd.jobs.model import JobIds
from obatchd.jobs.store import Store
from obatchd.live.troubles import INTAKE, Troubles
from obatchd.settings.settings import Settings
from obatchd.settings.tables.disk import DiskSettings
from obatchd.spool.layout import FreeSpace, Layout

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
    holds, alarms, disk = set[str](), list[str](), Disk()
    troubles = Troubles(holds.add, holds.discard)
    troubles.announce = lambda kind, facts: alarms.append(kind)
    layout: Any = disk

    async def look(seen: FreeSpace | OSError) -> tuple[bool, bool]:
        disk.left = seen
        await troubles.look_at_disk(layout, LIMITS)
        return bool(holds), troubles.may_claim

    assert await look(FreeSpace(1000, 100)) == (False, True)
    assert await look(left) == (True, False)
    assert words in troubles.of_all["disk"]
    assert await look(better) == (True, False), "a little more than too little is not enough"
    assert await look(FreeSpace(1101, 111)) == (False, True)
    assert alarms == ["disk_low"], "once, however often it is looked at"


async def test_a_file_system_without_a_count_of_inodes_is_not_full() -> None:
    disk, troubles = Disk(), Troubles(lambda kind: None, lambda kind: None)
    disk.left = FreeSpace(5000, -1)
    layout: Any = disk
    await troubles.look_at_disk(layout, LIMITS)
    assert troubles.of_all == {}


async def until(found: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not found():
            await asyncio.sleep(0.01)


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[tuple[Intake, Troubles, Store]]:
    settings = Settings.model_validate({"inbox": {"settle_s": 0.05, "rescan_s": 0.05}})
    layout = Layout.open(tmp_path / "spool")
    store, defects = Store(layout.work, in_force()), Failures()
    troubles = Troubles(lambda kind: None, lambda kind: made.wake())
    made = Intake(
        layout, store, JobIds(), lambda: settings, owner=defects,
        may_claim=lambda: troubles.may_claim, limits=lambda: OwnerLimits(settings.limits, []),
        on_job=lambda row, reading: None, on_chunk=lambda key, chunk: None, on_refused=lambda row, refusal: None,
        on_trouble=lambda reason: troubles.say(INTAKE, reason), on_job_trouble=lambda key, reason: None,
    )  # fmt: skip
    made.start()
    yield made, troubles, store
    await made.stop()
    store.close()
    assert defects == []


async def test_drops_wait_in_the_inbox_while_there_is_trouble(
    tmp_path: Path, intake: tuple[Intake, Troubles, Store]
) -> None:
    made, troubles, store = intake
    troubles.say("disk", "it is full")
    drop = tmp_path / "spool" / "inbox" / "drop.jsonl"
    drop.write_text('{"prompt": "why?"}\n')
    await until(lambda: made.report.ready)
    first = made.report
    await until(lambda: made.report is not first)
    assert drop.exists() and store.state.jobs() == set()
    troubles.say("disk", "")
    await until(lambda: len(store.state.jobs()) == 1)
    assert not drop.exists()
