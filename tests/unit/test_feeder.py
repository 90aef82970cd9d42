"""Requests come from store and input into their lane, each once, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from settings_support import DEFAULTS
from work_support import Outcomes, add_live, make_work

from obatchd.dispatch.events import INTERRUPTED
from obatchd.dispatch.trials import Suspicion
from obatchd.intake.feeder import Feeder, histories, read_requests
from obatchd.intake.preparation import Preparation
from obatchd.jobs.lane import Lane
from obatchd.jobs.model import Entry, Intent, Outcome, Profile
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import AttemptRow, ResultRow
from obatchd.live import conditions

SMALL = Profile("small", 4096)


class Rig:
    """A feeder with a real segment and input of one job."""

    def __init__(self, directory: Path) -> None:
        self.work = make_work(directory)
        self.work.store.state.accept([Intent("job", b"a.jsonl", 1, 1, 1, 10, "file", 0.0)])
        [row] = self.work.store.state.find(["job"])
        add_live(self.work, row)
        self.input = self.work.input_of(row)
        self.input.parent.mkdir()
        self.input.write_bytes(b"")
        self.segment = self.work.store.of(row)
        self.finished = Outcomes()
        self.woken = asyncio.Event()
        preparation = Preparation(self.work, self.finished)
        self.feeder = Feeder(self.work, preparation, self.finished)
        self.queue = JobQueue(self.feeder)
        self.queue.listen(self)
        self.lane = self.queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 0.0))
        self.lines = 0

    def queue_filled(self) -> None:
        self.woken.set()

    def job_cancelled(self, job: int) -> None:
        raise AssertionError("nothing is cancelled here")

    def index(self, count: int, pad_bytes: int = 0) -> int:
        """``count`` more requests are in input and store; the queue is not told yet."""
        entries = []
        with open(self.input, "ab") as file:
            for line in range(self.lines + 1, self.lines + count + 1):
                raw = b'{"prompt":"%d"}' % line + b" " * pad_bytes
                entries.append(Entry(line, file.tell(), len(raw), zlib.crc32(raw)))
                file.write(raw + b"\n")
        self.segment.write_index([(1, "job", DEFAULTS, entries, False)])
        self.lines += count
        return count

    async def take_all(self, expected: int) -> list[int]:
        """Lines in the order they are taken, until there are as many as expected."""
        taken: list[int] = []
        async with asyncio.timeout(10):
            while len(taken) < expected:
                self.woken.clear()
                got = self.queue.take(SMALL, 100)
                taken += [each.pending.line for each in got]
                if not got:
                    await self.woken.wait()
        return taken


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(conditions, "RETRY_S", 0.001)
    rig = Rig(tmp_path)
    yield rig
    await rig.feeder.stop()
    rig.work.store.close()
    assert rig.work.owner == []


async def test_every_request_comes_once_and_in_order(rig: Rig) -> None:
    rig.queue.extend(rig.lane, rig.index(5000))
    assert await rig.take_all(5000) == list(range(1, 5001))
    assert rig.queue.total() == 0


async def test_requests_indexed_during_a_reading_are_neither_lost_nor_doubled(rig: Rig) -> None:
    rig.queue.extend(rig.lane, rig.index(10))
    told, taken = 10, 0
    async with asyncio.timeout(10):
        while taken < 3010:
            late = rig.index(100) if rig.lines < 3010 else 0  # in the store, and the queue hears of it later
            got = rig.queue.take(SMALL, 70)
            assert [each.pending.line for each in got] == list(range(taken + 1, taken + 1 + len(got)))
            taken += len(got)
            await asyncio.sleep(0)
            if late or told < rig.lines:
                rig.queue.extend(rig.lane, min(100, rig.lines - told))
                told += min(100, rig.lines - told)
    while rig.queue.total():  # what the store had too early was counted twice: found out when nothing is left
        assert rig.queue.take(SMALL, 1) == []
        await asyncio.sleep(0.001)


async def test_bytes_that_changed_fail_and_the_others_run(rig: Rig) -> None:
    rig.queue.extend(rig.lane, rig.index(5))
    content = bytearray(rig.input.read_bytes())
    content[content.index(b'"3"') + 1] = ord("9")
    rig.input.write_bytes(content)
    assert await rig.take_all(4) == [1, 2, 4, 5]
    assert [(finished.line, finished.succeeded) for finished in rig.finished] == [(3, False)]
    assert b"input_changed" in rig.finished[0].record


async def test_an_input_that_cannot_be_read_is_tried_again(rig: Rig) -> None:
    rig.queue.extend(rig.lane, rig.index(3))
    away = rig.input.with_name("away")
    rig.input.rename(away)
    rig.queue.take(SMALL, 1)
    async with asyncio.timeout(5):
        while not rig.work.conditions.of_jobs:
            await asyncio.sleep(0.001)
    assert rig.work.conditions.of_jobs[1].startswith("its input cannot be read")
    away.rename(rig.input)
    assert await rig.take_all(3) == [1, 2, 3]
    assert rig.work.conditions.of_jobs == {}


async def test_earlier_attempts_are_remembered(rig: Rig) -> None:
    rig.index(2)
    known = histories([AttemptRow(1, 2, 1, "gpu0", 0.0, "crash", 2.0), AttemptRow(1, 2, 2, "gpu1", 0.0, "server", 3.0)])
    rig.feeder.remember(1, known)
    rig.queue.extend(rig.lane, 2)
    rig.queue.take(SMALL, 1)
    rig.woken.clear()
    async with asyncio.timeout(5):
        await rig.woken.wait()
    first, second = [taken.pending for taken in rig.queue.take(SMALL, 2)]
    assert (first.attempt, first.servers) == (1, [])
    assert (second.attempt, second.servers, second.spent_s) == (3, ["gpu0", "gpu1"], 5.0)


@pytest.mark.parametrize(
    ("faults", "attempts", "crashes", "alone"),
    [
        (["server"], 1, 0, 0),
        (["crash", "crash_alone"], 2, 2, 1),
        ([""], 0, 1, 0),  # the daemon was killed meanwhile: perhaps because of it
        ([INTERRUPTED], 0, 0, 0),  # the daemon was stopped in good order
    ],
)
def test_what_an_attempt_counts_for(faults: list[str], attempts: int, crashes: int, alone: int) -> None:
    rows = [AttemptRow(1, 5, number, "gpu0", 0.0, fault) for number, fault in enumerate(faults, 1)]
    history = histories(rows)[5]
    ended = sum(fault.startswith("crash") for fault in faults)
    assert (history.attempts, history.suspicion) == (attempts, Suspicion(crashes, alone, uncounted=ended))


async def test_what_an_earlier_run_left_behind_comes_last(rig: Rig) -> None:
    rig.index(10)
    rig.segment.write_results([ResultRow(1, n, 0, Outcome.SUCCEEDED, b"{}") for n in (1, 2, 4, 6, 7)], [])
    rig.queue.extend(rig.lane, 5)
    rig.lane.begin_after(rig.segment.last_finished(1, 0))
    assert await rig.take_all(3) == [8, 9, 10]
    rig.queue.extend(rig.lane, rig.index(2))
    assert sorted(await rig.take_all(4)) == [3, 5, 11, 12]
    assert rig.lane.waiting == 0


async def test_a_reading_takes_few_long_requests_and_never_none(rig: Rig) -> None:
    rig.index(3)
    rows = rig.segment.pending(1, 0, 0, 9)
    first = [request.line for request in read_requests(rig.input, rows, {}, byte_limit=1)[0]]
    both = [request.line for request in read_requests(rig.input, rows, {}, byte_limit=rows[0].length * 2)[0]]
    assert (first, both) == ([1], [1, 2])


async def test_long_requests_are_read_in_several_turns(rig: Rig) -> None:
    rig.queue.extend(rig.lane, rig.index(3, pad_bytes=3 * 1024**2))
    rig.queue.take(SMALL, 1)
    await until_read(rig)
    assert (len(rig.lane.window), rig.lane.unread) == (1, 2)
    assert await rig.take_all(3) == [1, 2, 3]


async def test_nothing_is_read_for_a_job_that_is_gone(rig: Rig) -> None:
    rig.queue.extend(rig.lane, rig.index(3))
    live = rig.work.jobs.pop(1)
    assert rig.queue.take(SMALL, 1) == []  # begins a reading that finds no job
    for _ in range(5):
        await asyncio.sleep(0.001)
    assert rig.lane.unread == 3 and not rig.lane.window
    rig.work.jobs[1] = live


async def test_attempts_of_a_job_that_is_over_are_forgotten(rig: Rig) -> None:
    rig.index(1)
    rig.feeder.remember(1, histories([AttemptRow(1, 1, 1, "gpu0", 0.0, "crash", 2.0)]))
    rig.feeder.forget(1)
    rig.feeder.forget(2)
    rig.feeder.remember(1, {})
    rig.queue.extend(rig.lane, 1)
    rig.queue.take(SMALL, 1)
    await until_read(rig)
    assert [taken.pending.attempt for taken in rig.queue.take(SMALL, 1)] == [1]


async def until_read(rig: Rig) -> None:
    async with asyncio.timeout(5):
        while rig.lane.fetching:
            await asyncio.sleep(0.001)
