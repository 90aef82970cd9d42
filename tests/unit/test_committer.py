"""Results become durable in groups, are told of once, and are never counted for a request that ended otherwise."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from work_support import add_live, make_work

from obatchd.delivery.committer import Committer
from obatchd.dispatch.events import Failed, Finished
from obatchd.jobs.model import Entry, Intent, Outcome
from obatchd.jobs.store import CostRow, IndexBatch, JobRow
from obatchd.live import conditions
from obatchd.live.job import CANCELLED


class Rig:
    """A committer on a real store with one indexed job."""

    def __init__(self, directory: Path) -> None:
        self.work = make_work(directory, dispatch={"commit_interval_ms": 1})
        self.store = self.work.store
        self.jobs = [self.accept("a"), self.accept("b", size=50 * 1024**2)]
        for job in self.jobs:
            add_live(self.work, job)
        self.told: list[Finished] = []
        self.batches = 0
        self.hindered: list[str] = []
        self.running: list[Failed] = []
        self.sums: list[tuple[str, CostRow]] = []
        self.committer = Committer(self.work)

    def accept(self, name: str, size: int = 10) -> JobRow:
        intents = [Intent(name, b"drop.jsonl", 1000, 1, 2, size, "file", 0.0)]
        self.store.state.add_intents(intents)
        self.store.state.accept(intents)
        [job] = self.store.state.find([name])
        self.store.write_index([IndexBatch(job, [Entry(line, 0, 1, 0) for line in range(1, 11)], True)])
        return job

    def unrecorded_starts(self) -> list[Failed]:
        running, self.running = self.running, []
        return running

    def unkept(self) -> list[tuple[str, CostRow]]:
        sums, self.sums = self.sums, []
        return sums

    def committed(self, batch: Sequence[Finished]) -> None:
        self.told += batch
        self.batches += 1

    def finished(self, line: int, job: int = 0, *, succeeded: bool = True) -> Finished:
        return Finished(self.jobs[job].key, line, 0, succeeded, b'{"line":%d}' % line, 1.0)

    def stored(self, job: int = 0) -> list[int]:
        return [line for line, _, _ in self.store.results(self.jobs[job])]


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(conditions, "RETRY_S", 0.001)
    rig = Rig(tmp_path)
    rig.committer.start(rig, rig, rig)
    yield rig
    await rig.committer.stop()
    rig.store.close()
    assert rig.work.owner == []


async def test_what_was_given_is_durable_when_it_has_settled(rig: Rig) -> None:
    for line in (1, 2, 3):
        rig.committer.finish(rig.finished(line, succeeded=line != 2))
    await rig.committer.settle(5)
    assert rig.stored() == [1, 2, 3]
    assert rig.store.of(rig.jobs[0]).tallies(rig.jobs[0].key) == {"succeeded": 2, "failed": 1}
    assert [finished.line for finished in rig.told] == [1, 2, 3]
    assert rig.committer.backlog == 0


async def test_settling_waits_for_what_was_given_and_not_for_what_still_comes(rig: Rig) -> None:
    stop = asyncio.Event()

    async def never_idle() -> None:
        line = 1
        while not stop.is_set():
            rig.committer.finish(rig.finished(line := line % 10 + 1))
            await asyncio.sleep(0)

    busy = asyncio.create_task(never_idle())
    await asyncio.sleep(0.01)
    began_s = time.monotonic()
    await rig.committer.settle(5)
    assert time.monotonic() - began_s < 2  # it gives up after 5 s
    stop.set()
    await busy


async def test_attempts_that_run_and_that_failed_ride_along(rig: Rig) -> None:
    key = rig.jobs[0].key
    rig.running = [Failed(key, 4, 1, "gpu0", 1.0, "")]
    rig.committer.fail(Failed(key, 5, 1, "gpu1", 1.0, "crash"))
    await rig.committer.settle(5)
    attempts = rig.store.of(rig.jobs[0]).attempts(key)
    assert [(attempt.line, attempt.server, attempt.fault) for attempt in attempts] == [
        (4, "gpu0", ""),
        (5, "gpu1", "crash"),
    ]


async def test_a_request_that_was_ended_meanwhile_is_not_counted_twice(rig: Rig) -> None:
    job = rig.jobs[0]
    rig.store.of(job).end_pending(job.key, None, Outcome.CANCELLED, "cancelled", "asked", 3)
    for line in (2, 3, 4):
        rig.committer.finish(rig.finished(line))
    await rig.committer.settle(5)
    assert [finished.line for finished in rig.told] == [4]
    assert rig.store.of(job).tallies(job.key) == {"cancelled": 3, "succeeded": 1}


async def test_a_disk_that_refuses_half_of_a_commit_loses_and_doubles_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = rig.store.of(rig.jobs[1])
    real, failures = large.write_results, [1, 2]

    def refuse(*arguments: Any) -> Any:
        if failures:
            failures.pop()
            if "store" in rig.work.conditions.of_all:
                rig.hindered.append(rig.work.conditions.of_all["store"])
            raise sqlite3.OperationalError("database or disk is full")
        return real(*arguments)

    monkeypatch.setattr(large, "write_results", refuse)
    rig.committer.finish(rig.finished(1, 0))
    rig.committer.finish(rig.finished(1, 1))
    await rig.committer.settle(5)
    assert sorted(finished.job for finished in rig.told) == [rig.jobs[0].key, rig.jobs[1].key]
    assert (rig.stored(0), rig.stored(1)) == ([1], [1])
    assert rig.store.of(rig.jobs[0]).tallies(rig.jobs[0].key) == {"succeeded": 1}
    assert rig.hindered[0].startswith("results cannot be written")
    assert rig.work.conditions.of_all == {} and not rig.work.holds.reasons


async def test_what_comes_during_a_commit_goes_together_into_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go, real = threading.Event(), threading.Event(), rig.store.write_results

    def slow(*arguments: Any) -> Any:
        began.set()
        assert go.wait(5)
        return real(*arguments)

    monkeypatch.setattr(rig.store, "write_results", slow)
    rig.committer.finish(rig.finished(1))
    assert await asyncio.to_thread(began.wait, 5)
    assert rig.committer.backlog == 1, "what a commit has in hand is only in memory, too"
    for line in range(2, 11):
        rig.committer.finish(rig.finished(line))
    go.set()
    await rig.committer.settle(5)
    assert rig.stored() == list(range(1, 11))
    assert rig.batches <= 3


async def test_results_of_a_job_that_is_gone_are_dropped(rig: Rig) -> None:
    rig.committer.finish(Finished(999, 1, 0, True, b"{}", 1.0))
    rig.committer.finish(rig.finished(1))
    await rig.committer.settle(5)
    assert rig.stored() == [1]


async def test_before_the_first_commit_can_come_nobody_waits_for_one(rig: Rig) -> None:
    await asyncio.wait_for(Committer(rig.work).settle(60), 5)


async def test_a_disk_that_takes_nothing_does_not_hold_up_the_end_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go, real = threading.Event(), rig.store.write_results

    def slow(*arguments: Any) -> Any:
        assert go.wait(5)
        return real(*arguments)

    monkeypatch.setattr(rig.store, "write_results", slow)
    rig.committer.finish(rig.finished(1))
    await rig.committer.settle(0.02)
    assert "results_not_committed results=1" in caplog.text
    go.set()
    await rig.committer.settle(5)
    assert rig.stored() == [1]


async def test_results_and_attempts_of_a_job_that_ends_meanwhile_are_dropped_with_it(rig: Rig) -> None:
    gone, ending = rig.work.jobs[rig.jobs[0].key], rig.work.jobs[rig.jobs[1].key]
    rig.committer.finish(rig.finished(1))
    rig.committer.fail(Failed(gone.key, 5, 1, "gpu1", 1.0, "crash"))
    del rig.work.jobs[gone.key]
    ending.ending = CANCELLED
    rig.committer.finish(rig.finished(1, job=1))
    await rig.committer.settle(5)
    assert rig.stored(0) == rig.stored(1) == []
    assert rig.store.of(gone.row).attempts(gone.key) == []
