"""Who is blamed for crashes: one request, settings that many requests share, or the server.

Of :mod:`obatchd.dispatch.trials` and :mod:`obatchd.dispatch.controls`, with servers that crash as the test says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from dispatch_support import CRASH, SERVER, SMALL, FakeWorker, Key, Make, Rig, rigs, settle

from obatchd.dispatch import controls as controls_module
from obatchd.dispatch import offering as offering_module
from obatchd.dispatch import outcomes as outcomes_module
from obatchd.dispatch.events import INTERRUPTED
from obatchd.dispatch.holds import STOPPING
from obatchd.dispatch.trials import Suspicion
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import repeated_line, written_line

Guilty = Callable[[str, Key, bytes], bool]  # whether a request crashes a server
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x)$"}}}


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(controls_module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(outcomes_module, "_ONE_CRASH_S", 0.0)
    async with rigs(slots=4) as make:
        yield make


async def play(rig: Rig, guilty: Guilty, rounds: int = 2000) -> list[list[Key]]:
    """Let the servers work until nothing more happens; what was in flight in each crash."""
    crashes: list[list[Key]] = []
    idle = 0
    for _ in range(rounds):
        workers = [worker for worker in FakeWorker.made if worker.held]
        idle = 0 if workers else idle + 1
        if idle > 50 or not rig.queue.total() + len(workers):
            break
        for worker in workers:
            running = list(worker.held)[: rig.ports[worker.name].slots]
            worker.begin(*running)
            crashed = any(guilty(worker.name, key, worker.held[key].raw) for key in running)
            worker.end_all(running, CRASH if crashed else None)
            if crashed:
                crashes.append(running)
        await settle()
        for link in rig.dispatcher.links.values():
            link.held_until_s = 0.0
        rig.dispatcher.wake()
        await settle()
    return crashes


def codes(rig: Rig, job: int = 1) -> Counter[str]:
    ended = [finished for finished in rig.finished if finished.job == job]
    assert len({finished.line for finished in ended}) == len(ended), "one outcome each"
    return Counter("" if f.succeeded else json.loads(f.record)["code"] for f in ended)


@pytest.mark.parametrize("servers", [1, 2, 4])
async def test_requests_are_not_blamed_for_servers_that_cannot_answer_one_token(make: Make, servers: int) -> None:
    rig = await make(servers=servers)
    for port in rig.ports.values():
        port.works = False
    await rig.add(1, 500)
    crashes = await play(rig, lambda *_: True)
    assert (codes(rig), len(crashes)) == ({}, servers), "each server crashed once, and gets nothing before it works"
    assert all(len(port.strikes) > 2 for port in rig.ports.values()), "it is restarted until its start limit is reached"
    for port in rig.ports.values():
        port.works = True
    rig.dispatcher.wake()
    await settle()
    await play(rig, lambda *_: False)
    assert codes(rig) == {"": 500}
    assert all(suspicion.crashes == 0 for suspicion in rig.dispatcher.suspicion.values())


async def test_nobody_is_blamed_where_one_of_two_servers_is_broken(make: Make) -> None:
    rig = await make(servers=2)
    rig.ports["gpu0"].works = False
    await rig.add(1, 500)
    crashes = await play(rig, lambda server, *_: server == "gpu0")
    assert (codes(rig), len(crashes)) == ({"": 500}, 1)


@pytest.mark.parametrize("servers", [1, 3])
async def test_one_bad_prompt_on_healthy_servers_is_poison(make: Make, servers: int) -> None:
    rig = await make(servers=servers)
    await rig.add(1, 60)
    crashes = await play(rig, lambda _, key, __: key == (1, 2))
    assert codes(rig) == {"": 59, "poison": 1}
    assert len(crashes) <= 4 and crashes[-2:] == [[(1, 2)], [(1, 2)]]
    [record] = [json.loads(f.record) for f in rig.finished if not f.succeeded]
    assert "2 of these while they worked on nothing else" in record["message"]


async def test_a_bad_prompt_that_is_answered_many_times_is_poison_for_all_its_answers(make: Make) -> None:
    rig = await make(servers=1)
    lane = rig.queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 1000.0))
    keys = [repeated_line(line, number) for line in range(1, 4) for number in range(1, 11)]
    rig.queue.extend(lane, len(keys), [Pending(key, b'{"id":"x"}') for key in keys])
    rig.dispatcher.wake()
    await settle()
    crashes = await play(rig, lambda _, key, __: written_line(key[1])[0] == 2)
    assert codes(rig) == {"": 20, "poison": 10}
    alone = Counter(crash[0] for crash in crashes if len(crash) == 1)
    assert len(alone) <= 2, "each answer was tried until it was poison by itself"


async def test_a_schema_that_crashes_servers_is_judged_once_and_harms_no_other_job(make: Make) -> None:
    rig = await make(servers=1)
    rig.formats[1] = SCHEMA
    await rig.add(1, 200)
    await rig.add(2, 20, owner=2)
    crashes = await play(rig, lambda _, key, __: key[0] == 1)
    assert codes(rig, 2) == {"": 20}
    assert codes(rig, 1) == {"format_crashes": 200}
    assert len(crashes) <= 5
    assert len(rig.ports["gpu0"].strikes) == len(crashes[0]), "what suspects do is no strike"
    record = json.loads(rig.finished[-1].record)
    assert "format" in record["message"] and SMALL.model in record["message"]
    first, last = rig.finished[0], rig.finished[19]
    assert {first.job, last.job} == {2}, "innocents go first"


async def test_settings_of_lines_are_told_apart(make: Make) -> None:
    rig = await make(servers=2)
    bad, good = (json.dumps({"id": "x", "format": {"type": kind}}).encode() for kind in ("array", "object"))
    for _ in range(10):
        await rig.add(1, 5, raw=bad)
        await rig.add(1, 5, raw=good)
    crashes = await play(rig, lambda _, __, raw: raw == bad)
    assert codes(rig) == {"": 50, "format_crashes": 50}
    assert len(crashes) <= 8


async def test_a_cause_without_a_schema_is_named_by_what_there_is(make: Make) -> None:
    rig = await make(servers=2)
    await rig.add(1, 30, raw=b'{"id":"x","options":{"mirostat":2}}')
    await play(rig, lambda *_: True)
    assert codes(rig) == {"settings_crash": 30}
    assert "options" in json.loads(rig.finished[-1].record)["message"]


async def test_a_few_requests_that_crash_alone_do_not_condemn_those_that_are_answered(make: Make) -> None:
    rig = await make(servers=1)
    await rig.add(1, 40)
    await play(rig, lambda _, key, __: key[1] in (1, 2, 3, 9, 17))
    assert codes(rig) == {"": 35, "poison": 5}


async def test_a_server_that_crashed_gets_nothing_before_its_control(make: Make) -> None:
    rig = await make(servers=1)
    rig.ports["gpu0"].may_load.clear()
    await rig.add(1, 8)
    worker = rig.worker("gpu0")
    running = list(worker.held)[:4]
    worker.begin(*running)
    worker.end_all(running, CRASH)
    await settle()
    assert worker.held == {} and rig.link("gpu0").loading is not None
    rig.ports["gpu0"].may_load.set()
    await settle()
    assert len(worker.held) == 1, "one request, to see whether the others are innocent"


async def test_nobody_waits_for_the_control_of_a_server_that_is_out_of_use(make: Make) -> None:
    rig = await make(servers=1)
    await rig.add(1, 3)
    worker, port = rig.worker("gpu0"), rig.ports["gpu0"]
    worker.begin(*list(worker.held))
    port.out_of_use, port.is_ready = True, False
    worker.end_all(list(worker.held), CRASH)
    await settle()
    assert {suspicion.crashes for suspicion in rig.dispatcher.suspicion.values()} == {0}


async def test_requests_to_be_tried_alone_are_not_put_off_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await make(servers=1)
    rig.formats[1] = SCHEMA
    await rig.add(1, 4)
    worker = rig.worker("gpu0")
    worker.begin(*list(worker.held))
    worker.end_all(list(worker.held), CRASH)
    await rig.add(2, 1000, owner=2)
    assert {job for job, _ in worker.held} == {2}
    monkeypatch.setattr(offering_module, "_PATIENCE_S", 0.0)
    for _ in range(6):
        for key in list(worker.held):
            worker.end(key)
        await settle()
        if [job for job, _ in worker.held] == [1]:
            return
    pytest.fail("it never had a turn")


async def test_attempts_that_end_in_a_crash_are_not_counted(make: Make) -> None:
    rig = await make(max_attempts=2)
    await rig.add(1, 1)
    worker = rig.worker("gpu0")
    worker.begin((1, 1))
    worker.end((1, 1), CRASH)
    await settle()
    worker.end((1, 1), SERVER)
    await settle()
    assert rig.finished == [] and worker.held[1, 1].attempt == 3
    worker.end((1, 1), SERVER)
    assert codes(rig) == {"server_error": 1}


async def test_a_crash_alone_is_recorded_as_one_when_the_server_works(make: Make) -> None:
    rig = await make()
    await rig.add(1, 1)
    rig.dispatcher.suspect(1, {1: Suspicion(crashes=2)})
    crashes = await play(rig, lambda *_: True)
    assert codes(rig) == {"poison": 1}
    assert [failed.fault for failed in rig.failed][-2:] == ["crash", "crash_alone"]
    assert len(crashes) == 3


@pytest.mark.parametrize("told_first", [True, False])
@pytest.mark.parametrize("fault", [CRASH, SERVER])
async def test_what_fails_with_the_stop_of_the_daemon_is_no_attempt(make: Make, told_first: bool, fault: Any) -> None:
    rig = await make(max_attempts=1 if told_first else 2)
    await rig.add(1, 3)
    worker = rig.worker("gpu0")
    worker.begin((1, 1), (1, 2))
    if told_first:
        rig.dispatcher.holds.hold(STOPPING)
    worker.end_all([(1, 1), (1, 2)], fault)
    if not told_first:
        rig.ports["gpu0"].is_ready = fault is CRASH
        rig.dispatcher.holds.hold(STOPPING)
    await rig.dispatcher.stop()
    recorded = {(failed.line, failed.attempt): failed.fault for failed in rig.failed}
    assert recorded == {(1, 1): INTERRUPTED, (2, 1): INTERRUPTED}
    assert rig.finished == []


@pytest.mark.parametrize(("fault", "just_before_s"), [(SERVER, 10.0), (CRASH, 0.0)])
async def test_what_failed_long_before_the_stop_or_on_a_server_that_goes_on_is_an_attempt(
    make: Make, monkeypatch: pytest.MonkeyPatch, fault: Any, just_before_s: float
) -> None:
    monkeypatch.setattr(outcomes_module, "_JUST_BEFORE_S", just_before_s)
    rig = await make()
    await rig.add(1, 1)
    rig.worker("gpu0").end((1, 1), fault)
    rig.dispatcher.holds.hold(STOPPING)
    assert [failed.fault for failed in rig.failed] == [fault.kind]
