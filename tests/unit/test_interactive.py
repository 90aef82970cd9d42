"""Requests of people beside batches: order, shares, kept slots, crashes, ends. Workers are played by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest
from dispatch_support import BAD_REQUEST, CRASH, LARGE, REFUSED, SERVER, SMALL, FakeWorker, Make, Port, Rig, settle

from obatchd.dispatch import dispatcher as dispatcher_module
from obatchd.dispatch import offering as offering_module
from obatchd.dispatch import protocol, switching
from obatchd.dispatch.holds import DRAINING, PAUSED, STOPPING
from obatchd.dispatch.interactive.desk import Desk, read_question
from obatchd.dispatch.interactive.lease import Delta, Ended, Lease, Question
from obatchd.dispatch.protocol import INTERACTIVE
from obatchd.errors import InteractiveError, ModelError
from obatchd.jobs.lane import Lane, Pending, Taken
from obatchd.ollama.faults import Fault

ME, OTHER = 1000, 1
Key = tuple[int, int]


class Clock:
    """Monotonic time that the test moves; asyncio's own clock goes on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    monotonic = __call__


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(dispatcher_module, "Desk", partial(Desk, clock=made))
    monkeypatch.setattr(switching, "time", made)
    return made


@pytest.fixture
async def make(clock: Clock) -> AsyncIterator[Make]:
    made: list[Rig] = []

    async def make(servers: int = 1, slots: int = 2, loaded: Any = SMALL, **settings: Any) -> Rig:
        ports = [Port(f"gpu{i}", slots, loaded) for i in range(servers)]
        made.append(await Rig(*ports, **{"interactive_slots": 0} | settings).start())
        return made[-1]

    yield make
    for each in made:
        await each.dispatcher.stop()


async def ask(rig: Rig, prompt: str = "why?", owner: int = ME, model: str = "small", **question: Any) -> Lease:
    context = {"small": 4096, "large": 8192}[model.removesuffix(":latest")]
    raw = json.dumps({"prompt": prompt, "model": model, "context_length": context}).encode()
    lease = rig.dispatcher.desk.ask(Question(raw, **question), owner)
    await settle()
    return lease


def key(lease: Lease) -> Key:
    return INTERACTIVE, lease.number


async def result(lease: Lease) -> Ended:
    async with asyncio.timeout(1):
        return await lease.result()


def at(rig: Rig, lease: Lease) -> FakeWorker | None:
    """The worker that has it."""
    found = [worker for worker in FakeWorker.made if not worker.dead.is_set() and key(lease) in worker.held]
    return found[0] if found else None


def batch(worker: FakeWorker) -> list[Key]:
    return [each for each in worker.held if each[0] != INTERACTIVE]


async def begin_all(rig: Rig) -> None:
    """Every request that a worker has a slot for begins."""
    for port in rig.ports.values():
        worker = rig.worker(port.id)
        free = port.slots - len(worker.started)
        ready = sorted((each for each in worker.held if each not in worker.started), key=lambda each: each[0] != 0)
        if begins := ready[: max(0, free)]:
            worker.begin(*begins)
    await settle()


async def end(worker: FakeWorker, each: Key, **how: Any) -> None:
    worker.end(each, **how)
    await settle()


async def full(rig: Rig, lines: int = 100, owner: int = OTHER, job: int = 1) -> None:
    """A batch has every slot."""
    await rig.add(job, lines, owner=owner)
    await begin_all(rig)


async def test_an_answer_comes_in_pieces_and_as_a_record(make: Make) -> None:
    rig = await make()
    lease = await ask(rig)
    worker = rig.worker("gpu0")
    assert (offer := worker.sent[-1]) == protocol.Offer("small", {"num_ctx": 4096}, offer.items, [], 1, True)  # type: ignore[attr-defined]
    await begin_all(rig)
    worker.say(key(lease), "be")
    worker.say(key(lease), "cause")
    await end(worker, key(lease))
    assert [delta async for delta in lease] == [Delta("because")]
    ended = await result(lease)
    assert ended.succeeded and msgspec.json.decode(ended.record)["servers"] == ["gpu0"]
    assert rig.finished == [] and rig.dispatcher.unrecorded_starts() == []  # nothing for the store
    assert [(answer.server, answer.response_tokens > 0) for answer in rig.of_nobody] == [("gpu0", True)]


async def test_one_begins_before_the_batches_of_everybody(make: Make) -> None:
    rig = await make(servers=2)
    await full(rig)
    await rig.add(2, 50, owner=ME, priority="high")
    lease = await ask(rig)
    assert at(rig, lease) is None
    # No request of a batch waits at a worker: it would take the slot that becomes free.
    assert [len(rig.worker(name).held) for name in rig.ports] == [2, 2]
    worker = rig.worker("gpu1")
    await end(worker, batch(worker)[0])
    assert at(rig, lease) is worker
    await begin_all(rig)
    assert [len(rig.worker(name).held) for name in rig.ports] == [3, 3]  # and they are sent ahead again
    assert rig.queue.total() + 5 + len(rig.finished) == 150


async def test_batches_are_not_held_up_by_one_that_needs_another_model(make: Make) -> None:
    rig = await make()
    await full(rig)
    lease = await ask(rig, model="large")
    assert at(rig, lease) is None
    assert len(rig.worker("gpu0").held) == 3


async def test_the_owner_who_has_used_least_is_next(make: Make) -> None:
    rig = await make(slots=1)
    first = await ask(rig, owner=5)
    await begin_all(rig)
    waiting = [await ask(rig, owner=owner) for owner in (5, 6, 5)]
    await end(rig.worker("gpu0"), key(first), took_s=30.0)
    assert at(rig, waiting[1]) is not None
    await begin_all(rig)
    await end(rig.worker("gpu0"), key(waiting[1]), took_s=1.0)
    assert at(rig, waiting[0]) is not None, "in the order of one owner's questions"


async def test_answers_are_charged_to_their_owner(make: Make) -> None:
    rig = await make()
    before_s = rig.queue.used_s(ME)
    lease = await ask(rig)
    assert rig.queue.used_s(ME) == before_s + 1.0  # the first estimate
    await begin_all(rig)
    await end(rig.worker("gpu0"), key(lease), took_s=7.0)
    assert rig.queue.used_s(ME) == before_s + 7.0


@pytest.mark.parametrize("used_before_s", [0.0, 1000.0])
async def test_an_owner_has_half_of_the_slots_while_others_wait(make: Make, used_before_s: float) -> None:
    """Beyond that he has what batches have: a turn when he has used least."""
    rig = await make(servers=4, slots=4)
    await full(rig, 1000)
    lease = await ask(rig)
    rig.queue.charge(lease.taken, used_before_s)
    for number in range(200):
        await ask(rig, f"question {number}")
    shares = []
    for step in range(160):
        worker = rig.worker(f"gpu{step % 4}")
        await end(worker, worker.started[0], took_s=1.0)
        await begin_all(rig)
        shares.append(sum(len(w.held) - len(batch(w)) for w in map(rig.worker, rig.ports)))
    if used_before_s:
        assert set(shares[32:]) <= {7, 8}
    else:
        assert min(shares[32:]) >= 7 and max(shares[32:]) <= 9


async def test_an_owner_may_have_all_slots_while_nobody_else_waits(make: Make) -> None:
    rig = await make(servers=2, slots=4)
    leases = [await ask(rig, f"question {i}") for i in range(12)]
    assert sum(at(rig, lease) is not None for lease in leases) == 8


async def test_after_a_question_batches_leave_one_slot_in_sixteen_free(make: Make, clock: Clock) -> None:
    rig = await make(servers=4, slots=4, interactive_slots="auto")
    await full(rig, 1000)
    first = await ask(rig)
    worker = rig.worker("gpu2")
    await end(worker, batch(worker)[0])
    assert at(rig, first) is worker
    await begin_all(rig)
    await end(worker, key(first))
    for _ in range(3):  # whatever ends, one slot stays free, and only where one was
        for name in rig.ports:
            await end(rig.worker(name), batch(rig.worker(name))[0])
            await begin_all(rig)
    assert [len(rig.worker(name).started) for name in rig.ports] == [4, 4, 3, 4]
    assert len(worker.held) == 3, "no request of a batch waits there for the slot"
    second = await ask(rig)
    assert at(rig, second) is worker
    assert rig.dispatcher.desk.state().reserved_slots == 1  # type: ignore[union-attr]
    clock.now_s += 601
    await begin_all(rig)
    await end(worker, key(second))
    await begin_all(rig)
    assert [len(rig.worker(name).started) for name in rig.ports] == [4, 4, 4, 4]


async def test_a_free_slot_that_is_kept_is_no_reason_to_take_requests_back(make: Make) -> None:
    rig = await make(servers=2, slots=4, interactive_slots=1)
    await rig.add(1, 8)
    await begin_all(rig)
    await settle()
    recalls = sum(rig.worker(name).recalls for name in rig.ports)
    for _ in range(20):
        rig.dispatcher.wake()
        await settle()
    assert sum(rig.worker(name).recalls for name in rig.ports) == recalls
    await begin_all(rig)
    assert sorted(len(rig.worker(name).started) for name in rig.ports) == [3, 4]


async def test_the_only_slot_is_not_kept_from_batches(make: Make) -> None:
    rig = await make(slots=1, interactive_slots="auto")
    lease = await ask(rig)
    await begin_all(rig)
    await end(rig.worker("gpu0"), key(lease))
    await rig.add(1, 3)
    assert batch(rig.worker("gpu0"))


async def test_a_number_of_slots_is_kept_whoever_asks(make: Make) -> None:
    rig = await make(servers=2, slots=4, interactive_slots=3)
    await full(rig)
    assert sum(len(rig.worker(name).started) for name in rig.ports) == 5


async def test_closing_one_that_waits_ends_it(make: Make) -> None:
    rig = await make(slots=1)
    await full(rig)
    lease = await ask(rig)
    lease.close()
    await settle()
    assert (await result(lease)).code == "closed"
    assert not rig.dispatcher.desk.waits()
    assert len(rig.worker("gpu0").held) == 2


async def test_closing_one_gives_its_slot_to_the_next(make: Make) -> None:
    rig = await make(slots=1)
    lease, before_s = await ask(rig), rig.queue.used_s(ME)
    await begin_all(rig)
    await rig.add(1, 3)
    worker = rig.worker("gpu0")
    async with lease:
        pass
    await settle()
    assert protocol.CancelOne(*key(lease)) in worker.sent
    assert key(lease) not in rig.link("gpu0").offers
    assert batch(worker)
    assert rig.queue.used_s(ME) < before_s  # for the moment that it had the slot
    assert rig.finished == []


async def test_a_server_that_dies_before_the_first_token_is_not_noticed(make: Make) -> None:
    rig = await make(servers=2)
    lease = await ask(rig)
    first = at(rig, lease)
    assert first is not None
    await begin_all(rig)
    await end(first, key(lease), fault=SERVER)
    second = at(rig, lease)
    assert second is not None and second is not first
    assert second.held[key(lease)].attempt == 2
    await begin_all(rig)
    second.say(key(lease), "yes")
    await end(second, key(lease))
    assert [delta.text async for delta in lease] == ["yes"]
    assert (await result(lease)).succeeded


async def test_a_worker_that_dies_before_the_first_token_is_not_noticed(make: Make) -> None:
    rig = await make(servers=2)
    lease = await ask(rig)
    first = at(rig, lease)
    assert first is not None
    await begin_all(rig)
    first.die()
    await settle()
    assert at(rig, lease) not in (None, first)


async def test_a_server_that_dies_after_the_first_token_ends_the_stream(make: Make) -> None:
    rig = await make(servers=2)
    lease = await ask(rig)
    worker = at(rig, lease)
    assert worker is not None
    await begin_all(rig)
    worker.say(key(lease), "yes")
    await end(worker, key(lease), fault=SERVER)
    assert [delta.text async for delta in lease] == ["yes"]
    ended = await result(lease)
    assert (ended.succeeded, ended.code, ended.again) == (False, "server_error", True)
    assert at(rig, lease) is None


@pytest.mark.parametrize("how", ["host", "leaves", "restarts"])
async def test_who_has_seen_a_part_of_an_answer_is_told_why_it_was_cut_short(make: Make, how: str) -> None:
    rig = await make(servers=2)
    lease = await ask(rig)
    worker = at(rig, lease)
    assert worker is not None
    await begin_all(rig)
    worker.say(key(lease), "yes")
    code, words = "server_withdrawn", "its server is restarted"
    if how == "host":
        code, words = "host_lost", f"host node07 was lost, and the worker of server {worker.name} with it"
        worker.die(host="node07")
    elif how == "leaves":
        words = f"server {worker.name} is not obatchd's any more"
        await rig.dispatcher.detach(rig.ports[worker.name])
    else:
        moving = asyncio.create_task(rig.dispatcher.vacate(rig.link(worker.name), 0.0, words))
        await settle()
        [told] = [message for message in worker.sent if isinstance(message, protocol.GiveUp)]
        await end(worker, key(lease), fault=Fault(told.fault, told.code, told.message))
        await moving
    ended = await result(lease)
    assert (ended.code, ended.message, ended.again) == (code, f"the answer was cut short: {words}", True)
    assert at(rig, lease) is None


async def test_an_answer_that_is_not_streamed_may_come_from_another_server_at_any_time(make: Make) -> None:
    rig = await make(servers=2)
    lease = await ask(rig, stream=False)
    worker = at(rig, lease)
    assert worker is not None
    await begin_all(rig)
    worker.say(key(lease), "")
    await end(worker, key(lease), fault=SERVER)
    assert at(rig, lease) not in (None, worker)


async def test_two_servers_are_asked_at_most(make: Make) -> None:
    rig = await make(servers=3)
    lease = await ask(rig)
    for _ in range(2):
        worker = at(rig, lease)
        assert worker is not None
        await begin_all(rig)
        await end(worker, key(lease), fault=SERVER)
    assert (await result(lease)).code == "server_error"


async def controlled(rig: Rig, worker: FakeWorker) -> None:
    for _ in range(20):
        rig.dispatcher.wake()
        await settle()
    assert not rig.link(worker.name).owes_control


async def crash(rig: Rig, lease: Lease, *, works: bool = True) -> None:
    worker = at(rig, lease)
    assert worker is not None
    port = rig.ports[worker.name]
    port.works = works
    await begin_all(rig)
    await end(worker, key(lease), fault=CRASH)
    if works:
        await controlled(rig, worker)


async def test_one_that_crashed_two_servers_is_refused_for_ten_minutes(make: Make, clock: Clock) -> None:
    rig = await make(servers=3)
    lease = await ask(rig, "crash!")
    await crash(rig, lease)
    await crash(rig, lease)
    ended = await result(lease)
    assert (ended.code, ended.again) == ("poison", False)
    assert msgspec.json.decode(ended.record)["code"] == "poison"
    with pytest.raises(InteractiveError) as refused:
        await ask(rig, "crash!", owner=7)
    assert (refused.value.code, refused.value.retry_after_s) == ("poison", None)
    assert at(rig, await ask(rig, "another")) is not None
    clock.now_s += 601
    assert at(rig, await ask(rig, "crash!")) is not None


async def test_crashes_are_counted_over_questions_that_are_the_same(make: Make) -> None:
    """A client that asks again after its stream broke costs one more server, and no third one."""
    rig = await make(servers=3)
    for again in (True, False):
        lease = await ask(rig, "crash!")
        worker = at(rig, lease)
        assert worker is not None
        await begin_all(rig)
        worker.say(key(lease), "well")
        await crash(rig, lease)
        assert (await result(lease)).again == again


async def test_a_server_at_fault_by_itself_condemns_no_question(make: Make) -> None:
    rig = await make(servers=3)
    lease = await ask(rig, "innocent")
    await crash(rig, lease, works=False)
    await settle()
    await crash(rig, lease)
    assert at(rig, lease) is None
    assert (await result(lease)).code == "runner_crash"
    assert at(rig, await ask(rig, "innocent")) is not None


async def test_a_crash_beside_one_costs_a_batch_no_attempt(make: Make) -> None:
    rig = await make(servers=3, slots=4, max_attempts=1)
    await rig.add(1, 6)
    lease = await ask(rig, "crash!")
    for _ in range(2):
        worker = at(rig, lease)
        assert worker is not None
        await begin_all(rig)
        worker.end_all([*worker.started], CRASH)
        await controlled(rig, worker)
    assert (await result(lease)).code == "poison"
    for _ in range(20):
        await begin_all(rig)
        for name in rig.ports:
            for each in [*rig.worker(name).started]:
                await end(rig.worker(name), each)
    assert sorted(rig.lines()) == [(line, True) for line in range(1, 7)]


async def test_a_bad_request_ends_at_once(make: Make) -> None:
    rig = await make(servers=2)
    lease = await ask(rig)
    worker = at(rig, lease)
    assert worker is not None
    await end(worker, key(lease), fault=BAD_REQUEST)
    ended = await result(lease)
    assert (ended.code, ended.again) == ("bad_request", False)


async def test_a_server_that_is_away_for_a_moment_costs_no_try(make: Make) -> None:
    rig = await make(servers=1)
    lease = await ask(rig)
    worker = rig.worker("gpu0")
    await end(worker, key(lease), fault=REFUSED)
    assert rig.dispatcher.desk.waits(SMALL)
    rig.dispatcher.release(rig.link("gpu0"))
    await settle()
    assert worker.held[key(lease)].attempt == 1


async def test_too_many_are_refused_with_a_time_to_come_back(make: Make) -> None:
    rig = await make(slots=1, interactive_queue=6)
    await full(rig)
    for number in range(3):
        await ask(rig, f"{number}")
    with pytest.raises(InteractiveError) as refused:
        await ask(rig, "one more")
    assert refused.value.code == "queue_full"
    assert 1.0 <= (refused.value.retry_after_s or 0.0) <= 60.0
    for number in range(3):
        await ask(rig, f"{number}", owner=8)  # others have their half
    with pytest.raises(InteractiveError):
        await ask(rig, "one more", owner=9)


async def test_what_is_no_request_is_refused(make: Make) -> None:
    rig = await make()
    for raw, code in (
        (b"{}", "missing_prompt"),
        (b"no", "bad_json"),
        (b'{"prompt": "a", "urls": ["http://a"]}', "not_supported"),
        (b'{"prompt": "a", "images": [5]}', "bad_image"),
        (b'{"prompt": "a", "images": ["aGFsbG8="]}', "bad_image"),
        (b'{"messages": [{"role": "user", "content": "a", "images": ["x.png"]}]}', "bad_image"),
        (b'{"prompt": "a", "data": "\xff"}', "invalid_utf8"),
    ):
        with pytest.raises(InteractiveError) as refused:
            rig.dispatcher.desk.ask(Question(raw), ME)
        assert (refused.value.code, refused.value.retry_after_s) == (code, None)


async def test_another_name_of_a_model_makes_no_server_load_it_again(make: Make) -> None:
    rig = await make()  # has small
    assert (await ask(rig, model="small:latest")).profile == (await ask(rig)).profile == SMALL
    assert (await ask(rig, "b", model="large:latest")).profile == (await ask(rig, "c", model="large")).profile
    assert rig.ports["gpu0"].loads == []


async def test_what_was_read_before_is_not_read_again(make: Make) -> None:
    rig = await make()
    raw = b'{"prompt": "why?", "model": "small", "context_length": 4096}'
    leases = [rig.dispatcher.desk.ask(Question(raw, read=read), ME) for read in (None, read_question(raw))]
    assert leases[0].digest == leases[1].digest and leases[0].profile == leases[1].profile == SMALL


@pytest.mark.parametrize("hold", [DRAINING, PAUSED, STOPPING])
async def test_some_holds_end_what_waits(make: Make, hold: str) -> None:
    rig = await make(slots=1)
    running = await ask(rig)
    await begin_all(rig)
    waiting = await ask(rig)
    rig.dispatcher.holds.hold(hold)
    await settle()
    assert (await result(waiting)).code == hold
    with pytest.raises(InteractiveError) as refused:
        await ask(rig)
    assert refused.value.code == hold and refused.value.retry_after_s
    await end(rig.worker("gpu0"), key(running))
    assert (await result(running)).succeeded


async def test_a_full_disk_holds_up_batches_alone(make: Make) -> None:
    rig = await make()
    rig.dispatcher.holds.hold("disk")
    await rig.add(1, 5)
    lease = await ask(rig)
    worker = rig.worker("gpu0")
    assert [*worker.held] == [key(lease)]
    await begin_all(rig)
    await end(worker, key(lease))
    assert (await result(lease)).succeeded and batch(worker) == []


async def test_a_server_that_is_idle_loads_the_model_at_once(make: Make) -> None:
    rig = await make()
    lease = await ask(rig, model="large")
    assert rig.ports["gpu0"].loaded == LARGE
    assert at(rig, lease) is rig.worker("gpu0")


async def test_one_busy_server_changes_its_model_after_half_a_minute(make: Make, clock: Clock) -> None:
    rig = await make(servers=3, switch_after_s=3600)
    await full(rig)
    lease = await ask(rig, model="large")
    for _ in range(6):
        clock.now_s += 4.9
        for name in rig.ports:
            await end(rig.worker(name), rig.worker(name).started[0])
        await begin_all(rig)
    assert {port.loaded for port in rig.ports.values()} == {SMALL}
    clock.now_s += 4.9
    for _ in range(8):
        for worker in map(rig.worker, rig.ports):
            if batch(worker):
                await end(worker, worker.started[0])
        await begin_all(rig)
    assert sorted(str(port.loaded) for port in rig.ports.values()) == ["large (8192)", "small (4096)", "small (4096)"]
    assert at(rig, lease) is not None


async def test_a_model_that_no_server_can_have_ends_it_with_the_reason(make: Make) -> None:
    rig = await make(servers=2)
    rig.missing["large"] = ModelError("there is no such model", code="model_not_found")
    lease = await ask(rig, model="large")
    for _ in range(5):
        rig.dispatcher.wake()
        await settle()
    assert (await result(lease)).code == "model_not_found"


async def test_one_whose_time_is_up_while_it_waits_ends(make: Make, clock: Clock) -> None:
    rig = await make(slots=1)
    await full(rig)
    lease = await ask(rig, timeout_s=20)
    clock.now_s += 19
    rig.dispatcher.wake()
    await settle()
    assert lease.ended is None
    clock.now_s += 2
    rig.dispatcher.wake()
    await settle()
    assert (await result(lease)).code == "timeout"


async def test_the_rest_of_its_time_goes_along_to_the_server(make: Make, clock: Clock) -> None:
    rig = await make(slots=1)
    await full(rig)
    lease = await ask(rig, timeout_s=20)
    clock.now_s += 5
    worker = rig.worker("gpu0")
    await end(worker, batch(worker)[0])
    assert worker.held[key(lease)].limit_s == 15


async def test_others_can_see_that_somebody_waits(make: Make) -> None:
    rig = await make(slots=1)
    desk = rig.dispatcher.desk
    await full(rig)
    assert not desk.waits()
    await ask(rig)
    assert desk.waits() and desk.waits(SMALL) and not desk.waits(LARGE)


async def test_the_status_has_figures_while_there_are_any(make: Make, clock: Clock) -> None:
    rig = await make(slots=1)
    desk = rig.dispatcher.desk
    assert desk.state() is msgspec.UNSET
    lease = await ask(rig)
    await begin_all(rig)
    await ask(rig)
    clock.now_s += 0.25
    rig.worker("gpu0").say(key(lease), "a")
    await end(rig.worker("gpu0"), key(lease))
    assert msgspec.to_builtins(desk.state()) == {
        "waiting": 1, "in_flight": 0, "answered": 1, "first_token_p95_s": 0.25, "reserved_slots": 0,
    }  # fmt: skip


async def test_the_end_of_the_daemon_ends_all(make: Make) -> None:
    rig = await make(slots=1)
    leases = [await ask(rig), await ask(rig)]
    await begin_all(rig)
    await rig.dispatcher.stop()
    assert [(await result(lease)).code for lease in leases] == ["stopping", "stopping"]


async def test_five_hundred_calls_leave_a_batch_its_half(make: Make, clock: Clock) -> None:
    """Slots that take a second each, on a clock of the test: what a batch gets beside 500 calls, and alone."""
    rates = []
    for calls in (0, 500):
        rig = await make(servers=4, slots=4, interactive_slots="auto", interactive_queue=2000)
        await rig.add(1, 4000)
        asked = [await ask(rig, f"call {i}") for i in range(calls)]
        await begin_all(rig)
        for _ in range(60):
            clock.now_s += 1.0
            for name in rig.ports:
                worker = rig.worker(name)
                ended = [*worker.started]
                worker.end_all(ended, took_s=1.0)
            await settle()
            await begin_all(rig)
            done = [lease for lease in asked if lease.ended is not None]
            asked = [lease for lease in asked if lease.ended is None]
            asked += [await ask(rig, f"next {i}") for i, _ in enumerate(done)]
        rates.append(len(rig.finished) / 60)
        await rig.dispatcher.stop()
        await asyncio.sleep(0)
    assert rates[1] >= 0.45 * rates[0]


async def test_a_stream_of_questions_does_not_keep_a_suspect_waiting_for_ever(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering_module, "time", clock)
    rig = await make(slots=2)
    worker = rig.worker("gpu0")
    for _ in range(2):
        await ask(rig)
    await begin_all(rig)
    lane = rig.queue.add_lane(Lane(1, 0, OTHER, SMALL, "normal", 1000.0))
    rig.queue.set_aside(Taken(lane, Pending(1, b'{"id":"x"}'), 0.0))
    began_s = clock.now_s
    while (1, 1) not in worker.held and clock.now_s < began_s + 600:
        clock.now_s += 5.0  # an answer takes ten seconds, and somebody always waits for the next slot
        while len(rig.dispatcher.desk.waiting) < 2:
            await ask(rig)
        await end(worker, worker.started[0])
        await begin_all(rig)
    assert list(worker.held) == [(1, 1)], "alone"
    assert 60 <= clock.now_s - began_s <= 60 + 10 + 5, "a minute, and what was in flight then"
    await end(worker, (1, 1))
    assert len(worker.held) == 2 and batch(worker) == [], "people again"


async def test_a_server_that_was_emptied_for_a_suspect_takes_questions_when_that_is_gone_or_held(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering_module, "time", clock)
    for held in (False, True):
        rig = await make(slots=2)
        worker = rig.worker("gpu0")
        await ask(rig)
        await begin_all(rig)
        lane = rig.queue.add_lane(Lane(1, 0, OTHER, SMALL, "normal", 1000.0))
        rig.queue.set_aside(Taken(lane, Pending(1, b'{"id":"x"}'), 0.0))
        rig.dispatcher.wake()
        await settle()
        clock.now_s += 61.0
        second = await ask(rig)
        third = await ask(rig)
        await settle()
        assert rig.link("gpu0").isolating
        if held:
            rig.dispatcher.holds.hold("disk")
        else:
            rig.queue.cancel_job(1)
        for each in list(worker.started):
            await end(worker, each)
        assert {key(second), key(third)} & set(worker.held) and (1, 1) not in worker.held
