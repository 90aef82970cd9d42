"""What a server has loaded, when it changes, and what happens to profiles that no server can have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from dispatch_support import LARGE, SMALL, FakeWorker, Port, Rig, settle

from obatchd.dispatch import switching
from obatchd.errors import ModelError, ServerError
from obatchd.jobs.model import Profile

THIRD = Profile("third", 4096)
Make = Callable[..., Awaitable[Rig]]


class Clock:
    """Monotonic time that the test moves; asyncio's own clock goes on."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()  # links have the real one, which is low on a host that was just started

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(switching, "time", clock)
    return clock


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> AsyncIterator[Make]:
    made: list[Rig] = []
    monkeypatch.setattr(switching, "_RETRY_S", 0.0)

    async def rig(*ports: Port, switch_after_s: float = 60.0) -> Rig:
        made.append(await Rig(*ports, switch_after_s=switch_after_s).start())
        return made[-1]

    yield rig
    for each in made:
        await each.dispatcher.stop()


async def answer(rig: Rig, took_s: float = 1.0) -> None:
    """Every server answers what it holds."""
    for worker in FakeWorker.made:
        for key in list(worker.held):
            worker.end(key, took_s=took_s)
    await settle()


async def look(rig: Rig) -> None:
    rig.dispatcher.wake()
    await settle()


async def busy_while_another_waits(rig: Rig, requests: int) -> None:
    """The server works for one owner, and so many requests of another owner wait for a profile of their own."""
    await rig.add(1, 1000, SMALL, owner=1)
    await answer(rig, 10.0)
    await rig.add(2, requests, LARGE, owner=2)
    await answer(rig, 10.0)
    rig.worker("gpu0").begin(*rig.worker("gpu0").held)


async def test_a_server_loads_what_waits(make: Make) -> None:
    gpu = Port("gpu0")
    rig = await make(gpu)
    await rig.add(1, 1)
    assert gpu.loads == [SMALL]
    assert rig.prepared == [("gpu0", "small")]
    assert list(rig.worker("gpu0").held) == [(1, 1)]


async def test_a_server_stays_with_its_profile_while_that_is_needed(make: Make, clock: Clock) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    rig = await make(gpu)
    await rig.add(1, 30)
    await rig.add(2, 10, LARGE)
    for _ in range(4):
        await answer(rig)
        clock.now_s += 10
        await look(rig)
    assert gpu.loads == []
    await answer(rig)
    while rig.queue.waiting(SMALL) or rig.dispatcher.busy():
        await answer(rig)
        if gpu.loads:
            break
    assert gpu.loads == [LARGE]


async def test_another_owner_gets_the_server_after_the_wait_and_not_before(make: Make, clock: Clock) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    rig = await make(gpu)
    await busy_while_another_waits(rig, 1000)
    clock.now_s += 59
    await look(rig)
    assert rig.link("gpu0").switching_to is None
    clock.now_s += 2
    await look(rig)
    assert rig.link("gpu0").switching_to == LARGE
    assert gpu.loads == []  # in flight ends first
    await answer(rig, 10.0)
    assert gpu.loads == [LARGE]
    assert all(key[0] == 2 for key in rig.worker("gpu0").held)


async def test_a_slow_load_makes_patient(make: Make, clock: Clock) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    gpu.load_s = 30.0
    rig = await make(gpu)
    await busy_while_another_waits(rig, 10)
    clock.now_s += 290
    await look(rig)
    assert rig.link("gpu0").switching_to is None
    clock.now_s += 20
    await look(rig)
    assert rig.link("gpu0").switching_to == LARGE


async def test_a_server_of_which_no_load_was_timed_waits_as_long_as_the_setting_says(make: Make, clock: Clock) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    gpu.load_s = None
    rig = await make(gpu, switch_after_s=2.0)
    await busy_while_another_waits(rig, 10)
    clock.now_s += 3
    await look(rig)
    assert rig.link("gpu0").switching_to == LARGE


async def test_two_owners_and_two_models_on_one_server_do_not_play_ping_pong(make: Make, clock: Clock) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    rig = await make(gpu)
    await rig.add(1, 5000, SMALL, owner=1)
    await rig.add(2, 5000, LARGE, owner=2)
    served = {1: 0, 2: 0}
    for _ in range(600):  # ten minutes
        clock.now_s += 1
        for key in list(rig.worker("gpu0").held):
            served[key[0]] += 1
        await answer(rig, 1.0)
    assert 4 <= len(gpu.loads) <= 10
    assert min(served.values()) > 0.3 * sum(served.values())


async def test_one_owner_with_two_models_switches_only_when_the_first_is_done(make: Make, clock: Clock) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    rig = await make(gpu)
    await rig.add(1, 200, SMALL)
    await rig.add(2, 200, LARGE)
    while rig.queue.waiting(SMALL):
        clock.now_s += 30
        await answer(rig)
        assert gpu.loads in ([], [LARGE])
        if gpu.loads:
            assert not rig.queue.waiting(SMALL)
    while rig.queue.total() or rig.dispatcher.busy():
        clock.now_s += 30
        await answer(rig)
    assert gpu.loads == [LARGE]
    assert len(rig.finished) == 400


async def test_a_second_server_helps_only_with_what_takes_longer_than_a_load(make: Make) -> None:
    busy, idle = Port("gpu0", loaded=SMALL), Port("gpu1", loaded=LARGE)
    idle.load_s = 20.0
    rig = await make(busy, idle)
    await rig.add(1, 20)
    assert idle.loads == []  # two slots and a second each: done before a load of 20 s would be
    await rig.add(2, 60)
    assert idle.loads == [SMALL]


async def test_two_models_on_two_servers_load_once_each(make: Make) -> None:
    first, second = Port("gpu0"), Port("gpu1")
    rig = await make(first, second)
    await rig.add(1, 2)
    await rig.add(2, 2, LARGE, owner=2)
    for _ in range(5):
        await answer(rig)
    assert sorted([*first.loads, *second.loads]) == sorted([SMALL, LARGE])
    assert len(rig.finished) == 4


async def test_a_server_works_on_while_another_model_is_pulled(make: Make, clock: Clock) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    rig = await make(gpu)
    rig.may_prepare.clear()
    await rig.add(1, 1, LARGE)
    assert rig.prepared == [("gpu0", "large")]
    await rig.add(2, 3)
    assert len(rig.worker("gpu0").held) == 3
    await answer(rig)
    assert len(rig.finished) == 3
    await rig.add(3, 1, THIRD)
    rig.may_prepare.set()
    await settle()
    await answer(rig)
    await answer(rig)
    await answer(rig)
    assert sorted(gpu.loads) == sorted([LARGE, THIRD])
    assert len(rig.finished) == 5


async def test_a_switch_of_a_server_that_failed_is_left_to_the_others(make: Make) -> None:
    first, second = Port("gpu0", loaded=SMALL), Port("gpu1", loaded=SMALL)
    rig = await make(first, second)
    second.is_ready = False
    await rig.add(1, 1)
    rig.worker("gpu0").begin((1, 1))
    rig.link("gpu0").switching_to = LARGE
    first.is_ready, second.is_ready = False, True
    await rig.add(2, 1, LARGE)
    assert second.loads == [LARGE]
    assert list(rig.worker("gpu1").held) == [(2, 1)]


async def test_a_profile_that_every_server_refuses_fails_once(make: Make) -> None:
    ports = Port("gpu0"), Port("gpu1")
    for port in ports:
        port.refuse[LARGE] = ModelError("too large", code="does_not_fit")
    rig = await make(*ports)
    await rig.add(1, 3, LARGE)
    await look(rig)
    assert rig.unservable == [(LARGE, "does_not_fit")]
    assert [len(port.loads) for port in ports] == [1, 1]
    await rig.add(2, 1)
    assert [len(link.offers) for link in rig.dispatcher.links.values()].count(1) == 1


async def test_a_missing_model_fails_without_emptying_a_server(make: Make) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    rig = await make(gpu)
    rig.missing["large"] = ModelError("there is none", code="model_not_found")
    await rig.add(1, 1, LARGE)
    await look(rig)
    assert rig.unservable == [(LARGE, "model_not_found")]
    assert gpu.loaded == SMALL


async def test_a_server_out_of_use_is_not_waited_for_and_one_that_restarts_is(make: Make) -> None:
    small, large = Port("gpu0"), Port("gpu1")
    small.refuse[LARGE] = ModelError("too large", code="does_not_fit")
    large.is_ready = False
    rig = await make(small, large)
    await rig.add(1, 1, LARGE)
    await look(rig)
    assert rig.unservable == []
    large.out_of_use = True
    await look(rig)
    assert rig.unservable == [(LARGE, "does_not_fit")]


async def test_a_refusal_does_not_hold_for_ever(make: Make, clock: Clock) -> None:
    full, other = Port("gpu0"), Port("gpu1", loaded=LARGE)
    full.refuse[LARGE] = ModelError("too large", code="does_not_fit")
    rig = await make(full, other)
    await rig.add(1, 100, LARGE)
    assert full.loads == [LARGE]
    full.refuse.clear()
    clock.now_s += 601
    await look(rig)
    assert full.loads == [LARGE, LARGE]
    assert full.loaded == LARGE


async def test_a_load_that_fails_for_now_is_tried_again(make: Make) -> None:
    gpu = Port("gpu0")
    gpu.refuse[SMALL] = ServerError("restarting", code="not_ready")
    rig = await make(gpu)
    await rig.add(1, 1)
    async with asyncio.timeout(5):
        while len(gpu.loads) < 3:
            await look(rig)
    gpu.refuse.clear()
    async with asyncio.timeout(5):
        while not rig.worker("gpu0").held:
            await look(rig)
    assert rig.unservable == []


async def test_a_server_that_stops_in_the_middle_of_a_load_gets_no_strike_for_it(make: Make) -> None:
    class Stopping(Port):
        async def load(self, profile: Profile) -> None:
            self.loads.append(profile)
            self.is_ready = False
            raise ServerError("it is stopping", code="not_ready")

    gpu = Stopping("gpu0")
    rig = await make(gpu)
    await rig.add(1, 1)
    async with asyncio.timeout(5):
        while len(gpu.loads) < 2:
            await look(rig)
            gpu.is_ready = not rig.link("gpu0").loading
    assert gpu.strikes == []


async def test_a_server_that_says_it_is_ready_and_refuses_every_load_gets_strikes(make: Make) -> None:
    gpu = Port("gpu0")
    gpu.refuse[SMALL] = ServerError("no answer", code="timeout")
    rig = await make(gpu)
    await rig.add(1, 1)
    async with asyncio.timeout(5):
        while len(gpu.strikes) < 3:
            await look(rig)
    assert set(gpu.strikes) == {"load failed: no answer"}


async def test_a_profile_that_one_server_does_not_get_loaded_is_loaded_by_another(make: Make) -> None:
    bad, good = Port("gpu0"), Port("gpu1", loaded=LARGE)
    bad.refuse[SMALL] = ServerError("http://front/api/generate answered 404", code="not_ollama")
    rig = await make(bad, good)
    await rig.add(2, 1, LARGE)
    await rig.add(1, 1)
    await answer(rig)
    async with asyncio.timeout(5):
        while (1, 1) not in rig.worker("gpu1").held:
            await look(rig)
    assert good.loads == [SMALL]
    assert (1, "gpu0: http://front/api/generate answered 404") in rig.hindered


async def test_a_defect_in_a_load_is_a_strike_and_the_load_is_tried_again(make: Make) -> None:
    gpu = Port("gpu0")
    defect: Any = KeyError("a mistake of ours")
    gpu.refuse[SMALL] = defect
    rig = await make(gpu)
    await rig.add(1, 1)
    async with asyncio.timeout(5):
        while not gpu.strikes:
            await look(rig)
    assert gpu.strikes[0] == "load failed: 'a mistake of ours'" and rig.unservable == []
    gpu.refuse.clear()
    async with asyncio.timeout(5):
        while not rig.worker("gpu0").held:
            await look(rig)


async def test_a_suspect_alone_keeps_its_profile(make: Make) -> None:
    gpu = Port("gpu0", loaded=SMALL)
    rig = await make(gpu)
    await rig.add(1, 1)
    [taken] = [offered.taken for offered in rig.link("gpu0").offers.values()]
    rig.dispatcher.holds.hold("paused")
    await settle()
    [taken] = rig.queue.take(SMALL, 1)
    rig.queue.set_aside(taken)
    await rig.add(2, 1, LARGE)
    rig.dispatcher.holds.release("paused")
    await settle()
    assert gpu.loads == []
    await answer(rig)
    assert gpu.loads == [LARGE]
