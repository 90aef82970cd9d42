"""Dispatch keeps families together: on a simulated fleet whose slots keep what they computed last."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable

import pytest
from dispatch_support import SMALL, Make, rigs, settle
from family_fleet import Fleet
from places_support import places_at

from obatchd.jobs.lane import WINDOW_FETCH, Lane, Pending


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with rigs(2) as made:
        yield made


async def fleet_of(make: Make, servers: int = 2, slots: int = 2, **settings: str) -> Fleet:
    return Fleet(await make(servers, slots, **settings))


def in_order(documents: int, questions: int) -> list[int]:
    return [1000 + document for document in range(documents) for _ in range(questions)]


def shuffled(documents: int, questions: int) -> list[int]:
    families = in_order(documents, questions)
    random.Random(1).shuffle(families)
    return families


async def wall_s(make: Make, asked: Iterable[int | None], **settings: str) -> tuple[float, Fleet]:
    fleet = await fleet_of(make, **settings)
    await fleet.add(1, asked)
    await fleet.run()
    return fleet.now_s, fleet


@pytest.mark.parametrize(("mix", "goal"), [(in_order, 0.5), (shuffled, 0.5)])
async def test_each_document_is_computed_about_once(make: Make, mix: type[list[int]], goal: float) -> None:
    families = mix(8, 5)  # type: ignore[call-arg]
    before_s, before = await wall_s(make, families, families="off")
    took_s, fleet = await wall_s(make, families)
    assert fleet.cold <= 8 + 3 < before.cold, "once, and at the end of the job for the sake of free slots"
    assert took_s <= goal * before_s
    assert fleet.idle_s == 0 and len(set(fleet.order)) == 40


async def test_a_family_has_one_request_at_a_server_while_others_fill_the_slots(make: Make) -> None:
    fleet = await fleet_of(make, servers=2, slots=4)
    await fleet.add(1, in_order(40, 6))
    for until_s in range(5, 100):
        await fleet.run(until_s)
        if fleet.rig.queue.total() < 60:
            break
        at_work = [kind for server in ("gpu0", "gpu1") for kind in fleet.families_of(server)]
        assert len(at_work) == len(set(at_work)) == 8
    await fleet.run()
    assert fleet.idle_s == 0


async def test_without_families_and_when_off_the_order_is_that_of_input(make: Make) -> None:
    begun = []
    for families, settings in (([None] * 60, {}), (list(range(60)), {}), (shuffled(6, 10), {"families": "off"})):
        fleet = await fleet_of(make, **settings)
        fleet.warm_s = fleet.cold_s
        await fleet.add(1, families)
        await fleet.run()
        begun.append(fleet.order)
        assert fleet.idle_s == 0
    assert begun[0] == begun[1] == begun[2] and max(abs(at - line) for at, line in enumerate(begun[0], 1)) <= 2


async def test_where_there_are_fewer_families_than_free_slots_the_order_is_that_of_input(make: Make) -> None:
    fleet = await fleet_of(make, servers=2, slots=2)
    await fleet.add(1, in_order(3, 10))
    await fleet.run(0)
    assert fleet.order == [1, 2, 3, 4]
    await fleet.run()
    assert fleet.idle_s == 0


async def test_a_family_longer_than_everything_takes_every_slot(make: Make) -> None:
    fleet = (await wall_s(make, [7] * 300))[1]
    assert fleet.order == list(range(1, 301)) and fleet.cold == 4 and fleet.idle_s == 0


async def test_nobody_waits_for_long_behind_other_families(make: Make) -> None:
    fleet = await fleet_of(make, servers=2, slots=2)
    families = shuffled(60, 5)
    await fleet.add(1, families)
    await fleet.run()
    assert all(at <= 5 * line + 4 * 5 for at, line in enumerate(fleet.order, 1)), "families of five"
    assert fleet.cold <= 66 and fleet.idle_s == 0
    ordered = (await wall_s(make, in_order(60, 5)))[1]
    assert max(at - line for at, line in enumerate(ordered.order, 1)) <= 4 * 5, "four slots, families of five"


async def test_near_the_end_of_a_job_long_families_begin_first_so_that_servers_end_together(make: Make) -> None:
    lengths = [2, 1, 3, 2, 5, 1, 2, 3, 8, 2, 5, 20]
    families = [1000 + number for number, length in enumerate(lengths) for _ in range(length)]
    fleet = (await wall_s(make, families))[1]
    assert fleet.order[0] == families.index(1011) + 1, "the longest"
    assert fleet.cold <= len(lengths) + 1 and fleet.idle_s == 0
    assert fleet.now_s <= 1.1 * sum(one.took_s for one in fleet.begun) / 4, "four slots"
    fleet = (await wall_s(make, families + [None] * 300))[1]
    assert fleet.order[:4] == [1, 3, 4, 7], "long before the end in input order"


@pytest.mark.parametrize("families", [in_order(200, 5), [7] * (3 * WINDOW_FETCH)])
async def test_owners_get_equal_shares_whoever_has_families(make: Make, families: list[int]) -> None:
    fleet = await fleet_of(make, servers=2, slots=4)
    noise = random.Random(3)
    fleet.answer_s = lambda key: noise.uniform(0.2, 3.0)
    await fleet.add(1, families, owner=1)
    await fleet.add(2, [None] * 3000, owner=2)
    await fleet.run(600)
    assert fleet.rig.queue.total() > 0
    shares = [fleet.slot_s[owner] / sum(fleet.slot_s.values()) for owner in (1, 2)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.025), "within 5 % of equal"
    assert fleet.idle_s == 0


async def test_the_turn_of_an_owner_is_never_passed_for_a_family(make: Make) -> None:
    fleet = await fleet_of(make, servers=1, slots=2)
    await fleet.add(1, in_order(10, 10), owner=1)
    await fleet.add(2, [None] * 50, owner=2)
    await fleet.run(50 * fleet.cold_s)
    by_owner = [one.key[0] for one in fleet.begun]
    used = {1: 0.0, 2: 0.0}
    for one in fleet.begun:
        used[one.key[0]] += one.took_s
        assert abs(used[1] - used[2]) <= 4 * (fleet.cold_s + 1)
    assert {1, 2} == set(by_owner)


async def test_a_retry_goes_first_and_elsewhere_whatever_its_family(make: Make) -> None:
    from dispatch_support import SERVER

    rig = await make(2, 2)
    fleet = Fleet(rig)
    await fleet.add(1, in_order(20, 5))
    await fleet.run(0)
    server = fleet.begun[0].server
    other = next(name for name in rig.ports if name != server)
    rig.worker(server).end((1, 1), SERVER)
    lane = rig.queue._lanes[1][0]
    assert (lane.window[0].line, lane.window[0].servers) == (1, [server])
    places = places_at(1, {server: [(1, 1000)], other: [(1, 1004)]}, {})
    here = rig.queue.take(SMALL, 1, server, {server, other}, places=places)
    assert here[0].pending.line != 1, "left for another server, although this one has its family"
    there = rig.queue.take(SMALL, 1, other, {server, other}, places=places)
    assert there[0].pending.line == 1, "first, although a free slot has another family"


async def test_a_server_whose_model_was_loaded_anew_or_whose_process_ended_has_nothing_computed(make: Make) -> None:
    fleet = await fleet_of(make, servers=1, slots=2)
    await fleet.add(1, in_order(10, 2))
    await fleet.run(0)
    link, worker = fleet.rig.link("gpu0"), fleet.rig.worker("gpu0")
    fleet.rig.dispatcher.holds.hold("paused")
    for key in list(worker.held):
        worker.end(key)
    assert link.warm == [(1, 1000), (1, 1001)]
    await link.load(SMALL)
    assert link.warm == [], "a load leaves nothing"
    fleet.rig.dispatcher.holds.release("paused")
    await settle()
    worker.begin(*worker.held)
    fleet.rig.dispatcher.holds.hold("paused")
    for key in list(worker.held):
        worker.end(key)
    assert link.warm == [(1, 1002), (1, 1003)]
    port = fleet.rig.ports["gpu0"]
    port.is_ready = False
    fleet.rig.dispatcher.server_changed(port)
    port.is_ready = True
    fleet.rig.dispatcher.server_changed(port)
    assert link.warm == [], "nor does the end of its process"


def lane_of(families: Iterable[int | None]) -> Lane:
    lane = Lane(1, 0, 1, SMALL, "normal", 0.0)
    lane.put([Pending(line, b"{}", family=family) for line, family in enumerate(families, 1)])
    return lane


def test_a_lane_counts_the_families_of_its_window() -> None:
    lane = lane_of([None, 5, 5, 6, None])
    assert (lane.kinds, lane.related, lane.members, lane.kindred) == (4, 3, {5: 2, 6: 1}, True)
    places = places_at(1, {"gpu0": [(1, 6)]}, {"gpu1": [(1, 5)]})
    pending = lane.pop("gpu0", frozenset(), places)
    assert pending is not None and pending.line == 4, "of the family that its free slot has"
    pending = lane.pop("gpu0", frozenset(), places)
    assert pending is not None and pending.line == 1, "else the first that is of no family at work"
    assert (lane.kinds, lane.related, lane.members) == (2, 2, {5: 2})
    lane.put_back(pending)
    lane.remove(lane.window[2])
    assert [one.line for one in lane.window] == [1, 2, 5] and lane.members == {5: 1}
    while lane.pop("gpu0", frozenset()) is not None:
        pass
    assert (lane.kinds, lane.related, lane.members) == (0, 0, {})


@pytest.mark.parametrize(("families", "told"), [([5, 5, 6, 6, None], 2), ([5, 6, 7, 8, 9], 0)])
async def test_a_server_tells_how_many_families_it_has_where_any_requests_begin_alike(
    make: Make, families: list[int | None], told: int
) -> None:
    fleet = await fleet_of(make, servers=1, slots=8)
    await fleet.add(1, families)
    await fleet.run(0)
    link = fleet.rig.link("gpu0")
    assert len(link.offers) == 5 and link.families == told


def test_a_family_is_split_over_servers_before_it_gets_two_slots_of_one() -> None:
    lane = lane_of([5, 5, 5, 6, 6])
    places = places_at(2, {"gpu1": []}, {"gpu0": [(1, 5), (1, 6)], "gpu1": []})
    lines = [pending.line for _ in range(2) if (pending := lane.pop("gpu1", frozenset(), places)) is not None]
    assert lines == [1, 4]
    places = places_at(1, {}, {"gpu1": [(1, 5), (1, 6)]})
    pending = lane.pop("gpu1", frozenset(), places)
    assert pending is not None and pending.line == 2, "no slot is idle for the sake of a family"


def test_the_family_with_most_requests_is_split_unless_a_free_slot_waits_for_it() -> None:
    lane = lane_of([5, 6, 6, 7, 7, 7])
    at_work = {"gpu0": [(1, 5), (1, 6), (1, 7)]}
    chosen = places_at(1, {}, at_work).choose(lane, "gpu1")
    assert lane.window[chosen].line == 4
    chosen = places_at(2, {"gpu0": [(1, 7)]}, at_work).choose(lane, "gpu1")
    assert lane.window[chosen].line == 2, "gpu0 goes on with 7 itself"
    chosen = places_at(2, {"gpu0": [(1, 7)]}, {"gpu1": [(1, 5), (1, 6)]}).choose(lane, "gpu1")
    assert lane.window[chosen].line == 4, "rather than a second slot of gpu1 for one family"
    lane.unread = 1
    chosen = places_at(1, {}, {"gpu0": [(1, 5)]}).choose(lane, "gpu1")
    assert lane.window[chosen].line == 2, "the first that is nowhere, while others are to come"
