"""Servers that come and go while the daemon runs: their links, and what becomes of the requests that they hold.

Of :mod:`obatchd.dispatch.dispatcher`, :mod:`obatchd.dispatch.keeper` and :mod:`obatchd.dispatch.outcomes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from dispatch_support import CRASH, SMALL, Make, Port, Rig, rigs, settle

from obatchd.dispatch import keeper as keeper_module
from obatchd.dispatch import protocol
from obatchd.dispatch.events import INTERRUPTED
from obatchd.dispatch.interactive.lease import Question
from obatchd.dispatch.trials import Suspicion


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with rigs(slots=2) as make:
        yield make


def newcomer(rig: Rig, server_id: str = "far0") -> Port:
    port = rig.ports[server_id] = Port(server_id, 2, SMALL)
    rig.dispatcher.attach(port, rig.workers)
    return port


async def test_a_server_that_comes_later_gets_work(make: Make) -> None:
    rig = await make()
    await rig.add(1, 8)
    newcomer(rig)
    await settle()
    assert [len(rig.worker(name).held) for name in ("gpu0", "far0")] == [3, 3]
    rig.worker("far0").end((1, 4))
    assert rig.lines() == [(4, True)]


async def test_no_server_is_attached_twice(make: Make) -> None:
    rig = await make()
    with pytest.raises(ValueError, match="attached already"):
        rig.dispatcher.attach(rig.ports["gpu0"], rig.workers)


async def test_what_a_server_that_leaves_holds_goes_to_others_and_counts_no_attempt(make: Make) -> None:
    rig = await make()
    port = newcomer(rig)
    await settle()
    await rig.add(1, 4)
    far = rig.worker("far0")
    started = list(far.held)[:1]
    far.begin(*started)
    assert [start.line for start in rig.dispatcher.unrecorded_starts()] == [started[0][1]]
    await rig.dispatcher.detach(port)
    assert far.dead.is_set()
    assert port.in_flight == 0
    assert port.idle.is_set()
    assert list(rig.dispatcher.links) == ["gpu0"]
    # The store knew of the one that had begun, and the next start must count no crash.
    assert [(failed.line, failed.attempt, failed.fault) for failed in rig.failed] == [(started[0][1], 1, INTERRUPTED)]
    near = rig.worker("gpu0")
    while near.held:
        assert {item.attempt for item in near.held.values()} == {1}
        near.end(next(iter(near.held)))
        await settle()
    assert sorted(rig.lines()) == [(line, True) for line in range(1, 5)]


async def test_a_late_word_of_a_server_that_has_left_changes_nothing(make: Make) -> None:
    rig = await make()
    port = newcomer(rig)
    await rig.add(1, 4)
    far = rig.worker("far0")
    key = next(iter(far.held))
    await rig.dispatcher.detach(port)
    far.end(key)
    await settle()
    assert rig.finished == []


async def test_a_server_may_leave_and_come_again(make: Make) -> None:
    rig = await make()
    for _ in range(3):
        port = newcomer(rig)
        await settle()
        assert rig.link("far0").worker is rig.worker("far0")
        await rig.dispatcher.detach(port)
        await rig.dispatcher.detach(port)  # twice is once
    newcomer(rig)
    await rig.add(1, 6)
    assert len(rig.worker("far0").held) == 3


async def test_a_server_that_is_not_there_holds_up_neither_the_start_nor_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper_module, "_FIRST_S", 0.01)
    rig = Rig(Port("gpu0", 2, SMALL), Port("far0", 2, SMALL))
    async with asyncio.timeout(5):
        await rig.start("far0")
    await rig.add(1, 4)
    near = rig.worker("gpu0")
    for line in range(1, 5):
        near.end((1, line))
        await settle()
    assert len(rig.finished) == 4
    async with asyncio.timeout(5):
        await rig.dispatcher.detach(rig.ports["far0"])
        await rig.dispatcher.stop()


async def test_nobody_is_suspected_over_a_crash_of_a_server_that_leaves_before_its_control(make: Make) -> None:
    rig = await make()
    port = newcomer(rig)
    await settle()
    port.may_load.clear()  # its control does not come about
    await rig.add(1, 6)
    far = rig.worker("far0")
    [key, *_] = far.held
    far.begin(key)
    far.end(key, CRASH)
    await settle()
    assert rig.dispatcher.suspicion[key].crashes == 1
    await rig.dispatcher.detach(port)
    assert rig.dispatcher.suspicion[key].crashes == 0
    assert rig.link("gpu0").worker is not None


async def test_somebody_who_waits_for_an_answer_gets_it_of_another_server(make: Make) -> None:
    rig = await make(interactive_slots=0)
    rig.ports["gpu0"].is_ready = False
    port = newcomer(rig)
    await settle()
    lease = rig.dispatcher.desk.ask(Question(b'{"prompt": "why?", "model": "small", "context_length": 4096}'), 1000)
    await settle()
    [key] = rig.worker("far0").held
    rig.ports["gpu0"].is_ready = True
    await rig.dispatcher.detach(port)
    await settle()
    assert rig.worker("gpu0").held[key].attempt == 1
    rig.worker("gpu0").end(key)
    assert (await lease.result()).succeeded


async def test_the_end_of_a_drain_comes_although_a_server_leaves_meanwhile(make: Make) -> None:
    rig = await make()
    port = newcomer(rig)
    await rig.add(1, 6)
    rig.dispatcher.holds.hold("stopping")
    waiting = asyncio.create_task(rig.dispatcher.until_idle(5.0))
    await settle()
    await rig.dispatcher.detach(port)
    near = rig.worker("gpu0")
    for key in list(near.held):
        near.end(key)
    async with asyncio.timeout(5):
        await waiting


async def test_ten_hosts_lost_in_a_row_count_no_attempt(make: Make) -> None:
    """As where a scheduler takes one allocation after another away."""
    rig = await make(max_attempts=2)
    await rig.add(1, 4)
    for lost in range(1, 11):
        worker = rig.worker("gpu0")
        worker.begin(*list(worker.held)[:2])
        rig.dispatcher.unrecorded_starts()
        worker.die(host="node07")
        await settle()
        assert rig.worker("gpu0") is not worker
        assert rig.link("gpu0").faults["nobody", "host_lost"] == 2 * lost
    assert {failed.fault for failed in rig.failed} == {INTERRUPTED}
    assert rig.dispatcher.suspicion == {}
    assert rig.ports["gpu0"].strikes == []
    assert rig.link("gpu0").attempts_failed == 0
    assert rig.hindered[-1] == (1, "gpu0: host node07 was lost, and the worker of server gpu0 with it")
    while held := rig.worker("gpu0").held:
        assert {(item.attempt, tuple(item.servers)) for item in held.values()} == {(1, ())}
        rig.worker("gpu0").end(next(iter(held)))
        await settle()
    assert sorted(rig.lines()) == [(line, True) for line in range(1, 5)]


async def test_a_worker_that_dies_by_itself_still_counts_an_attempt(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    rig.worker("gpu0").begin((1, 1))
    rig.worker("gpu0").die()
    await settle()
    assert rig.worker("gpu0").held[1, 1].attempt == 2


async def test_a_suspect_that_loses_its_host_is_tried_alone_again_and_is_not_condemned(make: Make) -> None:
    rig = await make()
    rig.dispatcher.suspect(1, {1: Suspicion(crashes=2, servers={"gpu9": 1.0})})
    await rig.add(1, 1)
    await settle()
    for lost in range(10):
        worker = rig.worker("gpu0")
        assert list(worker.held) == [(1, 1)]
        assert rig.link("gpu0").alone is (lost > 0)  # as the test gave it to the queue, it was not set aside at first
        worker.begin((1, 1))
        worker.die(host="node07")
        await settle()
    assert rig.dispatcher.suspicion[1, 1].alone == 0
    rig.worker("gpu0").end((1, 1))
    assert rig.lines() == [(1, True)]


async def test_a_crash_just_before_its_host_is_lost_makes_nobody_a_suspect(make: Make) -> None:
    """A host that is taken away may end its servers first."""
    rig = await make()
    await rig.add(1, 2)
    for _ in range(3):
        worker = rig.worker("gpu0")
        rig.ports["gpu0"].may_load.clear()
        worker.begin(*worker.held)
        worker.end_all(list(worker.held), CRASH)
        await settle()
        worker.die(host="node07")
        rig.ports["gpu0"].may_load.set()
        await settle()
    assert {suspicion.crashes for suspicion in rig.dispatcher.suspicion.values()} == {0}


async def test_somebody_who_has_seen_no_part_of_an_answer_keeps_the_question_when_a_host_is_lost(make: Make) -> None:
    rig = await make(interactive_slots=0)
    lease = rig.dispatcher.desk.ask(Question(b'{"prompt": "why?", "model": "small", "context_length": 4096}'), 1000)
    await settle()
    for _ in range(10):
        worker = rig.worker("gpu0")
        [key] = worker.held
        worker.begin(key)
        worker.die(host="node07")
        await settle()
    rig.worker("gpu0").end(next(iter(rig.worker("gpu0").held)))
    assert (await lease.result()).succeeded


# Workers that are slow to read.


async def test_a_worker_that_is_full_is_offered_nothing_until_there_is_room(make: Make) -> None:
    rig = await make(servers=2)
    slow = rig.worker("gpu0")
    slow.is_full = True
    await rig.add(1, 8)
    assert slow.held == {}
    assert len(rig.worker("gpu1").held) == 3
    slow.is_full = False
    assert slow.listener is not None
    slow.listener.drained()
    await settle()
    assert len(slow.held) == 3


async def test_one_message_holds_no_more_large_requests_than_a_channel_takes(make: Make) -> None:
    rig = await make(slots=32)
    worker = rig.worker("gpu0")
    await rig.add(1, 40, raw=b"x" * 2**20)
    assert list(worker.held) == [(1, line) for line in range(1, 10)]  # more than 8 MiB, by one of them
    rig.dispatcher.wake()
    await settle()
    assert list(worker.held) == [(1, line) for line in range(1, 19)]


async def test_settings_of_jobs_that_fill_the_way_leave_before_anything_else(make: Make) -> None:
    rig = await make(slots=8)
    port, worker = rig.ports["gpu0"], rig.worker("gpu0")
    port.is_ready, worker.fills = False, True
    for job in (1, 2):
        await rig.add(job, 2, owner=job)
    port.is_ready = True
    rig.dispatcher.wake()
    for told in (1, 2):
        await settle()
        assert sum(isinstance(message, protocol.JobContext) for message in worker.sent) == told
        assert worker.held == {}
        assert not rig.dispatcher.busy()
        worker.is_full = False
        assert worker.listener is not None
        worker.listener.drained()
    await settle()
    assert sorted(worker.held) == [(1, 1), (1, 2), (2, 1), (2, 2)]


async def test_somebody_who_waits_is_not_sent_to_a_worker_that_is_full(make: Make) -> None:
    rig = await make(servers=2, interactive_slots=0)
    rig.worker("gpu0").is_full = rig.worker("gpu1").is_full = True
    rig.dispatcher.desk.ask(Question(b'{"prompt": "why?", "model": "small", "context_length": 4096}'), 1000)
    await settle()
    assert (rig.worker("gpu0").held, rig.worker("gpu1").held) == ({}, {})
    rig.worker("gpu1").is_full = False
    rig.dispatcher.wake()
    await settle()
    assert len(rig.worker("gpu1").held) == 1
