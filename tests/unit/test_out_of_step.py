"""Messages between the main process and a worker that get lost: the numbers in ``progress`` show it, whatever the time.

Of :meth:`obatchd.dispatch.link.Link.differs` and :mod:`obatchd.dispatch.keeper`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from dispatch_support import FakeWorker, Make, Rig, rigs, settle

from obatchd.dispatch import keeper as keeper_module
from obatchd.dispatch import protocol
from obatchd.dispatch.protocol import Ping, Progress


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with rigs(slots=2) as make:
        yield make


async def until(found: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not found():
            await asyncio.sleep(0.001)


def progress(worker: FakeWorker, **changes: int) -> Progress:
    """What a worker that got everything says of itself."""
    told = {"held": len(worker.held), "got": worker.got, "offered": 0, "got_then": 0} | changes
    return Progress(1, 1, 0.0, told["held"], told["got"], told["offered"], told["got_then"])


async def work_off(rig: Rig) -> None:
    while rig.worker("gpu0").held:
        rig.worker("gpu0").end(next(iter(rig.worker("gpu0").held)))
        await settle()


async def test_a_lost_offer_is_found_though_its_worker_answers_every_ping(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before, ten prompts waited for ever."""
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.001)
    rig = await make()
    worker = rig.worker("gpu0")
    worker.answers_pings = True
    worker.losing = True
    await rig.add(1, 3)
    worker.losing = False
    assert len(rig.link("gpu0").offers) == 3
    assert worker.held == {}
    await until(lambda: rig.worker("gpu0") is not worker)
    assert "event=worker_out_of_step server=gpu0 pid=4711 offered=3 got=0 held=0 missed=3 expected=3" in caplog.text
    await settle()
    assert {item.attempt for item in rig.worker("gpu0").held.values()} == {1}
    await work_off(rig)
    assert sorted(rig.lines()) == [(1, True), (2, True), (3, True)]


async def test_an_end_that_is_lost_on_its_way_here_is_found(make: Make) -> None:
    rig = await make()
    worker = rig.worker("gpu0")
    await rig.add(1, 3)
    worker.held.pop((1, 2))  # and nobody hears of it
    worker.tell(progress(worker))
    await settle()
    assert worker.killed
    await work_off(rig)
    assert sorted(rig.lines()) == [(1, True), (2, True), (3, True)]


async def test_an_offer_that_comes_twice_is_found(make: Make) -> None:
    rig = await make()
    worker = rig.worker("gpu0")
    await rig.add(1, 3)
    worker.send(next(message for message in worker.sent if isinstance(message, protocol.Offer)))
    worker.tell(progress(worker))
    assert worker.killed


async def test_offers_that_are_under_way_are_no_difference(make: Make) -> None:
    rig = await make()
    worker = rig.worker("gpu0")
    await rig.add(1, 2)
    before = progress(worker, offered=2, got_then=2)
    worker.losing = True  # for now: they come later than the word that is under way in the other direction
    await rig.add(1, 1)
    worker.tell(before)
    assert not worker.killed
    worker.losing = False
    assert worker.got == 2
    worker.tell(progress(worker, offered=3, got_then=2))  # a ping overtook them: they are not under way
    assert worker.killed


async def test_a_worker_that_works_is_never_taken_for_one_that_lost_something(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offers, ends, recalls and cancelled requests in any order, with a look after each of them."""
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.0)
    rig = await make(servers=2)
    for name in ("gpu0", "gpu1"):
        rig.worker(name).answers_pings = True
    first = list(FakeWorker.made)
    for job in range(1, 6):
        await rig.add(job, 12)
        if job == 3:
            rig.dispatcher.job_cancelled(3)
            rig.queue.cancel_job(3)
        if job == 4:
            rig.dispatcher.holds.hold("disk")
            await settle()
            rig.dispatcher.holds.release("disk")
        for _ in range(60):
            for worker in first:
                if worker.held:
                    key = next(iter(worker.held))
                    worker.begin(key)
                    worker.end(key)
            await settle()
    assert [worker.killed for worker in first] == [False, False]
    answered = {(finished.job, finished.line) for finished in rig.finished}
    assert len(answered) == len(rig.finished)
    assert {(job, line) for job in (1, 2, 4, 5) for line in range(1, 13)} <= answered
    assert all(any(isinstance(message, Ping) and message.offered for message in worker.sent) for worker in first)


async def test_one_that_does_not_count_is_left_alone(make: Make) -> None:
    rig = await make()
    await rig.add(1, 3)
    rig.worker("gpu0").tell(Progress(1, 1, 0.0))
    assert not rig.worker("gpu0").killed
