from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path

from task_support import Failures

from obatchd.dispatch.pool import forkserver_context
from obatchd.intake.preparation import Preparation
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Profile
from obatchd.settings.tables.context import ContextSettings


async def test_requests_that_come_while_a_dead_preparer_is_not_noticed_yet_end_nothing(tmp_path: Path) -> None:
    defects = Failures()
    preparation = Preparation(
        ContextSettings(enabled=True), forkserver_context(), tmp_path,
        input_of=lambda job: (None, False), on_finished=lambda finished: None, wake=lambda: None,
        owner=defects,
    )  # fmt: skip
    lane = Lane(1, 1, 1000, Profile("tiny", 4096), "normal", 0.0)

    def give(line: int) -> None:
        asked = Pending(line, b'{"prompt": "x", "urls": ["http://192.0.2.1/"]}')
        assert preparation.sift(lane, [asked]) == []

    give(1)
    async with asyncio.timeout(30):
        while preparation._writer is None:
            await asyncio.sleep(0.01)
    [process] = [child for child in multiprocessing.active_children() if child.name == "preparer"]
    process.kill()
    process.join(10)
    for line in range(2, 10):
        give(line)
        await asyncio.sleep(0)
    preparation.apply(ContextSettings(enabled=True))
    await preparation.stop()
    assert not defects
