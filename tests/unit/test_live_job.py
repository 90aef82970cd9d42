"""A job in work: what its requests get from it, and the state that all parts share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from work_support import add_live, make_work

from obatchd.jobs.model import Intent, JobState, Outcome, Profile
from obatchd.jobs.store import LaneRow
from obatchd.live.job import CANCELLED, Ending, LiveJob
from obatchd.live.work import Work
from obatchd.settings.job import JobSettings

LANE = LaneRow(1, 0, None, None, None, 1)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    made = make_work(tmp_path, model="daemon", context_length=5000, outbox={"response_files_limit": 2})
    yield made
    made.store.close()


def job(work: Work, name: str = "job", **settings: Any) -> LiveJob:
    work.store.state.accept([Intent(name, b"a.jsonl", 1000, 1, 1, 10, "file", 0.0)])
    [row] = work.store.state.find([name])
    work.store.state.update(row.key, settings=JobSettings(**settings))
    return add_live(work, *work.store.state.find([name]))


def test_a_request_goes_before_its_job_and_that_before_the_daemon(work: Work) -> None:
    plain, own = job(work), job(work, "own", model="job", context_length=9000, priority="high")
    asked = msgspec.structs.replace(LANE, model="request", context_length=300, priority="low")
    assert plain.profile_of(LANE) == Profile("daemon", 8192)
    assert own.profile_of(LANE) == Profile("job", 16384)
    assert own.profile_of(asked) == Profile("request", 4096)
    assert [live.priority_of(LANE) for live in (plain, own)] == ["normal", "high"]
    assert own.priority_of(asked) == "low"


def test_workers_are_told_what_the_requests_of_a_job_share(work: Work) -> None:
    live = job(work, system_message="Be brief.", options={"seed": 1}, max_response_tokens=9, format="json",
               in_source=["a"], think=True)  # fmt: skip
    context = live.context()
    assert (context.job, context.name, context.system_message) == (live.key, "job", "Be brief.")
    assert (context.options, context.max_response_tokens, context.format) == ({"seed": 1}, 9, "json")
    assert (context.in_source, context.think) == (["a"], True)


def test_a_job_is_complete_when_it_is_read_to_its_end_and_all_is_answered(work: Work) -> None:
    live = job(work)
    live.requests = 3
    live.count(Outcome.SUCCEEDED, tokens=7)
    live.count(Outcome.FAILED, 2)
    assert live.finished == 3 and not live.complete
    live.indexed = True
    assert live.complete
    live.requests = 4
    assert not live.complete


def test_the_speed_is_that_of_results_and_of_their_tokens(work: Work) -> None:
    live, idle = job(work), job(work, "idle")
    live.count(Outcome.SUCCEEDED, 3, tokens=60)
    live.count(Outcome.FAILED)
    assert live.requests_per_s() == pytest.approx(live.tokens_per_s() / 15)
    assert live.requests_per_s() > 0 == idle.requests_per_s() == idle.tokens_per_s()


def test_the_state_says_that_a_job_is_being_published_and_that_it_was_cancelled(work: Work) -> None:
    live = job(work)
    assert (live.state(), live.cancelled, live.ending) == (JobState.RUNNING, False, None)
    live.publishing, live.ending = True, Ending(Outcome.EXPIRED, "expired", "late")
    assert (live.state(), live.cancelled) == (JobState.PUBLISHING, False)
    work.store.state.update(live.key, cancelled=1, paused=1)
    [row] = work.store.state.find(["job"])
    again = LiveJob(row, live.outbox)
    assert (again.cancelled, again.ending, again.paused) == (True, CANCELLED, True)


def test_a_deadline_counts_from_the_acceptance(work: Work) -> None:
    assert job(work).expires_s is None
    live = job(work, "late", deadline=60)
    assert live.expires_s == pytest.approx(live.row.accepted_s + 60)
    assert live.expires_s == pytest.approx(time.time() + 60, abs=30)


@pytest.mark.parametrize(
    ("setting", "requests", "expected"),
    [("auto", 2, True), ("auto", 3, False), ("always", 3, True), ("never", 1, False)],
)
def test_each_response_has_a_file_where_that_is_wanted_or_there_are_few(
    tmp_path: Path, setting: str, requests: int, expected: bool
) -> None:
    work = make_work(tmp_path, outbox={"response_files": setting, "response_files_limit": 2, "response_text": "md"})
    live = job(work)
    live.requests = requests
    assert (live.response_files(), live.text_suffix) == (expected, ".md")
    work.store.close()


def test_the_requests_of_a_job_are_found_while_it_is_in_work(work: Work) -> None:
    live = job(work)
    work.input_of(live.row).parent.mkdir()
    source = work.source_of(live.key)
    assert source is not None and source.request_file == work.input_of(live.row)
    assert source.open_segment() is work.store.of(live.row)
    unpacked = work.input_of(live.row).with_name("requests.jsonl")
    unpacked.touch()
    source = work.source_of(live.key)
    assert source is not None and source.request_file == unpacked
    assert work.source_of(live.key + 1) is None
