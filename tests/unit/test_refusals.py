"""Servers that fail at once, and requests that something in front of a server turns away.

Of :mod:`obatchd.dispatch.refusals`, :mod:`obatchd.dispatch.outcomes` and :mod:`obatchd.dispatch.offering`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from dispatch_support import FOREIGN, FakeWorker, Key, Make, Rig, rigs, settle

from obatchd.dispatch import link as link_module
from obatchd.dispatch import refusals
from obatchd.dispatch import switching as switching_module
from obatchd.jobs import lane as lane_module
from obatchd.jobs.lane import WINDOW_LOW
from obatchd.ollama.faults import Cause

EMPTY = Cause.EMPTY_RESPONSE.fault("the answer is empty")


class Clock:
    """The time of servers' rests, which goes on as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        for module in (link_module, refusals, switching_module):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now_s

    async def wait(self, rig: Rig, seconds: float) -> None:
        """Let time go by, and the dispatcher see what may go on."""
        self.now_s += seconds
        rig.dispatcher.wake()
        await settle()


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with rigs(slots=2) as make:
        yield make


async def turned_away(rig: Rig, server: str = "gpu0") -> list[Key]:
    """Whatever a server holds is turned away by the proxy in front of it, once."""
    keys = list(rig.worker(server).held)
    rig.worker(server).end_all(keys, FOREIGN, took_s=0.001)
    await settle()
    return keys


async def test_an_answer_of_somebody_else_costs_no_attempt_one_strike_and_is_told(make: Make) -> None:
    rig = await make(slots=4)
    await rig.add(1, 5)
    assert len(await turned_away(rig)) == 5
    assert rig.finished == rig.failed == []
    assert rig.ports["gpu0"].strikes == ["not_ollama: http://front/api/chat answered 404"]
    assert set(rig.hindered) == {(1, "gpu0: http://front/api/chat answered 404")}
    assert rig.queue.total() == 5


async def test_a_server_behind_a_proxy_that_answers_itself_is_tried_less_and_less(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    rig = await make(slots=4)
    await rig.add(1, 100)
    rests = []
    for _ in range(9):
        await turned_away(rig)
        assert rig.worker("gpu0").held == {}
        rests.append(rig.link("gpu0").held_until_s - clock.now_s)
        clock.now_s = rig.link("gpu0").held_until_s
        rig.dispatcher.wake()
        await settle()
        assert len(rig.worker("gpu0").held) == 1
    assert rests == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    rig.worker("gpu0").end(next(iter(rig.worker("gpu0").held)))
    await settle()
    assert len(rig.worker("gpu0").held) == 5  # it answers


async def test_what_one_proxy_turns_away_others_answer(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    rig = await make(servers=2, slots=1)
    await rig.add(1, 200)
    bad, good, away = rig.worker("gpu0"), rig.worker("gpu1"), 0
    while good.held:
        away += len(await turned_away(rig))
        good.end(next(iter(good.held)))
        await settle()
    assert away == 2 and bad.held == {}
    assert len(rig.finished) == 200 and all(finished.succeeded for finished in rig.finished)


async def test_requests_that_were_turned_away_come_back_when_the_server_answers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    rig = await make(slots=2)
    await rig.add(1, 4)
    await turned_away(rig)
    await clock.wait(rig, 0.5)
    assert list(rig.worker("gpu0").held) == [(1, 4)]
    rig.worker("gpu0").end((1, 4))
    await settle()
    assert len(rig.worker("gpu0").held) == 2
    for key in list(rig.worker("gpu0").held):
        rig.worker("gpu0").end(key)
    await settle()
    assert len(rig.worker("gpu0").held) == 1


async def test_while_nothing_else_is_at_hand_a_request_that_was_turned_away_waits_for_its_pause(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    rig = await make(slots=2)
    await rig.add(1, 1)
    await turned_away(rig)
    rig.link("gpu0").held_until_s = 0.0  # the server rests no more, and the request does
    await clock.wait(rig, 0.0)
    assert rig.worker("gpu0").held == {}
    await clock.wait(rig, 60)
    assert list(rig.worker("gpu0").held) == [(1, 1)]


async def test_requests_that_are_turned_away_do_not_keep_those_from_being_read_that_come_after_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    rig = await make(slots=1)
    lane = await rig.add(1, WINDOW_LOW + 10)
    rig.queue.extend(lane, 1000)
    for _ in range(WINDOW_LOW + 10):
        await turned_away(rig)
        await clock.wait(rig, 60)
    assert rig.fetches == [lane]
    assert rig.queue.total() + len(rig.worker("gpu0").held) == WINDOW_LOW + 1010


@pytest.mark.parametrize(("limit", "at_most"), [("POSTPONED", 10), ("POSTPONED_BYTES", 100)])
async def test_a_lane_of_which_all_that_is_in_memory_was_turned_away_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch, limit: str, at_most: int
) -> None:
    """However many more are in the store: no more are read while so many wait."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(lane_module, limit, at_most)
    rig = await make(slots=1)
    lane = await rig.add(1, WINDOW_LOW + 20)
    rig.queue.extend(lane, 1000)
    while lane.window:
        await turned_away(rig)
        await clock.wait(rig, 60)
    await turned_away(rig)
    assert rig.fetches == []
    await clock.wait(rig, 60)
    assert len(rig.worker("gpu0").held) == 1, "one shows whether the proxy is well again"
    rig.worker("gpu0").end(next(iter(rig.worker("gpu0").held)))
    await settle()
    assert len(rig.worker("gpu0").held) == 2


async def test_requests_that_are_turned_away_alone_keep_the_others_from_no_server(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a proxy takes for too large, and however much of it there is."""
    clock = Clock(monkeypatch)
    rig = await make(slots=2)
    await rig.add(1, 50)
    for _ in range(20):  # alone in the queue they try the server again and again
        await turned_away(rig)
        await clock.wait(rig, 30)
    await rig.add(2, 100)
    began_s, worker = clock.now_s, rig.worker("gpu0")
    while sum(finished.job == 2 for finished in rig.finished) < 100 and clock.now_s - began_s < 300:
        large = [key for key in worker.held if key[0] == 1]
        if large:
            worker.end_all(large, FOREIGN, took_s=0.001)
        for key in [key for key in worker.held if key[0] == 2]:
            worker.begin(key)
            worker.end(key)
        await clock.wait(rig, 0.5)
    assert clock.now_s - began_s < 150
    assert all(finished.succeeded for finished in rig.finished)


async def test_a_request_alone_that_is_turned_away_while_others_are_answered_fails_in_the_end(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(refusals, "_LONGEST_PAUSE_S", 2.0)
    rig = await make(slots=2)
    await rig.add(1, 1)
    await rig.add(2, 1000)
    worker, away = rig.worker("gpu0"), 0
    for _ in range(500):
        if any(finished.job == 1 for finished in rig.finished):
            break
        if (1, 1) in worker.held:
            away += 1
            worker.end((1, 1), FOREIGN, took_s=0.001)
        for key in [key for key in worker.held if key[0] == 2]:
            worker.end(key)
        await clock.wait(rig, 0.5)
    [failed] = [finished for finished in rig.finished if not finished.succeeded]
    record = json.loads(failed.record)
    assert (record["code"], away) == ("not_ollama", 16)
    assert (
        "servers turned the request away 15 times, while they answered others; the last one, on gpu0"
        in record["message"]
    )


async def test_a_request_that_is_turned_away_for_too_long_in_all_fails(make: Make) -> None:
    rig = await make(request_total_s=60)
    await rig.add(1, 1)
    rig.worker("gpu0").end((1, 1), FOREIGN, took_s=60)
    [failed] = rig.finished
    assert json.loads(failed.record)["code"] == "timeout"


async def test_a_job_that_is_cancelled_while_its_requests_wait_for_a_proxy_is_forgotten(make: Make) -> None:
    rig = await make()
    await rig.add(1, 2)
    await turned_away(rig)
    rig.queue.cancel_job(1)
    rig.dispatcher.forget_job(1)
    assert rig.queue.total() == 0
    assert rig.dispatcher._outcomes.refusals._waiting == {}


async def test_a_server_that_fails_at_once_whatever_it_is_given_does_not_draw_the_queue(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    rig = await make(servers=2, slots=2)
    await rig.add(1, 200)
    bad, good, failures = rig.worker("gpu0"), rig.worker("gpu1"), 0
    good.end(next(iter(good.held)))
    await settle()
    for _ in range(50):
        while bad.held:
            failures += 1
            bad.end(next(iter(bad.held)), EMPTY, took_s=0.001)
            await settle()
        clock.now_s += 0.1
        good.end(next(iter(good.held)))
        await settle()
    assert failures < 12
    assert rig.finished and all(finished.succeeded for finished in rig.finished)


async def test_where_every_server_fails_each_is_given_its_share(make: Make) -> None:
    rig = await make(servers=2, slots=2, max_attempts=1)
    await rig.add(1, 40)
    for _ in range(40):
        for worker in FakeWorker.made:
            worker.end_all(list(worker.held), EMPTY)
        await settle()
    assert len(rig.finished) == 40
