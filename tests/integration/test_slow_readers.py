"""Children that do not read what they are sent: what waits for them is bounded, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

from child_support import ANYTHING, read_when_told
from dispatch_support import SMALL, Port, Rig, settle
from fleet_support import wait_for

from obatchd.child import Child, End, Keeper
from obatchd.dispatch.workers import WorkerLife, WorkerPlace
from obatchd.frames import FULL_BYTES

MIB = 2**20


class Listening:
    """A parent that watches how full its child is."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.said: list[int] = []
        self.drains = 0

    def started(self, child: Child) -> None:
        self.children.append(child)
        child.listen(self)

    def heard(self, message: int) -> None:
        self.said.append(message)

    def ended(self, end: End) -> None:
        return None

    def drained(self) -> None:
        self.drains += 1


async def test_a_channel_says_when_it_is_full_and_when_there_is_room_again(tmp_path: Path) -> None:
    flag, parent = tmp_path / "read", Listening()
    task = asyncio.create_task(Keeper("slow", partial(read_when_told, str(flag)), ANYTHING, parent).run())
    try:
        await wait_for(lambda: parent.children)
        child, sent = parent.children[0], 0
        while not child.is_full:
            assert child.send(b"x" * MIB)
            sent += 1
            assert sent <= 12  # 8 MiB, and what the kernel and one read ahead take
            await asyncio.sleep(0)
        assert sent > FULL_BYTES // MIB - 1
        assert parent.drains == 0
        flag.touch()
        await wait_for(lambda: parent.drains)
        assert not child.is_full
        await wait_for(lambda: len(parent.said) == sent)
        assert set(parent.said) == {MIB}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_end_of_a_child_that_is_full_is_its_end(tmp_path: Path) -> None:
    parent = Listening()
    task = asyncio.create_task(Keeper("slow", partial(read_when_told, str(tmp_path / "no")), ANYTHING, parent).run())
    await wait_for(lambda: parent.children)
    child = parent.children[0]
    while not child.is_full:
        child.send(b"x" * MIB)
        await asyncio.sleep(0)
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await task
    assert parent.drains == 0
    assert not child.send("hello")


class Slow:
    """Makes workers that read nothing until there is a file. Implements WorkerMaker."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def keep(self, server_id: str, place: WorkerPlace) -> WorkerLife:
        return Keeper(f"worker-{server_id}", partial(read_when_told, str(self._flag)), ANYTHING, place)


async def test_a_worker_that_does_not_read_gets_no_more_than_its_channel_takes(tmp_path: Path) -> None:
    """Before, whatever its slots allowed: 64 prompts of 20 MB each were kept twice in memory."""
    rig = Rig(Port("gpu0", 64, SMALL))
    rig.workers = Slow(tmp_path / "no")
    await rig.start()
    try:
        await rig.add(1, 60, raw=b"x" * 2 * MIB)
        for _ in range(50):
            rig.dispatcher.wake()
            await settle()
        link = rig.link("gpu0")
        assert link.worker is not None
        assert link.worker.is_full
        held_bytes = sum(len(offered.taken.pending.raw) for offered in link.offers.values())
        assert FULL_BYTES <= held_bytes <= FULL_BYTES + 6 * MIB
        first = link.worker.pid
        link.worker.kill()  # as the watch over workers that say nothing does after 30 s
        await wait_for(lambda: link.worker is not None and link.worker.pid != first and link.offers)
        assert {offered.taken.pending.attempt for offered in link.offers.values()} == {1}
    finally:
        await rig.dispatcher.stop()
