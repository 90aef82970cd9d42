"""What is committed is there after a restart, once, and in order."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from settings_support import in_force

from obatchd.jobs.model import Entry, Intent, JobState, Outcome, Refusal
from obatchd.jobs.store import AttemptRow, IndexBatch, JobRow, ResultRow, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path, in_force())
    yield store
    store.close()


def intent(job: str, size: int = 10, kind: str = "file") -> Intent:
    return Intent(job, b"drop.jsonl", 1000, 1, 2, size, kind, 0.0)


def accept(store: Store, *jobs: str, size: int = 10) -> list[JobRow]:
    intents = [intent(job, size) for job in jobs]
    store.state.add_intents(intents)
    store.state.accept(intents)
    return store.state.find(jobs)


def entries(*lines: int, **fields: object) -> list[Entry]:
    return [Entry(line, line * 10, 9, 0, **fields) for line in lines]  # type: ignore[arg-type]


def reopen(store: Store, directory: Path) -> Store:
    store.close()
    return Store(directory, in_force())


def test_an_intent_lasts_until_it_is_accepted_or_forgotten(store: Store) -> None:
    store.state.add_intents([intent("a"), intent("b"), intent("c")])
    store.state.accept([intent("a")])
    store.state.forget(["b"])
    assert [i.job for i in store.state.intents()] == ["c"]
    assert store.state.jobs() == {"a"}


def test_accepting_twice_makes_one_job(store: Store) -> None:
    accept(store, "a")
    accept(store, "a")
    assert len(store.state.list_jobs([JobState.RUNNING])) == 1


def test_small_drops_share_a_segment_and_large_ones_have_their_own(store: Store) -> None:
    first, second = accept(store, "a", "b")
    [large] = accept(store, "c", size=50 * 1024**2)
    assert first.segment == second.segment
    assert large.segment == "c"


def test_indexed_requests_wait_in_input_order_until_they_have_results(store: Store) -> None:
    [job] = accept(store, "a")
    [chunk] = store.write_index([IndexBatch(job, entries(1, 2, 3, 4), True)])
    segment = store.of(job)
    assert [row.line for row in segment.pending(job.key, 0, 0, 10)] == [1, 2, 3, 4]
    store.write_results([(job.segment, ResultRow(job.key, 2, 0, Outcome.SUCCEEDED, b"{}"))], [])
    assert [row.line for row in segment.pending(job.key, 0, 1, 10)] == [3, 4]
    assert segment.lanes(job.key)[0].finished == 1
    assert chunk.lanes[0].requests == 4


def test_lanes_are_split_by_what_requests_ask_for(store: Store) -> None:
    [job] = accept(store, "a")
    mixed = [*entries(1, model="x"), *entries(2, model="y"), *entries(3, model="x", priority="high")]
    [chunk] = store.write_index([IndexBatch(job, mixed, True)])
    assert chunk.lane_of == [0, 1, 2]
    assert [(lane.model, lane.priority) for lane in chunk.lanes] == [("x", None), ("y", None), ("x", "high")]


def test_reading_a_drop_again_after_a_crash_adds_nothing_twice(store: Store, tmp_path: Path) -> None:
    [job] = accept(store, "a")
    store.write_index([IndexBatch(job, entries(1, 2), False)])
    store = reopen(store, tmp_path)
    [chunk] = store.write_index([IndexBatch(job, entries(1, 2, 3), True)])
    assert sum(lane.requests for lane in chunk.lanes) == 1
    assert store.of(job).job_progress(job.key) == (3, True)
    assert [row.line for row in store.of(job).pending(job.key, 0, 0, 10)] == [1, 2, 3]
    store.close()


def test_a_repeated_id_fails_the_later_line_and_names_both(store: Store) -> None:
    [job] = accept(store, "a")
    given = [*entries(1, id="x"), *entries(2, id="y"), *entries(3, id="x")]
    [chunk] = store.write_index([IndexBatch(job, given, True)])
    assert chunk.refused == 1
    [(line, outcome, record)] = list(store.results(job))
    document = msgspec.json.decode(record)
    assert (line, outcome, document["code"]) == (3, Outcome.FAILED, "duplicate_id")
    assert "line 3" in document["message"] and "line 1" in document["message"]


def test_a_refused_line_has_its_result_at_once(store: Store) -> None:
    [job] = accept(store, "a")
    given = [*entries(1), *entries(2, refusal=Refusal("bad_json", "line 2: no JSON"))]
    store.write_index([IndexBatch(job, given, True)])
    assert [(line, outcome) for line, outcome, _ in store.results(job)] == [(2, Outcome.FAILED)]
    assert store.of(job).tallies(job.key) == {"failed": 1}


def test_a_request_keeps_its_first_result_and_is_counted_once(store: Store) -> None:
    [job] = accept(store, "a")
    store.write_index([IndexBatch(job, entries(1, 2), True)])
    store.write_results([(job.segment, ResultRow(job.key, 1, 0, Outcome.SUCCEEDED, b'"first"'))], [])
    late = [
        (job.segment, ResultRow(job.key, 1, 0, Outcome.FAILED, b'"late"')),
        (job.segment, ResultRow(job.key, 2, 0, Outcome.SUCCEEDED, b'"other"')),
    ]
    store.write_results(late, [])
    assert [record for _, _, record in store.results(job)] == [b'"first"', b'"other"']
    assert store.of(job).tallies(job.key) == {"succeeded": 2}


def test_results_survive_a_restart(store: Store, tmp_path: Path) -> None:
    [job] = accept(store, "a")
    store.write_index([IndexBatch(job, entries(*range(1, 101)), True)])
    rows = [(job.segment, ResultRow(job.key, line, 0, Outcome.SUCCEEDED, b"{}")) for line in range(100, 50, -1)]
    store.write_results(rows, [])
    store = reopen(store, tmp_path)
    assert [line for line, _, _ in store.results(job)] == list(range(51, 101))
    assert store.of(job).lanes(job.key)[0].finished == 50
    store.close()


def test_attempts_are_remembered_for_requests_without_a_result(store: Store) -> None:
    [job] = accept(store, "a")
    store.write_index([IndexBatch(job, entries(1, 2), True)])
    running = AttemptRow(job.key, 1, 1, "gpu0", 5.0)
    store.write_results([], [(job.segment, running)])
    ended = AttemptRow(job.key, 1, 1, "gpu0", 5.0, "crash")
    store.write_results([], [(job.segment, ended), (job.segment, running)])
    assert store.of(job).attempts(job.key) == [ended]
    store.write_results([(job.segment, ResultRow(job.key, 1, 0, Outcome.FAILED, b"{}"))], [])
    assert store.of(job).attempts(job.key) == []


def test_ending_what_is_pending_gives_each_request_one_result(store: Store) -> None:
    [job] = accept(store, "a")
    store.write_index([IndexBatch(job, entries(1, 2, 3), True)])
    store.write_results([(job.segment, ResultRow(job.key, 2, 0, Outcome.SUCCEEDED, b"{}"))], [])
    ended = store.of(job).end_pending(job.key, None, Outcome.CANCELLED, "cancelled", "asked", 10)
    assert ended == [1, 3]
    assert store.of(job).end_pending(job.key, None, Outcome.CANCELLED, "cancelled", "asked", 10, 3) == []
    assert store.of(job).tallies(job.key) == {"succeeded": 1, "cancelled": 2}


def test_a_segment_goes_with_its_last_job(store: Store, tmp_path: Path) -> None:
    [job] = accept(store, "a", size=50 * 1024**2)
    store.write_index([IndexBatch(job, entries(1), True)])
    path = tmp_path / "segments" / "a.db"
    assert path.exists()
    store.release(job)
    assert not path.exists()


def test_a_segment_without_a_job_in_work_keeps_no_log_on_the_disk_and_few_files_open(
    store: Store, tmp_path: Path
) -> None:
    [done, live] = [accept(store, name, size=50 * 1024**2)[0] for name in ("a", "b")]
    for job in (done, live):
        store.write_index([IndexBatch(job, entries(*range(1, 100)), True)])
        assert not list(store.results(job))
    log_a, log_b = (tmp_path / "segments" / f"{name}.db-wal" for name in ("a", "b"))
    assert log_a.stat().st_size and log_b.stat().st_size
    before = psutil.Process().num_fds()
    store.trim({live.segment})
    assert psutil.Process().num_fds() < before
    assert not log_a.stat().st_size
    assert log_b.stat().st_size
    assert not list(store.results(done))
    assert store.of(done).job_progress(done.key) == store.of(live).job_progress(live.key)


def test_a_disk_that_has_no_room_for_a_log_is_no_matter_to_a_segment_that_rests(store: Store, tmp_path: Path) -> None:
    [done] = accept(store, "a", size=50 * 1024**2)
    store.write_index([IndexBatch(done, entries(*range(1, 1000)), True)])
    file, log = tmp_path / "segments" / "a.db", tmp_path / "segments" / "a.db-wal"
    as_it_was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, as_it_was[1]))
    try:
        store.settle(done)
        store.trim(set())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, as_it_was)
    assert log.stat().st_size
    store.trim(set())
    assert not log.stat().st_size
    assert store.of(done).job_progress(done.key) == (999, True)


def test_settings_notes_and_summary_come_back_as_they_were(store: Store) -> None:
    [job] = accept(store, "a")
    store.state.update(job.key, notes=["one"], summary={"requests": 3}, state=JobState.DONE, finished_s=1.0)
    _, [found] = store.state.named("a")
    assert (found.notes, found.summary, found.state) == (["one"], {"requests": 3}, JobState.DONE)


def test_facts_are_replaced(store: Store) -> None:
    assert store.state.get("port") is None
    store.state.set("port", "1")
    store.state.set("port", "2")
    assert store.state.get("port") == "2"
