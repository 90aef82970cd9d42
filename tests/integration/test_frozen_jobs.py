"""A job is done with the settings of its acceptance, whatever a reload or a restart changes meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable

import pytest
from daemon_support import Daemon, Document, Job, jsonl, prompts, wait_for

Start = Callable[..., Daemon]
SLOW: Document = {"service_s": {"kind": "fixed", "value": 0.1}}
OLD: Document = {
    "model": "tiny",
    "system_message": "Be old.",
    "options": {"top_k": 1},
    "context_length": 4096,
    "max_response_tokens": 30,
    "priority": "low",
    "deadline": 3600,
    "outbox": {"response_text": "txt", "response_files": "always"},
}
NEW: Document = {
    "model": "simulated",
    "system_message": "Be new.",
    "options": {"top_k": 2, "top_p": 0.5},
    "context_length": 9000,
    "max_response_tokens": 20,
    "format": "json",
    "in_source": ["answer"],
    "think": False,
    "priority": "high",
    "deadline": 7200,
    "outbox": {"response_text": "md", "response_files": "always"},
}


def check(d: Daemon, name: str, asked: list[Document], settings: Document) -> Document:
    """A finished job was done with these settings from the first request to the last; its summary."""
    job = d.done(name, 60)
    prompts_of_job = {request["prompt"] for request in asked}
    received = [request for request in d.received() if request["prompt"] in prompts_of_job]
    assert received
    for request in received:
        assert request["model"] == f"{settings['model']}:latest"
        assert request["system"] == settings["system_message"]
        assert {k: v for k, v in request["options"].items() if k.startswith("top")} == settings["options"]
        assert request["options"]["num_predict"] == settings["max_response_tokens"]
        assert request["format"] == settings.get("format")
    summary = job.summary
    assert {record["model"] for record in job.results} == {settings["model"]}
    used = summary["settings"]
    for key in ("model", "options", "max_response_tokens"):
        assert used[key] == settings[key], key
    for key in ("format", "in_source", "think"):
        assert used[key] == settings.get(key, {"format": "", "in_source": [], "think": "auto"}[key])
    assert used["context_length"] == [4096 if settings is OLD else 16384]
    assert used["system_message_sha256"] == hashlib.sha256(settings["system_message"].encode()).hexdigest()
    files = {path.suffix for path in (job.directory / "responses").iterdir()}
    assert files == {".json", f".{settings['outbox']['response_text']}"}
    assert d.client.get(f"jobs/{job.id}")["model"] == settings["model"]
    assert d.client.get(f"jobs/{job.id}")["priority"] == settings["priority"]
    return summary


def half(d: Daemon, name: str, requests: list[Document]) -> Job:
    """A job of which some requests have their answers."""
    d.drop(name, requests)
    job = d.job(name)
    wait_for(lambda: d.succeeded() >= 10, 20, "some are answered")
    return job


def reload(d: Daemon, settings: Document) -> Document:
    d.configure(settings)
    answer: Document = json.loads(d.control("reload", "--json").stdout)
    return answer


def test_a_reload_in_mid_job_changes_the_next_job_only(daemon: Start) -> None:
    d = daemon(OLD, simulator=SLOW)
    first = prompts(120, "first")
    job = half(d, "first.jsonl", first)
    expires_at = job.status["expires_at"]
    answer = reload(d, NEW)
    assert set(answer["changed"]) == set(answer["next_job"]) >= {"model", "system_message", "outbox.response_text"}
    os.kill(d.servers()[0]["worker_pid"], signal.SIGKILL)  # the next one is told of the job anew
    d.drop("second.jsonl", second := prompts(30, "second"))
    summary = check(d, "first.jsonl", first, OLD)
    assert (job.status["expires_at"], summary["succeeded"]) == (expires_at, len(first))
    check(d, "second.jsonl", second, NEW)
    job.check(first)


@pytest.mark.parametrize("index_is_lost", [False, True])
def test_a_restart_with_another_configuration_goes_on_with_the_jobs_own(daemon: Start, index_is_lost: bool) -> None:
    d = daemon(OLD, simulator=SLOW)
    requests = prompts(120)
    job = half(d, "job.jsonl", requests)
    d.kill()
    d.configure(NEW)
    if index_is_lost:
        for path in (d.spool / "work").glob("state.db*"):
            path.unlink()
    d.start().ready()
    assert check(d, "job.jsonl", requests, OLD)["notes"] == []
    job.check(requests)


def test_a_retry_is_done_as_the_first_job_was(daemon: Start) -> None:
    d = daemon({**OLD, "dispatch": {"max_attempts": 1, "strikes": 100}})
    d.faults({"kind": "status", "marker": "bad"})
    requests = [*prompts(10), *prompts(4, "bad")]
    d.drop("job.jsonl", requests)
    job = d.done("job.jsonl")
    job.check(requests, failed=4)
    reload(d, {**NEW, "dispatch": {"max_attempts": 1, "strikes": 100}})
    d.faults()
    retried: Document = json.loads(d.control("retry", job.id, "--json").stdout)
    assert (retried["model"], retried["priority"]) == ("tiny", "high")
    again = wait_for(lambda: next(d.outbox.glob("job.retry.*/summary.json"), None), 20, "the retry is done")
    assert again is not None
    used = Job(again.parent).check(requests[10:])["settings"]
    assert used == job.summary["settings"]
    assert {r["system"] for r in d.received() if r["prompt"].startswith("bad")} == {"Be old."}


def test_a_retry_of_a_job_without_a_model_takes_the_one_there_is_now(daemon: Start) -> None:
    d = daemon({**OLD, "model": ""})
    d.drop("job.jsonl", requests := prompts(3))
    job = d.done("job.jsonl")
    assert job.codes() == {"no_model": 3}
    reload(d, NEW)
    d.control("retry", job.id)
    again = wait_for(lambda: next(d.outbox.glob("job.retry.*/summary.json"), None), 20, "the retry is done")
    assert again is not None
    assert Job(again.parent).check(requests)["settings"]["model"] == "simulated"
    assert {(r["model"], r["system"]) for r in d.received()} == {("simulated:latest", "Be old.")}


def test_an_earlier_answer_is_taken_when_it_was_made_with_the_settings_of_the_job(daemon: Start) -> None:
    d = daemon(OLD)
    requests = prompts(5)
    d.drop("first.jsonl", requests)
    d.done("first.jsonl").check(requests)
    copied = {}
    for name, settings in (("new", {**NEW, "model": "tiny", "format": ""}), ("old", OLD)):
        reload(d, settings)
        path = d.root / f"{name}.jsonl"
        path.write_bytes(jsonl(requests))
        d.control("submit", path, "--skip-done", "--wait")
        copied[name] = d.done(f"{name}.jsonl").summary["copied"]
    assert copied == {"new": 0, "old": 5}
