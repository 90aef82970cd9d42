"""When servers get other slots and when they do not, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from dispatch_support import LARGE, SMALL
from tuning_support import WALL_S, Clock, Facts, Hall, TunedPort

from obatchd.dispatch.tuning.found import DOES_NOT_FIT, SERVER_DIED, Found
from obatchd.jobs.model import Profile
from obatchd.simulator.config import Throughput

AT_8 = Throughput([(1, 40.0), (8, 160.0), (64, 90.0)])
AT_32 = Throughput([(1, 20.0), (32, 300.0), (64, 250.0)])
Make = Callable[..., Hall]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    made: list[Hall] = []

    def hall(
        servers: int = 1,
        curves: dict[Profile, Throughput] | None = None,
        facts: Facts | None = None,
        pause_s: float = 3600.0,
    ) -> Hall:
        clock = Clock()
        ports = [TunedPort(f"gpu{n}", curves or {SMALL: AT_32, LARGE: AT_8}, clock) for n in range(servers)]
        made.append(Hall(monkeypatch, clock, *ports, tune_pause_s=pause_s))
        made[-1].facts.update(facts or {})
        return made[-1]

    yield hall
    for each in made:
        await each.dispatcher.stop()


def found(hall: Hall, profile: Profile = SMALL) -> Found:
    return msgspec.json.decode(hall.facts[f"tuned/L40S/{profile.model}/{profile.context_length}"], type=Found)


async def test_a_long_job_finds_the_best_slots_and_the_next_start_has_them(make: Make) -> None:
    hall = make(pause_s=1)
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(3600)
    assert found(hall).chosen == hall.servers["gpu0"].slots == 32
    assert 4 in found(hall).tried and 64 in found(hall).tried
    again = make(facts=hall.facts, pause_s=1)
    await again.start()
    again.fill(1, 100, SMALL)
    await again.run(60)
    assert again.servers["gpu0"].slots == 32 and not again.servers["gpu0"].changes


async def test_one_server_measures_and_the_others_of_its_kind_follow(make: Make) -> None:
    hall = make(servers=3, pause_s=1)
    await hall.start()
    hall.fill(1, 60_000, SMALL)
    await hall.run(3600)
    assert [port.slots for port in hall.servers.values()] == [32, 32, 32]
    assert sorted(len(port.changes) for port in hall.servers.values())[:2] == [1, 1]


def most_in_an_hour(hall: Hall) -> dict[str, int]:
    """Of the changes of each server and of those for each profile: how many there were in any window of an hour."""
    times: dict[str, list[float]] = {}
    for server, port in hall.servers.items():
        for (at_s, _, _), profile in zip(port.changes, port.changed_for, strict=True):
            times.setdefault(server, []).append(at_s)
            times.setdefault(str(profile), []).append(at_s)
    return {name: max(sum(at_s <= other < at_s + 3600 for other in own) for at_s in own) for name, own in times.items()}


@pytest.mark.parametrize(("period_s", "servers"), [(30, 1), (60, 1), (120, 1), (120, 3), (300, 1), (900, 1)])
async def test_a_queue_that_oscillates_causes_at_most_one_change_an_hour(
    make: Make, period_s: int, servers: int
) -> None:
    hall = make(servers=servers)
    await hall.start()
    lane = hall.fill(1, 1, SMALL)
    for _ in range(3 * 3600 // (2 * period_s)):
        hall.fill(1, 5000, SMALL)
        await hall.run(period_s)
        lane.window.clear()
        await hall.run(period_s)
    assert set(most_in_an_hour(hall).values()) == {1}
    assert sum(len(port.changes) for port in hall.servers.values()) <= 3 and found(hall).tried


async def test_two_profiles_that_alternate_cause_one_change_an_hour(make: Make) -> None:
    hall = make()
    await hall.start()
    lanes = {SMALL: hall.fill(1, 1, SMALL, owner=1), LARGE: hall.fill(2, 1, LARGE, owner=2)}
    port, seen = hall.servers["gpu0"], list[Profile | None]()
    for turn in range(3 * 3600 // 120):
        job, profile = (1, SMALL) if turn % 2 == 0 else (2, LARGE)
        hall.fill(job, 5000, profile, owner=job)
        await hall.run(120)
        seen.append(port.loaded)
        lanes[profile].window.clear()
    assert seen == 45 * [SMALL, LARGE]
    assert set(most_in_an_hour(hall).values()) == {1} and len(port.changes) <= 3
    assert found(hall, LARGE).good == 8 and found(hall).good > 8


async def test_two_profiles_that_wait_side_by_side_cause_one_change_an_hour(make: Make) -> None:
    hall = make()
    await hall.start()
    hall.fill(1, 30_000, SMALL, owner=1)
    hall.fill(2, 30_000, LARGE, owner=2)
    await hall.run(3 * 3600)
    assert hall.servers["gpu0"].loads.count(LARGE) > 10
    assert set(most_in_an_hour(hall).values()) == {1}


async def test_the_servers_of_one_kind_get_other_slots_one_an_hour(make: Make) -> None:
    hall = make(servers=3)
    await hall.start()
    hall.fill(1, 300_000, SMALL)
    await hall.run(6 * 3600)
    assert [port.slots for port in hall.servers.values()] == [32, 32, 32]
    assert set(most_in_an_hour(hall).values()) == {1}


async def test_a_bad_number_is_given_back_at_once_and_without_a_change(make: Make) -> None:
    curves = {SMALL: Throughput([(1, 10.0), (8, 80.0), (16, 48.0), (64, 20.0)])}
    untuned = make(curves=curves)
    untuned.servers["gpu0"].tuning = None
    await untuned.start()
    untuned.fill(1, 30_000, SMALL)
    await untuned.run(3600)
    hall = make(curves=curves)
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(3600)
    port = hall.servers["gpu0"]
    assert [(old, new) for _, old, new in port.changes] == [(8, 16)] and port.process_slots == 16
    assert port.slots == found(hall).chosen == 8, "half of its slots stay free"
    assert {4, 12} <= found(hall).tried.keys(), "they were measured on the same process"
    assert hall.tokens >= 0.95 * untuned.tokens, "that is what the search costs, instead of 0.6 for the hour"


async def test_a_step_upwards_waits_and_numbers_below_are_measured_meanwhile(make: Make) -> None:
    hall = make(facts=Facts({"slots_changed/gpu0": str(int(WALL_S) + 10_000 - 1800)}))
    await hall.start()
    hall.fill(1, 60_000, SMALL)
    await hall.run(1700)
    port = hall.servers["gpu0"]
    assert not port.changes and found(hall).tried.keys() == {4, 8} and port.slots == 8
    assert "at most once in 1 h" in next(iter(hall.tuner.stands())).waits
    await hall.run(200)
    assert [new for _, _, new in port.changes] == [16]


async def test_somebody_who_waits_gets_the_slots_back_that_a_measurement_leaves_free(make: Make) -> None:
    hall = make()
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    port = hall.servers["gpu0"]
    while port.slots != 4:
        await hall.run(1)
    hall.waiting = True
    await hall.run(1)
    assert port.slots == 16 and hall.link("gpu0").window is None
    hall.waiting = False
    await hall.run(20)
    assert port.slots == 16, "it is not begun again at once"
    await hall.run(300)
    assert 4 in found(hall).tried


async def test_a_measurement_leaves_no_slots_free_when_its_work_is_over(make: Make) -> None:
    hall = make()
    await hall.start()
    lane = hall.fill(1, 30_000, SMALL)
    port = hall.servers["gpu0"]
    while port.slots != 4:
        await hall.run(1)
    lane.window.clear()
    hall.queue.remove_job(1)
    await hall.run(2)
    assert port.slots == 16
    await hall.run(60)  # what was in flight ends
    hall.fill(2, 16, SMALL)
    await hall.run(2)
    assert port.slots == 16 and hall.link("gpu0").started == 16


async def test_a_profile_that_does_not_fit_goes_before_the_hour(make: Make) -> None:
    """Its requests would fail: so a server may have a second change in the hour, but no third."""
    hall = make()
    await hall.start()
    port = hall.servers["gpu0"]
    port.fits[LARGE] = 8
    lanes = {SMALL: hall.fill(1, 1, SMALL, owner=1), LARGE: hall.fill(2, 1, LARGE, owner=2)}
    for turn in range(3 * 3600 // 240):
        job, profile = (1, SMALL) if turn % 2 == 0 else (2, LARGE)
        hall.fill(job, 5000, profile, owner=job)
        await hall.run(240)
        lanes[profile].window.clear()
    assert not hall.failed and not hall.unservable
    assert {new for _, old, new in port.changes if new < old} == {8}
    assert most_in_an_hour(hall)["gpu0"] == 2 and most_in_an_hour(hall)[str(SMALL)] == 1


async def test_nothing_changes_while_somebody_waits_for_an_answer(make: Make) -> None:
    hall = make()
    await hall.start()
    hall.waiting = True
    hall.fill(1, 30_000, SMALL)
    await hall.run(600)
    port = hall.servers["gpu0"]
    assert not port.changes and "somebody waits" in next(iter(hall.tuner.stands())).waits
    hall.waiting = False
    await hall.run(10)
    assert hall.link("gpu0").switching_to == SMALL  # a change begins: the server is emptied
    hall.waiting = True
    await hall.run(2)
    assert hall.link("gpu0").switching_to is None and not port.changes
    hall.waiting = False
    await hall.run(60)
    assert port.changes


async def test_a_short_queue_pays_for_no_change(make: Make) -> None:
    hall = make()
    await hall.start()
    lane = hall.fill(1, 100, SMALL)

    def top_up() -> None:
        hall.fill(1, max(0, 60 - lane.waiting), SMALL)

    await hall.run(1200, top_up)
    assert not hall.servers["gpu0"].changes
    assert "a change pays from" in next(iter(hall.tuner.stands())).waits


async def test_a_job_that_ends_within_an_hour_has_its_first_ten_minutes_for_itself(make: Make) -> None:
    hall = make()
    await hall.start()
    hall.fill(1, 2000, SMALL, age_s=0.0)  # 40 minutes of eight slots
    await hall.run(590)
    assert not hall.servers["gpu0"].changes
    assert "first ten minutes" in next(iter(hall.tuner.stands())).waits
    await hall.run(60)
    assert hall.servers["gpu0"].changes


async def test_a_young_job_of_many_hours_is_tuned_for(make: Make) -> None:
    hall = make()
    await hall.start()
    hall.fill(1, 50_000, SMALL, age_s=0.0)
    await hall.run(200)
    assert hall.servers["gpu0"].changes


async def test_a_number_that_does_not_fit_goes_back_and_is_not_tried_again(make: Make) -> None:
    hall = make(pause_s=1)
    await hall.start()
    port = hall.servers["gpu0"]
    port.fits[SMALL] = 12
    hall.fill(1, 30_000, SMALL)
    await hall.run(3600)
    assert found(hall).chosen == port.slots == 12
    assert found(hall).cannot == {16: DOES_NOT_FIT}
    assert [new for _, _, new in port.changes].count(16) == 1
    assert not hall.failed and not hall.unservable


async def test_what_no_longer_fits_goes_back_before_a_request_fails(make: Make) -> None:
    hall = make(pause_s=1)
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(3600)
    assert found(hall).chosen == 32
    again = make(facts=hall.facts, pause_s=1)
    again.servers["gpu0"].fits[SMALL] = 16
    again.clock.now_s = hall.clock.now_s + 3600
    await again.start()
    again.fill(1, 3000, SMALL)
    await again.run(120)
    assert again.servers["gpu0"].slots <= 16 and again.finished and not again.failed and not again.unservable
    assert found(again).good <= 16


async def test_a_server_that_dies_in_a_step_comes_back_with_the_good_number(make: Make) -> None:
    hall = make()
    await hall.start()
    port = hall.servers["gpu0"]
    port.dies_with.add(16)
    hall.fill(1, 30_000, SMALL)
    await hall.run(300)
    assert found(hall).cannot == {16: SERVER_DIED} and port.slots == 8 and not port.strikes
    await hall.run(3700)
    assert [new for _, _, new in port.changes].count(16) == 1 and not hall.failed


@pytest.mark.parametrize("killed", [True, False])
async def test_a_daemon_that_ends_in_a_step_begins_with_the_good_number(make: Make, killed: bool) -> None:
    hall = make()
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    while not hall.tuner.kept.all() or not hall.tuner.kept.all()[0].begun:
        await hall.run(1)
    known, facts = found(hall), Facts(hall.facts)
    assert known.begun == {16: 1} and known.good == 8
    if not killed:
        await hall.dispatcher.stop()
        assert not found(hall).begun
    again = make(facts=facts if killed else hall.facts)
    await again.start()
    again.fill(1, 30_000, SMALL)
    await again.run(3)
    assert again.servers["gpu0"].asked[0] == (8,) and again.servers["gpu0"].slots == 8
    while not again.link("gpu0").switching_to:
        await again.run(1)
    assert found(again).begun == {16: 2 if killed else 1}
    third = make(facts=Facts(again.facts))
    await third.start()
    third.fill(1, 30_000, SMALL)
    await third.run(3600)
    assert (16 in found(third).tried) is not killed


@pytest.mark.parametrize("what", ["digest", "version", "driver"])
async def test_other_versions_are_searched_again_from_the_number_found(make: Make, what: str) -> None:
    hall = make(pause_s=1)
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(3600)
    again = make(facts=hall.facts, pause_s=1)
    setattr(again if what == "digest" else again.servers["gpu0"], what, "another")
    again.clock.now_s = hall.clock.now_s + 3600
    await again.start()
    again.fill(1, 30_000, SMALL)
    await again.run(30)
    assert again.servers["gpu0"].slots == 32
    assert again.tuner.kept.all()[0].chosen == 0
    await again.run(3600)
    assert again.tuner.kept.all()[0].chosen == 32


async def test_a_profile_runs_with_the_slots_of_its_server_unless_its_queue_pays(make: Make) -> None:
    hall = make(pause_s=1)
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(3600)
    port = hall.servers["gpu0"]
    assert port.slots == 32
    for lane in hall.queue.lanes_of_profile(SMALL):
        hall.queue.remove_job(lane.job)
    before = len(port.changes)
    hall.fill(2, 200, LARGE)
    await hall.run(200)
    assert port.loaded == LARGE and port.slots == 32 and len(port.changes) == before


async def test_no_number_is_measured_beside_other_peoples_processes(make: Make) -> None:
    hall = make()
    await hall.start()
    hall.servers["gpu0"].beside_others = True
    hall.fill(1, 30_000, SMALL)
    await hall.run(600)
    assert not hall.servers["gpu0"].changes and hall.link("gpu0").window is None


async def test_servers_whose_slots_are_given_are_left_alone(make: Make) -> None:
    hall = make()
    hall.servers["gpu0"].tuning = None
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(600)
    assert not hall.servers["gpu0"].changes and not hall.facts and hall.link("gpu0").window is None


@pytest.mark.parametrize("back_s", [0.0, 30 * 86_400.0])
async def test_a_daemon_that_dies_of_each_change_makes_one_an_hour(make: Make, back_s: float) -> None:
    facts, now_s, begun = Facts(), 10_000_000.0, list[float]()
    for _ in range(12):  # each run lives for a quarter of an hour at most
        hall = make(facts=facts)
        hall.clock.now_s = now_s
        await hall.start()
        hall.fill(1, 30_000, SMALL)
        for _ in range(900):
            await hall.run(1)
            if hall.link("gpu0").loading is not None or hall.servers["gpu0"].changes:
                begun.append(hall.clock.now_s)
                break
        now_s, facts = hall.clock.now_s + 5, Facts(hall.facts)  # killed
        if begun and back_s:
            now_s, back_s = now_s - back_s, 0.0  # somebody sets the clock back, once
            begun.clear()
    assert begun
    assert all(later - earlier >= 3600 for earlier, later in pairwise(begun)), begun


async def test_the_hour_of_a_profile_goes_on_over_a_restart_on_every_server(make: Make) -> None:
    hall = make(servers=2)
    await hall.start()
    hall.fill(1, 60_000, SMALL)
    while not any(port.changes for port in hall.servers.values()):
        await hall.run(1)
    changed_s = hall.clock.now_s
    again = make(servers=2, facts=Facts(hall.facts))  # killed
    again.facts.pop("slots_changed/gpu0")  # the server has another name now
    again.clock.now_s = changed_s + 60
    await again.start()
    again.fill(1, 60_000, SMALL)
    await again.run(3600 - 90)
    assert not any(port.changes for port in again.servers.values())
    assert "the next may in" in next(iter(again.tuner.stands())).waits
    await again.run(200)
    assert sum(len(port.changes) for port in again.servers.values()) == 1


async def test_a_clock_set_back_costs_an_hour_at_most(make: Make) -> None:
    hall = make(facts=Facts({"slots_changed/gpu0": str(int(WALL_S) + 10**9)}))
    await hall.start()
    hall.fill(1, 60_000, SMALL)
    await hall.run(3590)
    assert not hall.servers["gpu0"].changes
    await hall.run(120)
    assert hall.servers["gpu0"].changes


@pytest.mark.parametrize("text", ["", "-5", "NaN", "1e400", "9" * 400, "yesterday", "null"])
async def test_a_time_of_a_change_that_is_none_counts_nothing(make: Make, text: str) -> None:
    hall = make(facts=Facts({"slots_changed/gpu0": text}))
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(300)
    assert hall.servers["gpu0"].changes


ABSURD: list[Callable[[dict[str, Any]], object]] = [
    lambda known: known.update(chosen=-4),
    lambda known: known.update(chosen=1000),
    lambda known: known.update(chosen=5),
    lambda known: known.update(start=0),
    lambda known: known.update(start=-8),
    lambda known: known.update(start=10**30),
    lambda known: known["tried"].update({"0": known["tried"]["32"] | {"slots": 0}}),
    lambda known: known["tried"].update({"5": known["tried"]["32"] | {"slots": 5}}),
    lambda known: known["tried"].update({"128": known["tried"]["32"] | {"slots": 128}}),
    lambda known: known["tried"]["32"].update(slots=16),
    lambda known: known["tried"]["32"].update(tokens_per_s=-1.0),
    lambda known: known["tried"]["32"].update(tokens_per_s=0.0),
    lambda known: known["tried"]["32"].update(tokens_per_s=1e300),
    lambda known: known["tried"]["32"].update(tokens_per_s=None),
    lambda known: known["tried"]["32"].update(spread=-0.1),
    lambda known: known["tried"]["32"].update(answers=-1),
    lambda known: known["tried"]["32"].update(windows=0),
    lambda known: known["tried"]["32"].update(at_s=1e300),
    lambda known: known["cannot"].update({"-1": DOES_NOT_FIT}),
    lambda known: known["vram_bytes"].update({"32": -5}),
    lambda known: known["vram_bytes"].update({"32": 2**62}),
    lambda known: known["vram_bytes"].update({"32": 200 * 2**30}),
    lambda known: known["vram_bytes"].update({"8": 2**30, "12": 20 * 2**30}),
    lambda known: known["begun"].update({"0": 1}),
    lambda known: known.update(mix=[-1.0, 5.0]),
    lambda known: known.update(mix="?"),
]


@pytest.mark.parametrize("number", [-1, *range(len(ABSURD))])
async def test_absurd_numbers_that_were_kept_are_not_believed(
    make: Make, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    known = TRIED | {"versions": {}, "vram_bytes": {}, "begun": {}, "cannot": {}, "chosen": 32}
    known = msgspec.json.decode(msgspec.json.encode(known))
    if number >= 0:
        ABSURD[number](known)
    await starts_with(make, msgspec.json.encode(known).decode(), caplog, believed=number < 0)


@pytest.mark.parametrize("text", ["NaN", "{", '{"start": NaN}', "[]", '{"start": 8, "tried": {"8": 1e400}}'])
async def test_what_is_no_fact_is_not_believed(make: Make, text: str, caplog: pytest.LogCaptureFixture) -> None:
    await starts_with(make, text, caplog, believed=False)


TRIED: dict[str, Any] = {
    "start": 8,
    "model": SMALL.model,
    "device": "L40S",
    "context_length": SMALL.context_length,
    "mix": [10.0, 100.0],
    "tried": {
        str(slots): {"slots": slots, "tokens_per_s": 100.0 + slots, "answers": 200, "at_s": WALL_S}
        for slots in (4, 8, 16, 32)
    },
}


async def starts_with(make: Make, text: str, caplog: pytest.LogCaptureFixture, *, believed: bool) -> None:
    hall = make(facts=Facts({f"tuned/L40S/{SMALL.model}/{SMALL.context_length}": text}))
    hall.servers["gpu0"].memory_bytes = 48 * 2**30
    assert [one.chosen for one in hall.tuner.kept.all()] in ([32], []), "what operators are shown"
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(20)
    assert hall.servers["gpu0"].slots == (32 if believed else 8)
    assert len([one for one in caplog.records if "slots_not_believed" in one.getMessage()]) == (not believed)
    if not believed:
        await hall.run(200)
        assert found(hall).start == 8 and found(hall).tried, "measured anew"
