"""The search for slots beside people: neither may stall the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from dispatch_support import SMALL, settle
from tuning_support import Clock, Hall, TunedPort

from obatchd.simulator.config import Throughput

CURVE = Throughput([(1, 20.0), (64, 1280.0)])
MakeHall = Callable[..., Hall]


@pytest.fixture
async def hall(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeHall]:
    made: list[Hall] = []

    def build(**settings: Any) -> Hall:
        clock = Clock()
        made.append(Hall(monkeypatch, clock, TunedPort("gpu0", {SMALL: CURVE}, clock), **settings))
        return made[-1]

    yield build
    for each in made:
        await each.dispatcher.stop()


async def test_a_search_ends_beside_people_for_whom_a_slot_is_kept(hall: MakeHall) -> None:
    here = hall(interactive_slots=1, tune_pause_s=1)
    await here.start()
    here.fill(1, 30_000, SMALL)
    await here.run(3600)
    assert max(port.slots for port in here.servers.values()) == 64


async def test_a_server_that_is_emptied_for_its_slots_is_given_to_somebody_who_asks_at_once(hall: MakeHall) -> None:
    here = hall()
    await here.start()
    here.fill(1, 30_000, SMALL)
    while here.link("gpu0").switching_to is None:
        await here.run(1)
    here.clock.now_s += 0.01  # the tuner has just looked
    here.waiting = True
    worker, left = here.worker("gpu0"), here.servers["gpu0"].changes
    for key in list(worker.held):
        worker.end(key)
    await settle()
    assert not left and here.link("gpu0").switching_to is None


async def test_a_change_that_gave_way_is_not_begun_again_at_once(hall: MakeHall) -> None:
    here = hall()
    await here.start()
    here.fill(1, 30_000, SMALL)
    while here.link("gpu0").switching_to is None:
        await here.run(1)
    here.waiting = True
    await here.run(1)
    here.waiting = False
    await here.run(3)
    assert here.link("gpu0").switching_to is None, "it would be emptied again for nothing"
