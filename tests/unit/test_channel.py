"""Dispatch over a channel that drops, doubles and delays messages: each request is answered once, and nothing hangs.

Of :mod:`obatchd.simulator.far.channel`, and of what dispatch promises whatever it is given. The seed is in the name of
the test; that of ``any`` is printed, and tried again with ``OBATCHD_TEST_SEED``.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from dispatch_support import SMALL, FakeWorker, FakeWorkers, Port, Rig, settle

from obatchd.dispatch.interactive.lease import Lease, Question
from obatchd.errors import ConfigError
from obatchd.simulator.far.channel import FarWorkers, Trouble, far

SEEDS = [*map(str, range(1, 13)), "any"]
CALM = Trouble(1, drop=0.0, double=0.0, delay=0.0)
QUESTION = Question(b'{"prompt": "why?", "model": "small", "context_length": 4096}')


def chosen(seed: str) -> int:
    if seed == "any":
        seed = os.environ.get("OBATCHD_TEST_SEED") or str(random.SystemRandom().randrange(10**6))
        print(f"OBATCHD_TEST_SEED={seed}")
    return int(seed)


@asynccontextmanager
async def far_away(trouble: Trouble, servers: int = 1, **settings: object) -> AsyncIterator[Rig]:
    rig = Rig(*(Port(f"gpu{number}", 2, SMALL) for number in range(servers)), **settings)
    rig.workers = FarWorkers(FakeWorkers(), trouble)
    await rig.start()
    try:
        yield rig
    finally:
        await rig.dispatcher.stop()


def live(rig: Rig) -> list[FakeWorker]:
    """Workers that run, in an order that chance does not change."""
    latest = {worker.name: worker for worker in FakeWorker.made}
    return [worker for worker in latest.values() if not worker.dead.is_set()]


async def until_answered(rig: Rig, requests: int, leases: list[Lease], chance: random.Random) -> None:
    """Workers answer in any order, some begin first, until everything is answered; fails where something hangs."""
    async with asyncio.timeout(60):
        while len(rig.finished) < requests or any(lease.ended is None for lease in leases):
            for worker in live(rig):
                worker.answers_pings = True
                for key in chance.sample(list(worker.held), min(2, len(worker.held))):
                    if chance.random() < 0.5 and key not in worker.started:
                        worker.begin(key)
                    elif chance.random() < 0.7 and not worker.dead.is_set():
                        worker.end(key)
            await asyncio.sleep(0.0005)


@pytest.mark.parametrize("seed", SEEDS)
async def test_each_request_is_answered_once_whatever_the_channel_does(seed: str) -> None:
    number = chosen(seed)
    trouble = Trouble(number, drop=0.03, double=0.03, delay=0.3, longest_delay_s=0.004)
    async with far_away(trouble, servers=4, max_attempts=1, interactive_slots=0) as rig:
        for job in (1, 2, 3):
            await rig.add(job, 60, owner=job)
        leases = [rig.dispatcher.desk.ask(QUESTION, 1000) for _ in range(10)]
        await until_answered(rig, 180, leases, random.Random(number))
        keys = [(finished.job, finished.line) for finished in rig.finished]
        assert sorted(keys) == [(job, line) for job in (1, 2, 3) for line in range(1, 61)]
        assert all(finished.succeeded for finished in rig.finished)  # one attempt is enough: no loss counts one
        assert all(lease.ended is not None and lease.ended.succeeded for lease in leases)
        assert len(FakeWorker.made) > 4  # connections were lost
        assert rig.dispatcher.suspicion == {}
        assert not rig.dispatcher.busy()


@pytest.mark.parametrize("seed", SEEDS[-3:])
async def test_servers_come_and_go_over_it(seed: str) -> None:
    number = chosen(seed)
    trouble, chance = Trouble(number, drop=0.02, double=0.02, delay=0.3, longest_delay_s=0.004), random.Random(number)
    async with far_away(trouble, servers=2, max_attempts=1) as rig:
        await rig.add(1, 150)
        answering = asyncio.create_task(until_answered(rig, 150, [], chance))
        for other in range(2, 12):
            port = Port(f"gpu{other}", 2, SMALL)
            rig.dispatcher.attach(port, rig.workers)
            await asyncio.sleep(0.005)
            await rig.dispatcher.detach(port)
        await answering
        assert sorted(rig.lines()) == [(line, True) for line in range(1, 151)]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Trouble(1, drop=1.0, double=0.0, spared=3), "is missing"),
        (Trouble(1, drop=0.0, double=1.0, delay=0.0, spared=3), "came twice"),
        (Trouble(3, drop=0.5, double=0.0, delay=0.0, spared=3), "came after"),
    ],
)
async def test_a_gap_or_a_double_is_the_end_of_its_connection(
    trouble: Trouble, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with far_away(trouble) as rig:
        first = rig.worker("gpu0")
        await rig.add(1, 2)
        async with asyncio.timeout(10):
            while words not in caplog.text:
                for _ in range(4):
                    rig.dispatcher.job_cancelled(1)  # anything that is said
                await asyncio.sleep(0.01)
        assert first.killed
        assert "is lost with its connection: message" in caplog.text
        assert rig.link("gpu0").faults.keys() <= {("nobody", "host_lost")}


async def test_without_trouble_it_is_as_if_it_were_not_there() -> None:
    async with far_away(CALM) as rig:
        await rig.add(1, 3)
        worker = rig.worker("gpu0")
        for line in (1, 2, 3):
            worker.begin((1, line))
            worker.end((1, line))
        await settle()
        assert rig.lines() == [(1, True), (2, True), (3, True)]
        assert len(FakeWorker.made) == 1
        link = rig.link("gpu0")
        assert link.worker is not None
        assert (link.worker.pid, link.worker.is_full) == (worker.pid, False)
        worker.is_full = True
        assert link.worker.is_full


async def test_one_seed_is_one_course_of_events() -> None:
    ends: list[list[str]] = []
    for _ in range(2):
        async with far_away(Trouble(5, drop=0.2, double=0.2, delay=0.0, spared=2)) as rig:
            await rig.add(1, 40)
            for _ in range(200):
                if not (worker := rig.worker("gpu0")).dead.is_set() and worker.held:
                    worker.end(next(iter(worker.held)))
                await settle()
            ends.append([reason for _, reason in rig.hindered] + [str(len(FakeWorker.made))])
    assert ends[0] == ends[1]
    assert int(ends[0][-1]) > 2


def test_trouble_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="OBATCHD_SIMULATOR_CHANNEL"):
        far(FakeWorkers(), '{"seed": 1, "lose": 0.5}')
    assert isinstance(far(FakeWorkers(), '{"seed": 1}'), FarWorkers)
