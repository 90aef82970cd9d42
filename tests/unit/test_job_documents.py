"""What is said of a job: its status while it runs, its summary, and its entry when it is over."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_support import Models
from work_support import add_live, make_work

from obatchd import __version__
from obatchd.delivery.advice import advice
from obatchd.delivery.documents import (
    counts_of,
    finished_document,
    job_details,
    job_document,
    last_status,
    summary_of,
)
from obatchd.documents.jobs import JobTotals
from obatchd.jobs.lane import Lane
from obatchd.jobs.model import Intent, JobState, Outcome, Profile
from obatchd.live.job import CANCELLED, LiveJob, Turn
from obatchd.live.work import Work
from obatchd.settings.job import JobSettings
from obatchd.spool.outbox import Totals
from obatchd.times import instant, uptime_s

ACCEPTED_S = 1_700_000_000.0


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    made = make_work(tmp_path, model="small")
    yield made
    made.store.close()


def job(work: Work, moment: str | None = None, **settings: Any) -> LiveJob:
    work.store.state.accept([Intent("job", b"a.jsonl", 1000, 1, 1, 10, "file", 0.0)])
    [row] = work.store.state.find(["job"])
    work.store.state.update(row.key, settings=JobSettings(**settings), accepted_s=ACCEPTED_S, accepted_moment=moment,
                            notes=["a note"])  # fmt: skip
    return add_live(work, *work.store.state.find(["job"]))


def test_a_job_that_is_being_read_has_no_number_of_requests_yet(work: Work) -> None:
    live = job(work)
    live.requests = 3
    reading = job_document(live, 2)
    assert (reading.requests, reading.indexed, reading.in_flight, reading.eta_s) == (None, 3, 2, None)
    live.indexed = True
    assert job_document(live, 0).requests == 3


def test_a_job_in_work_says_who_it_is_and_how_far(work: Work) -> None:
    live = job(work, priority="high", deadline=60)
    live.requests, live.indexed = 10, True
    live.count(Outcome.SUCCEEDED, 3, tokens=90)
    live.count(Outcome.FAILED)
    live.count(Outcome.EXPIRED, 2)
    document = job_document(live, 1)
    assert (document.job, document.name, document.owner, document.state) == ("job", "a.jsonl", 1000, "running")
    assert (document.model, document.priority, document.notes) == ("small", "high", ["a note"])
    assert (document.succeeded, document.failed, document.expired, document.cancelled) == (3, 1, 2, 0)
    assert document.accepted_at == "2023-11-14T22:13:20.000Z"
    assert document.expires_at == "2023-11-14T22:14:20.000Z"
    assert document.requests_per_s and document.eta_s == pytest.approx(4 / live.requests_per_s(), abs=0.1)
    assert document.tokens_per_s == pytest.approx(live.tokens_per_s(), abs=0.1)
    assert (document.position, document.expected_start_at, document.outbox) == (None, None, str(live.outbox))


def test_a_job_that_a_server_holds_up_says_why_until_it_has_a_result(work: Work) -> None:
    live = job(work)
    live.hindrance = "gpu0: http://front answered 404"
    assert job_document(live, 0).notes == ["a note", "it waits: gpu0: http://front answered 404"]
    assert job_document(live, 0).held_up == live.hindrance
    live.count(Outcome.SUCCEEDED)
    assert job_document(live, 0).notes == live.row.notes == ["a note"]


def test_a_job_that_waits_has_its_turn_and_a_cancelled_one_none(work: Work) -> None:
    live = job(work)
    live.turn = Turn(4, ACCEPTED_S)
    waiting = job_document(live, 0)
    assert (waiting.position, waiting.expected_start_at) == (4, "2023-11-14T22:13:20.000Z")
    live.turn = Turn(4, None)
    assert job_document(live, 0).expected_start_at is None
    live.turn, live.ending = Turn(4, ACCEPTED_S), CANCELLED  # the next forecast forgets it
    cancelled = job_document(live, 0)
    assert (cancelled.position, cancelled.expected_start_at, cancelled.state) == (None, None, "cancelling")


def test_the_entry_of_a_job_that_is_over_is_its_counts_and_its_place(work: Work) -> None:
    live = job(work)
    counts = {"requests": 9, "succeeded": 4, "failed": 3, "cancelled": 2, "expired": 0, "wall_s": 1.0}
    sums = dict.fromkeys(("prompt_tokens", "response_tokens", "gpu_s", "truncated", "ungrounded", "copied"), 0)
    work.store.state.update(live.key, state=JobState.DONE, finished_s=ACCEPTED_S + 1, summary=counts | sums)
    [row] = work.store.state.find(["job"])
    done = finished_document(row, work.layout)
    assert done.totals is not None and done.totals.requests_per_s == 7.0  # nobody was asked what was cancelled
    assert (done.state, done.finished_at) == ("done", "2023-11-14T22:13:21.000Z")
    assert (done.requests, done.indexed, done.succeeded, done.failed, done.cancelled) == (9, 9, 4, 3, 2)
    assert (done.outbox, done.refused_to) == (str(live.outbox), None)


def test_the_entry_of_a_refused_drop_says_where_it_lies(work: Work) -> None:
    live = job(work)
    work.store.state.update(live.key, state=JobState.REFUSED, finished_s=ACCEPTED_S)
    [row] = work.store.state.find(["job"])
    refused = finished_document(row, work.layout)
    assert (refused.state, refused.requests, refused.outbox) == ("refused", 0, None)
    assert refused.refused_to == str(work.layout.failed_dir("job", b"a.jsonl", 1000))


def totals(*records: tuple[Outcome, dict[str, Any]]) -> Totals:
    made = Totals()
    for outcome, record in records:
        made.add(outcome, msgspec.json.encode(record))
    return made


def test_a_summary_has_the_facts_for_a_methods_section(work: Work) -> None:
    live = job(work, system_message="Be brief.", options={"seed": 1}, format="json", in_source=["a"], think=False)
    live.lanes[0] = Lane(live.key, 0, 1000, Profile("small", 8192), "normal", 0.0)
    live.asked_before = {4096}
    answer = {"model": "small", "server": "gpu0", "duration_s": 3.0, "prompt_tokens": 2, "response_tokens": 50,
              "started_at": "2026-01-01T00:00:00.000Z", "finished_at": "2026-01-01T00:00:10.000Z"}  # fmt: skip
    failure = {"code": "timeout", "message": "it took too long"}
    summary = summary_of(live, totals((Outcome.SUCCEEDED, answer), (Outcome.FAILED, failure)), Models())
    assert (summary.state, summary.requests, summary.succeeded, summary.failed) == ("done", 2, 1, 1)
    assert (summary.prompt_tokens, summary.response_tokens, summary.serial_s) == (2, 50, 3.0)
    assert (summary.failures["timeout"].example, summary.failures["timeout"].advice) == (
        "it took too long",
        advice("timeout"),
    )
    used = summary.servers["gpu0"]
    assert (used.requests, used.tokens_per_s, used.ollama_version) == (1, 5.0, "0.12.1")
    assert summary.models["small"].digest == "sha-small"
    settings = summary.settings
    assert (settings.model, settings.context_length, settings.options) == ("small", [4096, 8192], {"seed": 1})
    assert (settings.format, settings.in_source, settings.think) == ("json", ["a"], False)
    assert settings.system_message_sha256 == hashlib.sha256(b"Be brief.").hexdigest()
    assert (summary.notes, summary.obatchd_version, summary.cancelled_by_user) == (["a note"], __version__, False)
    assert summary.accepted_at == "2023-11-14T22:13:20.000Z"
    assert summary.tokens_per_s == round(50 / summary.wall_s, 2)
    assert summary.speedup == round(3 / summary.wall_s, 2)


def test_a_summary_has_every_setting_that_made_the_prompts(work: Work) -> None:
    given = {
        "system_message": "Be brief.",
        "template": "Summarise: {note}",
        "id_column": "mrn",
        "encoding": "cp1252",
        "lines": False,
        "sample": 3,
    }
    settings = summary_of(job(work, **given), totals(), Models()).settings
    assert {name: getattr(settings, name) for name in given} == given
    assert settings.text_column is None


def test_a_summary_has_the_time_of_gpus_that_all_its_results_took(work: Work) -> None:
    """A slot has a quarter of its GPU here; what somebody else's server did counts for none."""
    answer = {"model": "small", "server": "gpu0", "duration_s": 3.0}
    copied = answer | {"copied_from": "another-job"}
    failed = {"code": "bad_format", "message": "no JSON", "server": "gpu1", "duration_s": 5.0}
    remote = answer | {"server": "remote-host-11434"}
    results = ((Outcome.SUCCEEDED, answer), (Outcome.SUCCEEDED, copied), (Outcome.FAILED, failed))
    summary = summary_of(job(work), totals(*results, (Outcome.SUCCEEDED, remote)), Models())
    assert summary.gpu_s == 2.0


def test_a_job_that_is_over_keeps_its_sums_and_the_causes_of_its_failures(work: Work) -> None:
    live = job(work)
    answer = {"model": "small", "server": "gpu0", "duration_s": 3.0, "prompt_tokens": 2, "response_tokens": 50,
              "truncated": True, "ungrounded": [{"field": "a"}]}  # fmt: skip
    failure = {"code": "timeout", "message": "it took too long " * 100}
    copied = {"copied_from": "x", "truncated": True}
    results = ((Outcome.SUCCEEDED, answer), (Outcome.FAILED, failure), (Outcome.SUCCEEDED, copied))
    summary = summary_of(live, totals(*results), Models())
    summary.wall_s = 2.0
    kept = msgspec.to_builtins(counts_of(summary))
    work.store.state.finish([(live.key, {"state": JobState.DONE, "finished_s": ACCEPTED_S + 2, "summary": kept})])
    [row] = work.store.state.find(["job"])
    done = finished_document(row, work.layout)
    assert done.totals == JobTotals(
        2.0, 1.5, 25.0, 2, 50, 0.75, 2, 1, 1, None, 0.0, "gpu0: it computes on the CPU", None
    )
    assert done.details is None
    failures = job_details(row, None).failures
    assert (failures["timeout"].requests, failures["timeout"].advice) == (1, advice("timeout"))
    example = failures["timeout"].example
    assert 290 < len(example) <= 300 and example.endswith("long it took…")


def test_a_job_that_an_earlier_version_finished_has_no_sums(work: Work) -> None:
    live = job(work)
    counts = {"requests": 1, "succeeded": 1, "failed": 0, "cancelled": 0, "expired": 0, "wall_s": 1.0}
    work.store.state.update(live.key, state=JobState.DONE, finished_s=ACCEPTED_S + 1, summary=counts)
    [row] = work.store.state.find(["job"])
    assert finished_document(row, work.layout).totals is None
    assert job_details(row, None).failures == {}


def test_a_job_without_a_system_message_has_no_digest_of_one(work: Work) -> None:
    summary = summary_of(job(work), totals(), Models())
    assert (summary.settings.system_message_sha256, summary.settings.model) == (None, "small")
    assert summary.settings.system_message is None


@pytest.mark.parametrize("set_by_s", [-86400.0, 86400.0])
def test_the_times_of_a_job_are_right_though_the_clock_was_set(
    work: Work, monkeypatch: pytest.MonkeyPatch, set_by_s: float
) -> None:
    """Also of a job that an earlier run of the daemon accepted: its moment is in the index."""
    work.store.state.accept([Intent("other", b"b.jsonl", 1000, 1, 1, 10, "file", 0.0)])
    real_s, up_s = time.time, time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "time", lambda: real_s() + set_by_s)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: up_s + 60)
    live = add_live(work, *work.store.state.find(["other"]))
    answers = [
        {"model": "small", "server": "gpu0", "duration_s": 90.0, "response_tokens": 300,
         "started_at": instant(at_s), "finished_at": instant(at_s + 90)}
        for at_s in (real_s(), real_s() + set_by_s)
    ]  # fmt: skip
    summary = summary_of(live, totals(*((Outcome.SUCCEEDED, answer) for answer in answers)), Models())
    assert summary.wall_s == pytest.approx(60, abs=1)
    assert (summary.serial_s, summary.speedup) == (180, pytest.approx(3, abs=0.1))
    assert summary.servers["gpu0"].tokens_per_s == pytest.approx(10, abs=0.2)


def test_a_job_that_was_accepted_before_the_last_boot_is_timed_by_the_wall_clock(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: ACCEPTED_S + 5000)
    live = job(work, "another-boot/77.0")
    assert summary_of(live, totals(), Models()).wall_s == pytest.approx(max(5000, uptime_s()), abs=5)


def test_the_last_status_says_that_the_job_is_over(work: Work) -> None:
    live = job(work)
    live.requests, live.indexed = 4, True
    live.count(Outcome.SUCCEEDED, 3)
    summary = summary_of(live, totals(), Models())
    last = last_status(live, summary)
    assert (last.state, last.finished_at, last.eta_s) == ("done", summary.finished_at, None)
    assert last.totals is not None and last.totals.gpu_s == summary.gpu_s
    assert (last.totals.prompt_tokens, last.totals.response_tokens) == (summary.prompt_tokens, summary.response_tokens)
    assert last.energy_j is last.cost is msgspec.UNSET, "no more than so far: the totals have it"


@pytest.mark.parametrize(
    ("code", "words"),
    [("expired", "deadline"), ("input_changed", "mv"), ("model_not_found", "model"), ("never_heard_of", "retry")],
)
def test_each_kind_of_failure_has_its_advice(code: str, words: str) -> None:
    assert words in advice(code)
