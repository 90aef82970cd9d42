"""What the dispatcher offers, takes back, retries and gives up, with workers that do as the test says.

Of :mod:`obatchd.dispatch.dispatcher`, :mod:`obatchd.dispatch.offering` and :mod:`obatchd.dispatch.outcomes`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dispatch_support import BAD_REQUEST, CRASH, REFUSED, SERVER, SMALL, FakeWorker, Make, Rig, rigs, settle
from settings_support import reload

from obatchd.dispatch import keeper as keeper_module
from obatchd.dispatch import link as link_module
from obatchd.dispatch import offering as offering_module
from obatchd.dispatch import outcomes as consequences_module
from obatchd.dispatch import protocol
from obatchd.dispatch.events import INTERRUPTED, CrashListener
from obatchd.dispatch.trials import Suspicion
from obatchd.jobs.model import Profile
from obatchd.ollama import faults


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with rigs(slots=2) as make:
        yield make


class Crashes(CrashListener):
    def __init__(self, crashed: list[Any], cleared: list[Any]) -> None:
        self._crashed, self._cleared = crashed, cleared

    def crashed(self, *told: Any) -> None:
        self._crashed.append(told)

    def cleared(self, *told: Any) -> None:
        self._cleared.append(told)


async def test_each_server_holds_its_slots_and_one_more(make: Make) -> None:
    rig = await make(servers=2)
    await rig.add(1, 10)
    assert {name: len(link.offers) for name, link in rig.dispatcher.links.items()} == {"gpu0": 3, "gpu1": 3}
    assert rig.ports["gpu0"].in_flight == 3
    rig.worker("gpu0").end((1, 1))
    await settle()
    assert len(rig.link("gpu0").offers) == 3


async def test_few_requests_are_spread(make: Make) -> None:
    rig = await make(servers=3)
    await rig.add(1, 3)
    assert [len(link.offers) for link in rig.dispatcher.links.values()] == [1, 1, 1]


async def test_a_failed_attempt_is_logged_with_the_id_that_people_know(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Before, with the key of the job in the store, unlike every other event."""
    rig = await make(servers=1, slots=1)
    await rig.add(1, 1)
    with caplog.at_level("INFO"):
        rig.worker("gpu0").begin((1, 1))
        rig.worker("gpu0").end((1, 1), SERVER)
        await settle()
    assert "event=attempt_failed job=20261128-job1 " in caplog.text


async def test_what_waits_behind_a_busy_server_goes_to_a_free_one(make: Make) -> None:
    rig = await make(servers=2, slots=1)
    await rig.add(1, 4)
    busy, free = rig.worker("gpu0"), rig.worker("gpu1")
    busy.begin(next(iter(busy.held)))
    for key in list(free.held):
        free.begin(key)
        free.end(key)
        await settle()
    assert [len(busy.held), len(free.held)] == [1, 1]
    assert len(rig.finished) == 2


async def test_a_request_is_taken_back_from_a_busy_server_though_it_failed_on_another_busy_one(make: Make) -> None:
    rig = await make(servers=3, slots=1)
    await rig.add(1, 3)
    for worker in FakeWorker.made:
        worker.begin(*worker.held)
    rig.link("gpu2").mean_s = 9.0
    first = rig.worker("gpu1")
    [failing] = first.held
    rig.ports["gpu0"].is_ready = False
    first.end(failing, SERVER)
    await rig.add(1, 1)
    first.begin(next(key for key in first.held if key != failing))
    await settle()
    [waits_at] = [worker for worker in FakeWorker.made if failing in worker.held]
    assert waits_at.name == "gpu2"
    rig.worker("gpu0").end(next(iter(rig.worker("gpu0").held)))
    rig.ports["gpu0"].is_ready = True
    rig.dispatcher.wake()
    await settle()
    assert failing in rig.worker("gpu0").held


async def test_a_request_is_not_passed_back_and_forth_to_avoid_the_server_it_failed_on(make: Make) -> None:
    rig = await make(servers=2, slots=1)
    await rig.add(1, 1)
    [first] = [worker for worker in FakeWorker.made if worker.held]
    other = rig.worker("gpu1" if first.name == "gpu0" else "gpu0")
    rig.ports[first.name].is_ready = False
    await rig.add(1, 1)
    other.begin((1, 2))
    first.begin((1, 1))
    first.end((1, 1), SERVER)
    rig.ports[first.name].is_ready = True
    rig.dispatcher.wake()
    await settle()
    # It waits at the busy server, because its last attempt was on the idle one.
    assert list(other.held) == [(1, 2), (1, 1)]
    assert other.recalls == 0
    for _ in range(5):
        rig.dispatcher.wake()
        await settle()
    assert other.recalls == 0


async def test_a_hold_takes_back_everything_also_while_a_smaller_recall_is_under_way(make: Make) -> None:
    rig = await make(slots=2)
    rig.link("gpu0").mean_s = 0.001  # fast: many are offered
    await rig.add(1, 8)
    worker = rig.worker("gpu0")
    worker.begin((1, 1), (1, 2))
    worker.answers_recalls = False
    rig.link("gpu0").recall(1)
    rig.dispatcher.holds.hold("paused")
    assert [message.count for message in worker.sent if isinstance(message, protocol.Recall)] == [1, 8]
    worker.give_back(1)
    worker.give_back(8)
    await settle()
    assert sorted(worker.held) == [(1, 1), (1, 2)]
    rig.dispatcher.holds.release("paused")
    await settle()
    assert len(worker.held) == 8


async def test_the_same_requests_are_asked_back_once(make: Make) -> None:
    rig = await make(slots=2)
    await rig.add(1, 3)
    worker = rig.worker("gpu0")
    worker.answers_recalls = False
    for _ in range(3):
        rig.link("gpu0").recall(2)
    assert worker.recalls == 1
    worker.give_back(1)
    await settle()
    rig.link("gpu0").recall(2)
    assert worker.recalls == 2


async def test_many_reasons_to_look_in_one_turn_are_one_look(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await make()
    looks: list[None] = []
    monkeypatch.setattr(offering_module.Offering, "fill", lambda _: looks.append(None))
    for _ in range(100):
        rig.dispatcher.wake()
    await settle()
    assert len(looks) == 1


async def test_a_lost_worker_costs_what_had_a_slot_an_attempt_and_the_rest_nothing(make: Make) -> None:
    rig = await make()
    await rig.add(1, 3)
    lost = rig.worker("gpu0")
    lost.begin((1, 1), (1, 2))
    lost.die()
    await settle()
    again = rig.worker("gpu0")
    assert again is not lost
    assert {key: item.attempt for key, item in again.held.items()} == {(1, 1): 2, (1, 2): 2, (1, 3): 1}
    assert rig.ports["gpu0"].strikes == []


async def test_a_server_whose_worker_is_gone_is_idle(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    rig.worker("gpu0").begin((1, 1))
    assert (rig.ports["gpu0"].in_flight, rig.ports["gpu0"].idle.is_set()) == (1, False)
    rig.dispatcher.holds.hold("stopping")
    rig.worker("gpu0").die()
    await settle()
    assert (rig.ports["gpu0"].in_flight, rig.ports["gpu0"].idle.is_set()) == (0, True)


async def test_an_attempt_does_not_take_longer_because_the_clock_is_set(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await make()
    await rig.add(1, 1)
    rig.worker("gpu0").begin((1, 1))
    real_s = time.time
    monkeypatch.setattr(time, "time", lambda: real_s() + 1e6)
    rig.worker("gpu0").die()
    await settle()
    assert rig.finished == []
    assert rig.worker("gpu0").held[1, 1].attempt == 2


async def test_a_worker_that_cannot_be_started_is_tried_again(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    FakeWorker.unstartable = 3
    rig.worker("gpu0").die()
    await settle()
    assert list(rig.worker("gpu0").held) == [(1, 1)]


async def test_a_worker_that_says_nothing_is_asked_and_then_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.001)
    rig = await make()
    worker = rig.worker("gpu0")
    await rig.add(1, 1)
    async with asyncio.timeout(5):
        while not worker.killed:
            await asyncio.sleep(0.001)
    assert protocol.Ping(offered=1) in worker.sent


async def test_a_worker_that_reads_nothing_is_killed_though_it_was_offered_no_request(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.001)
    rig = await make()
    worker = rig.worker("gpu0")
    worker.fills = True  # by the settings of the job
    await rig.add(1, 1)
    assert worker.held == {}
    async with asyncio.timeout(5):
        while rig.worker("gpu0") is worker or not rig.worker("gpu0").held:
            await asyncio.sleep(0.001)
    assert worker.killed


async def test_a_worker_that_has_nothing_to_do_may_say_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.0)
    rig = await make()
    rig.link("gpu0").unheard_ticks = 7
    for _ in range(3):
        await settle()
        assert rig.link("gpu0").unheard_ticks == 0


async def test_a_request_that_fails_everywhere_ends_after_its_attempts(make: Make) -> None:
    rig = await make(servers=2, max_attempts=3)
    await rig.add(1, 1)
    servers = []
    while not rig.finished:
        [worker] = [worker for worker in FakeWorker.made if worker.held]
        servers.append(worker.name)
        worker.end((1, 1), SERVER)
        await settle()
    assert len(servers) == 3
    assert servers[0] != servers[1] != servers[2]
    assert rig.lines() == [(1, False)]
    assert len(rig.failed) == 3


async def test_a_request_at_fault_is_not_tried_again(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    rig.worker("gpu0").end((1, 1), BAD_REQUEST)
    assert rig.lines() == [(1, False)]
    assert rig.ports["gpu0"].strikes == []


async def test_a_refused_connection_is_no_attempt_and_no_strike(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    for _ in range(10):
        rig.worker("gpu0").end((1, 1), REFUSED)
        await settle()
        assert rig.worker("gpu0").held == {}
        rig.dispatcher.release(rig.link("gpu0"))
        await settle()
    assert rig.worker("gpu0").held[1, 1].attempt == 1
    assert rig.ports["gpu0"].strikes == []
    assert rig.failed == []


@pytest.mark.parametrize(
    ("fault", "strikes", "loaded"),
    [
        (SERVER, 1, SMALL),
        (CRASH, 1, SMALL),
        (faults.from_response(500, "unable to load full model on GPU"), 1, None),
        (faults.hung("no token"), 0, SMALL),  # the watchdog, whose finding it is, restarts the server itself
        (faults.incomplete(False, "", "yes yes yes"), 0, SMALL),
        (faults.incomplete(True, "unload", ""), 0, SMALL),
    ],
    ids=lambda value: value.code if isinstance(value, faults.Fault) else "",
)
async def test_who_gets_a_strike(make: Make, fault: faults.Fault, strikes: int, loaded: Profile | None) -> None:
    rig = await make(slots=2)
    await rig.add(1, 2)
    port, worker = rig.ports["gpu0"], rig.worker("gpu0")
    port.may_load.clear()
    worker.begin((1, 1), (1, 2))
    worker.end((1, 1), fault)
    assert len(port.strikes) == strikes
    assert port.loaded == loaded
    assert [(failed.line, failed.attempt) for failed in rig.failed] == [(1, 1)]
    assert rig.finished == []


async def test_a_model_that_a_server_does_not_have_is_made_sure_of_again(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    rig.worker("gpu0").end((1, 1), faults.from_response(404, "model 'small' not found"))
    assert rig.forgotten == [SMALL.model]
    await settle()
    assert ("gpu0", SMALL.model) in rig.prepared
    assert rig.worker("gpu0").held[1, 1].attempt == 2


async def test_whatever_was_in_flight_in_a_crash_is_one_strike(make: Make) -> None:
    rig = await make(slots=4)
    await rig.add(1, 4)
    await crash(rig, [(1, 1), (1, 2), (1, 3), (1, 4)])
    assert len(rig.failed) == 4
    assert len(rig.ports["gpu0"].strikes) == 1


async def test_a_server_that_closed_the_connection_gets_nothing_for_a_moment(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    worker = rig.worker("gpu0")
    worker.end((1, 1), faults.connection_lost("reset"))
    await settle()
    assert worker.held == {}
    rig.dispatcher.release(rig.link("gpu0"))
    await settle()
    assert worker.held[1, 1].attempt == 2


async def test_a_late_result_of_an_abandoned_attempt_is_dropped(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    worker = rig.worker("gpu0")
    item = worker.held[1, 1]
    worker.end((1, 1), attempt=7)
    assert rig.finished == []
    worker.held[1, 1] = item
    worker.end((1, 1))
    worker.held[1, 1] = item
    worker.end((1, 1))
    assert rig.lines() == [(1, True)]


async def crash(rig: Rig, keys: list[tuple[int, int]]) -> None:
    """The server crashes with these in flight."""
    worker = rig.worker("gpu0")
    worker.begin(*keys)
    worker.end_all(keys, CRASH)
    await settle()


async def test_a_crash_is_told_when_another_server_answers_what_was_in_flight(make: Make) -> None:
    rig, (crashed, cleared) = await make(servers=2), (list[Any](), list[Any]())
    rig.dispatcher.listen_to_crashes(Crashes(crashed, cleared))
    await rig.add(1, 2)
    [first] = rig.worker("gpu0").held
    await crash(rig, [first])
    told = ("gpu0", str(SMALL), rig.link("gpu0").crashed_s)
    assert crashed == [told]
    assert cleared == []  # it may be the request
    other = rig.worker("gpu1")
    for _ in range(2):
        other.end(next(iter(other.held)))
        await settle()
    assert crashed == [told]
    assert cleared == [(*told, "gpu1")]


async def test_a_crash_is_not_told_when_the_same_server_answers_then(make: Make) -> None:
    rig, (crashed, cleared) = await make(), (list[Any](), list[Any]())
    rig.dispatcher.listen_to_crashes(Crashes(crashed, cleared))
    await rig.add(1, 1)
    await crash(rig, [(1, 1)])
    rig.worker("gpu0").end((1, 1))
    await settle()
    assert rig.lines() == [(1, True)]
    assert (len(crashed), cleared) == (1, [])


async def test_suspects_are_tried_alone_and_two_crashes_then_are_poison(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consequences_module, "_ONE_CRASH_S", 0.0)
    rig = await make(slots=2)
    await rig.add(1, 3)
    await crash(rig, [(1, 1), (1, 2)])
    worker = rig.worker("gpu0")
    [last] = worker.held  # it was in no crash, so it goes first: alone, because the others' settings are its own
    worker.end(last)
    await settle()
    await crash(rig, [(1, 1), (1, 2)])
    [innocent] = worker.held  # alone, although there are two slots and all three wait
    worker.end(innocent)
    await settle()
    [guilty] = worker.held
    await crash(rig, [guilty])
    assert list(worker.held) == [guilty]
    await crash(rig, [guilty])
    assert sorted([innocent, guilty, last]) == [(1, 1), (1, 2), (1, 3)]
    outcomes = {finished.line: json.loads(finished.record).get("code") for finished in rig.finished}
    assert outcomes == {innocent[1]: None, guilty[1]: "poison", last[1]: None}


async def test_a_suspect_that_is_recalled_or_refused_stays_one(make: Make) -> None:
    rig = await make(slots=2)
    await rig.add(1, 1)
    await crash(rig, [(1, 1)])
    await crash(rig, [(1, 1)])
    worker = rig.worker("gpu0")
    assert list(worker.held) == [(1, 1)]
    rig.dispatcher.holds.hold("paused")
    await settle()
    assert rig.queue.has_suspects(SMALL)
    rig.dispatcher.holds.release("paused")
    await settle()
    assert list(worker.held) == [(1, 1)]
    await rig.add(2, 2)
    assert list(worker.held) == [(1, 1)], "it has the server for itself"
    worker.end((1, 1), REFUSED)
    assert rig.queue.has_suspects(SMALL)


async def test_a_suspect_of_a_cancelled_job_blocks_no_server(make: Make) -> None:
    rig = await make(slots=2)
    await rig.add(1, 1)
    await crash(rig, [(1, 1)])
    worker = rig.worker("gpu0")
    worker.begin((1, 1))
    rig.queue.remove_job(1)
    worker.end((1, 1), CRASH)
    await rig.add(2, 2)
    assert sorted(worker.held) == [(2, 1), (2, 2)]


async def test_cancelling_empties_the_workers(make: Make) -> None:
    rig = await make()
    await rig.add(1, 3)
    await rig.add(2, 1)
    rig.queue.remove_job(1)
    rig.queue.cancel_job(1)
    await settle()
    assert list(rig.worker("gpu0").held) == [(2, 1)]


async def test_in_flight_is_what_has_a_slot_and_not_what_waits_behind_it(make: Make) -> None:
    rig = await make(slots=2)
    await rig.add(1, 3)
    worker = rig.worker("gpu0")
    assert len(worker.held) == 3
    worker.begin((1, 1), (1, 2))
    await settle()
    assert rig.dispatcher.in_flight() == {1: 2}


async def test_an_attempt_cut_short_by_the_end_of_the_daemon_is_no_crash(make: Make) -> None:
    rig = await make()
    await rig.add(1, 2)
    rig.worker("gpu0").begin((1, 1))
    assert [failed.fault for failed in rig.dispatcher.unrecorded_starts()] == [""]
    await rig.dispatcher.stop()
    assert [(failed.line, failed.fault) for failed in rig.failed] == [(1, INTERRUPTED)]


async def test_a_server_that_is_not_ready_gets_nothing_and_gives_back_what_waits(make: Make) -> None:
    rig = await make(servers=2)
    await rig.add(1, 6)
    worker = rig.worker("gpu0")
    worker.begin(next(iter(worker.held)))
    rig.ports["gpu0"].is_ready = False
    rig.dispatcher.server_changed(rig.ports["gpu0"])
    await settle()
    assert len(worker.held) == 1
    assert rig.queue.total() == 2


async def test_waiting_for_idle_ends_with_the_last_result_or_when_nobody_waits_any_more(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    rig.dispatcher.holds.hold("stopping")
    rig.worker("gpu0").begin((1, 1))
    waiting = asyncio.create_task(rig.dispatcher.until_idle(60))
    await settle()
    assert waiting.done() is not rig.dispatcher.busy()
    rig.dispatcher.give_up_waiting()
    await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize("begun", [0, 1])
async def test_what_still_runs_when_nobody_waits_any_more_is_told(
    make: Make, caplog: pytest.LogCaptureFixture, begun: int
) -> None:
    rig = await make()
    await rig.add(1, begun)
    for key in list(rig.worker("gpu0").held):
        rig.worker("gpu0").begin(key)
    await rig.dispatcher.until_idle(0.01)
    assert ("event=drain_ended" in caplog.text, "in_flight=1" in caplog.text) == (bool(begun), bool(begun))


async def test_why_no_server_can_have_work_is_said_with_their_number(make: Make) -> None:
    rig = await make(servers=2)
    assert rig.dispatcher.stranded == ""
    rig.ports["gpu0"].down = "it died"
    assert rig.dispatcher.stranded == ""
    rig.ports["gpu1"].down = "it died, too"
    assert rig.dispatcher.stranded == "none of 2 servers works; gpu0: it died"
    one = await make(servers=1)
    one.ports["gpu0"].down = "it died"
    assert one.dispatcher.stranded == "no server works; gpu0: it died"


async def test_a_server_that_is_to_try_a_suspect_alone_gives_back_what_waits_there(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await make(slots=2)
    await rig.add(1, 1)
    await rig.add(2, 8)
    await crash(rig, [(1, 1)])
    worker = rig.worker("gpu0")
    worker.begin((2, 1))
    assert len(worker.held) > 1 and {job for job, _ in worker.held} == {2}  # others go first, for a minute
    monkeypatch.setattr(offering_module, "_PATIENCE_S", 0.0)
    rig.dispatcher.wake()
    await settle()
    assert list(worker.held) == [(2, 1)]
    worker.end((2, 1))
    await settle()
    assert list(worker.held) == [(1, 1)]


async def test_a_server_that_makes_vectors_is_offered_as_many_as_share_its_calls(make: Make) -> None:
    rig = await make(slots=4)
    await rig.add(1, 200)
    worker, link = rig.worker("gpu0"), rig.link("gpu0")
    for _ in range(20):
        worker.end(next(iter(worker.held)), took_s=0.02, vectors=True)
        await settle()
    assert len(link.offers) > 4 * 8
    worker.end(next(iter(worker.held)), took_s=0.02)
    await settle()
    assert link.credit == 5, "a server that answers prompts is sent one more than its slots, whatever it did before"


async def test_long_vectors_are_not_piled_up_at_one_server(make: Make) -> None:
    rig = await make(slots=4)
    await rig.add(1, 200)
    worker = rig.worker("gpu0")
    for _ in range(20):
        worker.end(next(iter(worker.held)), took_s=2.0, vectors=True)
        await settle()
    assert len(rig.link("gpu0").offers) == 5


async def test_a_worker_far_away_is_offered_what_its_slots_take_while_an_answer_travels(make: Make) -> None:
    rig = await make(slots=4)
    worker, link = rig.worker("gpu0"), rig.link("gpu0")
    link.mean_s, worker.away_s = 0.05, 0.012
    assert link.credit == 4 + 1 + 2
    worker.away_s = 0.03
    assert link.credit == 4 + 1 + 6
    link.mean_s = 2.0
    assert link.credit == 4 + 1, "where answers take seconds, the way to the worker is nothing"
    link.mean_s, worker.away_s = 0.05, 10.0
    assert link.credit == 4 * 4, "however far it is"


async def test_a_fast_server_is_offered_more(make: Make) -> None:
    rig = await make()
    rig.link("gpu0").mean_s = link_module._FAST_ANSWER_S / 2
    await rig.add(1, 100)
    assert len(rig.link("gpu0").offers) == link_module._FAST_CREDIT * 2


async def test_new_timeouts_are_told_to_every_worker_once(make: Make) -> None:
    rig = await make(servers=2)
    reload(rig.settings, "dispatch.stall_s", 77)
    for _ in range(2):
        rig.dispatcher.settings_changed()
    for name in ("gpu0", "gpu1"):
        told = [message.stall_s for message in rig.worker(name).sent if isinstance(message, protocol.Configure)]
        assert (told[-1], told.count(77)) == (77, 1)


async def test_a_worker_is_told_of_a_job_once_and_when_it_is_over(make: Make) -> None:
    rig = await make()
    await rig.add(1, 2)
    worker = rig.worker("gpu0")
    worker.end((1, 1))
    worker.end((1, 2))
    await rig.add(1, 1)
    assert [message.job for message in worker.sent if isinstance(message, protocol.JobContext)] == [1]
    worker.end((1, 3))
    for _ in range(2):
        rig.dispatcher.forget_job(1)
    assert [message.job for message in worker.sent if isinstance(message, protocol.Forget)] == [1]
    await rig.add(1, 1)
    assert [message.job for message in worker.sent if isinstance(message, protocol.JobContext)] == [1, 1]


async def test_suspicions_of_an_earlier_run_hold_until_the_job_is_over(make: Make) -> None:
    rig = await make(slots=2)
    rig.dispatcher.suspect(1, {1: Suspicion(crashes=2), 2: Suspicion()})
    assert rig.dispatcher.suspicion == {(1, 1): Suspicion(crashes=2)}
    rig.dispatcher.forget_job(1)
    assert rig.dispatcher.suspicion == {}


async def test_progress_of_a_worker_speaks_for_its_server(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    link, told = rig.link("gpu0"), []
    link.server.progress = lambda: told.append(1)  # type: ignore[method-assign]
    link.token_s = 0.0
    rig.worker("gpu0").tell(protocol.Progress(0, 1, 5.0))
    assert (link.token_s, told) == (0.0, [])
    rig.worker("gpu0").tell(protocol.Progress(7, 1, 0.0))
    assert link.token_s > 0 and told == [1]


async def test_messages_about_requests_that_are_gone_are_ignored(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    rig.worker("gpu0").tell(protocol.Started([(9, 9)]))
    rig.worker("gpu0").tell(protocol.Returned([(9, 9)]))
    await settle()
    assert list(rig.link("gpu0").offers) == [(1, 1)] and rig.dispatcher.in_flight() == {}


async def test_attempts_that_run_are_given_to_be_remembered_once(make: Make) -> None:
    rig = await make(slots=2)
    await rig.add(1, 3)
    rig.worker("gpu0").begin((1, 2))
    [started] = rig.dispatcher.unrecorded_starts()
    assert (started.job, started.line, started.attempt, started.server, started.fault) == (1, 2, 1, "gpu0", "")
    assert rig.dispatcher.unrecorded_starts() == []
    assert rig.dispatcher.busy()


async def test_a_server_that_is_emptied_gets_nothing_until_it_is_released(make: Make) -> None:
    rig = await make()
    await rig.add(1, 2)
    worker, link = rig.worker("gpu0"), rig.link("gpu0")
    worker.begin((1, 1), (1, 2))
    assert not await rig.dispatcher.empty(link, 0.01)
    worker.end_all([(1, 1), (1, 2)])
    assert await rig.dispatcher.empty(link, 5)
    await rig.add(2, 1)
    assert worker.held == {} and not rig.dispatcher.busy()
    rig.dispatcher.release(link)
    await settle()
    assert list(worker.held) == [(2, 1)]


async def test_a_server_that_is_vacated_while_idle_is_asked_nothing(make: Make) -> None:
    rig = await make()
    await rig.dispatcher.vacate(rig.link("gpu0"), 0.0, "its server is restarted")
    assert not any(isinstance(message, protocol.GiveUp) for message in rig.worker("gpu0").sent)


async def test_a_request_that_took_too_long_in_all_is_not_tried_again(make: Make) -> None:
    rig = await make(request_total_s=10, request_timeout_s=4, max_attempts=9)
    await rig.add(1, 1)
    worker = rig.worker("gpu0")
    for took_s in (4, 3):
        worker.end((1, 1), SERVER, took_s=took_s)
        await settle()
    assert [item.limit_s for item in worker.held.values()] == [pytest.approx(3.0)]
    assert rig.finished == []
    worker.end((1, 1), SERVER, took_s=3)
    [finished] = rig.finished
    record = json.loads(finished.record)
    assert (finished.succeeded, record["code"]) == (False, "timeout")
    assert "the attempts took 10 s in all" in record["message"] and "the last one, on gpu0" in record["message"]


async def test_one_suspect_at_a_time_is_given_a_server_of_its_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consequences_module, "_ONE_CRASH_S", 0.0)
    rig = await make(servers=2, slots=2)
    await rig.add(1, 2)
    for _ in range(2):
        for name in ("gpu0", "gpu1"):
            held = list(rig.worker(name).held)
            if held:
                rig.worker(name).begin(*held)
                rig.worker(name).end_all(held, CRASH)
        for link in rig.dispatcher.links.values():
            link.held_until_s = 0.0
        rig.dispatcher.wake()
        await settle()
    for _ in range(3):
        assert sorted(len(rig.worker(name).held) for name in ("gpu0", "gpu1")) == [0, 1]
        assert rig.queue.has_suspects(SMALL)
        rig.dispatcher.wake()
        await settle()


async def test_nothing_is_lost_that_is_offered_while_a_worker_is_gone(make: Make) -> None:
    rig = await make()
    rig.worker("gpu0").die()
    await settle()
    await rig.add(1, 1)
    await settle()
    assert list(rig.worker("gpu0").held) == [(1, 1)]
