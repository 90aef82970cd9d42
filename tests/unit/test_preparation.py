from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from work_support import NoFeeder, Outcomes, add_live, make_work

from obatchd.intake.preparation import Preparation
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Intent, Profile
from obatchd.jobs.queue import JobQueue


async def test_requests_that_come_while_a_dead_preparer_is_not_noticed_yet_end_nothing(tmp_path: Path) -> None:
    work = make_work(tmp_path, context={"enabled": True})
    work.store.state.accept([Intent("job", b"a.jsonl", 1, 1, 1, 10, "file", 0.0)])
    add_live(work, *work.store.state.find(["job"]))
    preparation = Preparation(work, Outcomes())
    queue = JobQueue(NoFeeder())
    lane = Lane(1, 1, 1000, Profile("tiny", 4096), "normal", 0.0)

    def give(line: int) -> None:
        asked = Pending(line, b'{"prompt": "x", "urls": ["http://192.0.2.1/"]}')
        assert preparation.ready(lane, [asked], queue) == []

    give(1)
    async with asyncio.timeout(30):
        while preparation._preparer is None:
            await asyncio.sleep(0.01)
    os.kill(preparation._preparer.pid, signal.SIGKILL)
    for line in range(2, 10):
        give(line)
        await asyncio.sleep(0)
    preparation.settings_changed()
    await preparation.stop()
    work.store.close()
    assert work.owner == []
