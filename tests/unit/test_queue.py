"""The order in which requests get servers."""

from __future__ import annotations

import pytest
from work_support import NoFeeder

from obatchd.jobs import lane as lane_module
from obatchd.jobs.lane import WINDOW_FETCH, Lane, Pending
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue

SMALL, LARGE = Profile("small", 4096), Profile("large", 8192)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def feeder() -> NoFeeder:
    return NoFeeder()


@pytest.fixture
def fetches(feeder: NoFeeder) -> list[Lane]:
    return feeder.fetches


@pytest.fixture
def queue(clock: Clock, feeder: NoFeeder) -> JobQueue:
    return JobQueue(feeder, clock)


def add(
    queue: JobQueue, job: int, lines: int, *, owner: int = 1, profile: Profile = SMALL, priority: str = "normal",
    accepted_s: float = 1000.0,
) -> Lane:  # fmt: skip
    lane = queue.add_lane(Lane(job, 0, owner, profile, priority, accepted_s))
    queue.extend(lane, lines, [Pending(line, b"{}") for line in range(1, lines + 1)])
    return lane


def take(queue: JobQueue, count: int, profile: Profile = SMALL) -> list[tuple[int, int]]:
    return [(taken.lane.job, taken.pending.line) for taken in queue.take(profile, count)]


def test_requests_of_a_job_come_in_input_order_and_jobs_by_acceptance(queue: JobQueue) -> None:
    add(queue, 2, 2)
    add(queue, 1, 2)
    assert take(queue, 10) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert take(queue, 1) == []


def test_two_owners_share_slot_time_not_requests(queue: JobQueue) -> None:
    add(queue, 1, 200, owner=1)
    add(queue, 2, 200, owner=2)
    served = {1: 0, 2: 0}
    for _ in range(120):
        for taken in queue.take(SMALL, 1):
            owner = taken.lane.owner
            served[owner] += 1
            queue.charge(taken, 3.0 if owner == 1 else 1.0)
    assert served[2] == pytest.approx(3 * served[1], rel=0.15)


def test_an_owner_who_comes_back_does_not_collect_for_his_absence(queue: JobQueue) -> None:
    add(queue, 1, 1000, owner=1)
    add(queue, 2, 1, owner=2)
    for taken in queue.take(SMALL, 500):
        queue.charge(taken, 10.0)
    add(queue, 3, 100, owner=2)
    first = [taken.lane.owner for taken in queue.take(SMALL, 40)]
    assert first.count(1) >= 5  # with the use of his absence held against owner 1 he would get none


def test_priority_goes_before_acceptance_within_an_owner(queue: JobQueue) -> None:
    add(queue, 1, 1, priority="low")
    add(queue, 2, 1, priority="normal")
    add(queue, 3, 1, priority="high")
    assert take(queue, 3) == [(3, 1), (2, 1), (1, 1)]


def test_a_job_gains_one_class_per_hour(queue: JobQueue, clock: Clock) -> None:
    add(queue, 1, 1, priority="low", accepted_s=clock.now_s)
    clock.now_s += 2.5 * 3600
    add(queue, 2, 1, priority="normal", accepted_s=clock.now_s)
    assert take(queue, 2) == [(1, 1), (2, 1)]


def test_a_clock_that_is_set_back_takes_no_class_away(queue: JobQueue, clock: Clock) -> None:
    add(queue, 1, 1, accepted_s=clock.now_s)
    clock.now_s -= 24 * 3600
    add(queue, 2, 1, accepted_s=clock.now_s)
    assert take(queue, 2) == [(1, 1), (2, 1)]


def test_only_requests_of_the_profile_asked_for_are_given(queue: JobQueue) -> None:
    add(queue, 1, 1, profile=SMALL)
    add(queue, 2, 1, profile=LARGE)
    assert take(queue, 5, LARGE) == [(2, 1)]
    assert queue.profiles() == [SMALL]


def test_a_request_given_back_comes_first_again(queue: JobQueue) -> None:
    add(queue, 1, 3)
    first = queue.take(SMALL, 1)[0]
    queue.give_back(first)
    assert take(queue, 3) == [(1, 1), (1, 2), (1, 3)]


def test_a_retried_request_is_left_for_another_server(queue: JobQueue) -> None:
    add(queue, 1, 2)
    first = queue.take(SMALL, 1)[0]
    first.pending = Pending(1, b"{}", 2, ["gpu0"])
    queue.give_back(first)
    assert [t.pending.line for t in queue.take(SMALL, 1, "gpu0", {"gpu0", "gpu1"})] == [2]
    assert [t.pending.line for t in queue.take(SMALL, 1, "gpu1", {"gpu0", "gpu1"})] == [1]


def test_a_request_that_failed_at_two_servers_is_left_for_a_third(queue: JobQueue) -> None:
    add(queue, 1, 1)
    servers = {"gpu0", "gpu1", "gpu2"}
    first = queue.take(SMALL, 1)[0]
    first.pending = Pending(1, b"{}", 3, ["gpu0", "gpu1"])
    queue.give_back(first)
    assert queue.take(SMALL, 1, "gpu0", servers) == queue.take(SMALL, 1, "gpu1", servers) == []
    [taken] = queue.take(SMALL, 1, "gpu2", servers)
    taken.pending = Pending(1, b"{}", 4, ["gpu0", "gpu1", "gpu2"])
    queue.give_back(taken)
    assert queue.take(SMALL, 1, "gpu2", servers) == []
    assert queue.take(SMALL, 1, "gpu0", servers) != []


def test_the_settings_of_a_request_are_read_once_however_often_it_is_passed_over(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []

    def shared_settings(raw: bytes) -> bytes:
        read.append(raw)
        return real(raw)

    real = lane_module.shared_settings
    monkeypatch.setattr(lane_module, "shared_settings", shared_settings)
    lane = add(queue, 1, 100)
    queue.accuse(lane, b"")
    lane.window.append(Pending(101, b'{"prompt": "a", "format": "json"}'))
    lane.window.append(Pending(102, b'{"prompt": "b", "format": "json"}'))
    for _ in range(5):
        queue.take(SMALL, 10)
        assert queue.has_suspects(SMALL)
    assert len(lane.window) == 100
    assert len(read) == 102


def test_a_paused_job_is_passed_over_and_goes_on_later(queue: JobQueue) -> None:
    add(queue, 1, 1)
    add(queue, 2, 1)
    queue.pause(1)
    assert take(queue, 5) == [(2, 1)]
    queue.resume(1)
    assert take(queue, 5) == [(1, 1)]


def test_a_removed_job_gives_nothing_and_takes_nothing_back(queue: JobQueue) -> None:
    add(queue, 1, 2)
    taken = queue.take(SMALL, 1)[0]
    queue.remove_job(1)
    queue.give_back(taken)
    assert take(queue, 5) == []
    assert queue.total() == 0


def test_requests_left_in_the_store_are_asked_for_when_their_turn_comes(queue: JobQueue, fetches: list[Lane]) -> None:
    lane = queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 0.0))
    queue.extend(lane, 5000)
    assert queue.total() == 5000
    assert take(queue, 4) == []
    assert fetches == [lane]
    queue.fetched(lane, [Pending(line, b"{}") for line in range(1, WINDOW_FETCH + 1)])
    assert len(take(queue, 4)) == 4
    assert queue.total() == 4996
    assert fetches == [lane]


def test_a_lane_that_turns_out_empty_stops_waiting(queue: JobQueue, fetches: list[Lane]) -> None:
    lane = queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 0.0))
    queue.extend(lane, 3)
    take(queue, 1)
    queue.fetched(lane, [], phantom=lane.unread)
    assert queue.total() == 0


def test_requests_at_hand_do_not_overtake_those_still_in_the_store(queue: JobQueue) -> None:
    lane = queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 0.0))
    queue.extend(lane, 2)
    queue.extend(lane, 1, [Pending(3, b"{}")])
    assert take(queue, 1) == []
    queue.fetched(lane, [Pending(line, b"{}") for line in (1, 2, 3)])
    assert take(queue, 5) == [(1, 1), (1, 2), (1, 3)]


def test_the_profile_of_the_least_served_owner_has_the_stronger_claim(queue: JobQueue) -> None:
    add(queue, 1, 10, owner=1, profile=SMALL)
    add(queue, 2, 10, owner=2, profile=LARGE)
    for taken in queue.take(SMALL, 2):
        queue.charge(taken, 100.0)
    assert queue.profiles() == [LARGE, SMALL]
    assert queue.claim(LARGE) < queue.claim(SMALL)


def test_suspects_wait_apart_and_count_as_waiting(queue: JobQueue) -> None:
    add(queue, 1, 1)
    taken = queue.take(SMALL, 1)[0]
    queue.set_aside(taken)
    assert take(queue, 1) == []
    assert queue.profiles() == [SMALL]
    assert queue.total() == 1
    again = queue.take_suspect(SMALL)
    assert again is not None
    assert again.pending is taken.pending
    assert queue.profiles() == []


def test_what_is_indexed_while_a_reading_finds_nothing_is_not_lost(queue: JobQueue, fetches: list[Lane]) -> None:
    lane = queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 1000.0))
    queue.extend(lane, 3)
    assert take(queue, 1) == []  # starts a reading that expects three
    queue.extend(lane, 5)  # indexed after the reading looked
    queue.fetched(lane, [], phantom=3)
    assert lane.unread == 5
    assert take(queue, 1) == []
    assert fetches == [lane, lane]


def test_requests_at_hand_count_only_when_they_are_all_there_is(queue: JobQueue, fetches: list[Lane]) -> None:
    lane = queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 1000.0))
    queue.extend(lane, 3, [Pending(1, b"{}"), Pending(3, b"{}")])  # the bytes of one have changed
    assert (lane.unread, len(lane.window), lane.cursor) == (3, 0, 0)


def test_long_requests_fill_no_window_of_thousands(queue: JobQueue, fetches: list[Lane]) -> None:
    lane = queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 1000.0))
    queue.extend(lane, 1000)
    take(queue, 1)
    queue.fetched(lane, [Pending(line, b" " * 2**20) for line in range(1, 8)])
    take(queue, 1)
    assert len(fetches) == 1
    take(queue, 3)
    take(queue, 1)
    assert len(fetches) == 2


def suspect(queue: JobQueue, job: int) -> Lane:
    lane = add(queue, job, 1)
    [taken] = queue.take(SMALL, 1)
    queue.set_aside(taken)
    return lane


def test_a_suspect_of_a_job_that_is_over_is_not_kept(queue: JobQueue) -> None:
    add(queue, 1, 1)
    [taken] = queue.take(SMALL, 1)
    queue.remove_job(1)
    queue.set_aside(taken)
    assert not queue.has_suspects(SMALL)
    assert queue.profiles() == []


def test_suspects_go_with_their_lane(queue: JobQueue) -> None:
    queue.remove_lanes([suspect(queue, 1)])
    assert not queue.has_suspects(SMALL)
    assert queue.profiles() == []
    assert queue.total() == 0


def test_suspects_of_a_paused_job_wait(queue: JobQueue) -> None:
    suspect(queue, 1)
    queue.pause(1)
    assert queue.take_suspect(SMALL) is None
    assert queue.profiles() == []
    queue.resume(1)
    assert queue.has_suspects(SMALL)
    assert queue.take_suspect(SMALL) is not None
    assert not queue.has_suspects(SMALL)
