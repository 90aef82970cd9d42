"""Servers that fail in every way the stand-in knows: the request is answered elsewhere or fails with the right code."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from daemon_support import Daemon, jsonl, prompts, wait_for

Start = Callable[..., Daemon]
STEADY: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.05}}
ONCE: list[dict[str, Any]] = [
    {"kind": "crash", "at": 5, "after_tokens": 3},
    {"kind": "runner_crash", "at": 5, "after_tokens": 3},
    {"kind": "hang", "at": 5, "after_tokens": 3},
    {"kind": "status", "at": 5},
    {"kind": "busy", "at": 5},
    {"kind": "cut", "at": 5, "after_tokens": 3},
    {"kind": "not_done", "at": 5},
    {"kind": "no_reason", "at": 5},
]


@pytest.mark.parametrize("fault", ONCE, ids=lambda fault: fault["kind"])
def test_a_fault_of_one_server_costs_no_request(daemon: Start, fault: dict[str, Any]) -> None:
    d = daemon({"dispatch": {"stall_s": 1}}, simulator=STEADY)
    d.faults(fault, server=0)
    asked = prompts(60)
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    job.check(asked)
    if fault["kind"] != "busy":
        again = [r for r in job.results if r["attempts"] > 1]
        assert again
        assert any(r["servers"][0] == "gpu0" for r in again)
    wait_for(lambda: [s["state"] for s in d.servers()] == ["ready", "ready"], 10, "both servers are ready")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "status"}, "server_error"),
        ({"kind": "cut"}, "connection_lost"),
        ({"kind": "not_done"}, "incomplete"),
        ({"kind": "empty"}, "empty_response"),
        ({"kind": "status", "status": 400, "message": '"tiny" does not support tools'}, "not_supported"),
    ],
    ids=lambda value: value["kind"] + str(value.get("status", "")) if isinstance(value, dict) else value,
)
def test_a_request_that_fails_everywhere_says_why(daemon: Start, fault: dict[str, Any], code: str) -> None:
    d = daemon({"dispatch": {"max_attempts": 3, "strikes": 1000}})
    d.faults({**fault, "marker": "odd:"})
    asked = [*prompts(40), *prompts(2, "odd")]
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    summary = job.check(asked, failed=2)
    if fault["kind"] == "cut":  # looks like a crash: such requests are tried alone
        assert set(job.codes()) <= {"connection_lost", "poison"}
    else:
        assert job.codes() == {code: 2}
        assert summary["failures"][code]["advice"]
        at_fault = fault["kind"] == "empty" or fault.get("status") == 400
        assert {e["attempts"] for e in job.errors} == {1 if at_fault else 3}


def test_a_busy_server_is_waited_for_without_using_up_attempts(daemon: Start) -> None:
    d = daemon({"dispatch": {"max_attempts": 2}})
    d.faults({"kind": "busy", "count": 20})
    asked = prompts(12)
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    job.check(asked)
    assert all(r["attempts"] == 1 for r in job.results)
    assert [s["restarts"] for s in d.servers()] == [0, 0]


@pytest.mark.parametrize("kind", ["runner_crash", "crash"])
def test_a_poisonous_request_is_found_and_the_others_succeed(daemon: Start, kind: str) -> None:
    d = daemon({"dispatch": {"strikes": 1000}, "servers": {"backoff_max_s": 0.1, "starts_limit": 100}})
    d.faults()
    asked = [*prompts(30), *prompts(1, "POISON"), *prompts(30, "more")]
    d.simulator = {**STEADY, "faults": [{"kind": kind, "marker": "POISON"}]}
    assert d.stop() == 0
    d.start().ready()
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl", 40)
    job.check(asked, failed=1)
    [error] = job.errors
    assert error["id"] == "POISON-0"
    assert error["code"] == "poison"
    assert error["attempts"] <= 5
    wait_for(lambda: [s["state"] for s in d.servers()] == ["ready", "ready"], 10, "both servers are back")
    d.drop("after.jsonl", prompts(10, "after"))
    d.done("after.jsonl").check()


def test_a_server_with_many_faults_is_restarted(daemon: Start) -> None:
    d = daemon({"dispatch": {"strikes": 3}}, simulator=STEADY)
    d.faults({"kind": "status"}, server=0)
    asked = prompts(60)
    d.drop("job.jsonl", asked)
    d.done("job.jsonl").check(asked)
    wait_for(lambda: d.servers()[0]["restarts"] >= 1 and d.servers()[0]["state"] == "ready", 10, "gpu0 was restarted")


def test_a_load_that_fails_once_is_tried_again(daemon: Start) -> None:
    d = daemon(simulator={**STEADY, "faults": [{"kind": "load_failure", "count": 1}]})
    asked = prompts(30)
    d.drop("job.jsonl", asked)
    d.done("job.jsonl").check(asked)


def test_a_slow_server_takes_less_and_holds_nobody_up(daemon: Start) -> None:
    d = daemon(simulator=STEADY)
    d.faults({"kind": "slow", "factor": 10}, server=0)
    asked = prompts(200)
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    summary = job.check(asked)
    assert summary["servers"]["gpu1"]["requests"] > 3 * summary["servers"]["gpu0"]["requests"]


PERSON = b'[format]\ntype = "object"\n[format.properties.name]\ntype = "string"\n'


@pytest.mark.parametrize("kind", ["runner_crash", "crash"])
def test_a_schema_that_crashes_every_server_fails_its_job_and_no_other(daemon: Start, kind: str) -> None:
    d = daemon(
        {"servers": {"backoff_max_s": 0.1}},
        simulator={**STEADY, "faults": [{"kind": kind, "schema": True}]},
    )
    d.drop("schema", {"job.toml": PERSON, "p.jsonl": jsonl(prompts(200))})
    wait_for(lambda: d.events("attempt_failed"), 20, "the schema has crashed a server")
    asked = prompts(40, "innocent")
    d.drop("innocent.jsonl", asked)
    d.done("innocent.jsonl", 20).check(asked)
    job = d.done("schema", 30)
    assert job.codes() == {"format_crashes": 200}
    assert "format" in job.errors[0]["message"] and "Schema" in job.summary["failures"]["format_crashes"]["advice"]
    assert 3 <= len(d.events("control_passed")) <= 8
    assert not any("new=failed" in event for event in d.events("server_state"))


def test_prompts_are_not_blamed_for_gpus_that_answer_nothing(daemon: Start) -> None:
    d = daemon(
        {"servers": {"backoff_max_s": 0.1, "starts_limit": 3}},
        simulator={**STEADY, "faults": [{"kind": "cuda_error"}]},
    )
    asked = prompts(100)
    d.drop("job.jsonl", asked)
    wait_for(lambda: {s["state"] for s in d.servers()} == {"failed"}, 30, "both servers have failed")
    assert all("does not answer one token" in s["reason"] for s in d.servers())
    assert d.stop() == 0
    d.simulator = STEADY
    d.start().ready()
    d.done("job.jsonl").check(asked)


def test_what_is_cut_short_by_a_stop_of_everything_is_no_attempt(daemon: Start) -> None:
    d = daemon({"dispatch": {"max_attempts": 2}}, simulator={"service_s": {"kind": "fixed", "value": 2.0}})
    asked = prompts(6)
    d.drop("job.jsonl", asked)
    for _ in range(4):
        wait_for(lambda: sum(s["in_flight"] for s in d.servers()) >= 4, 20, "most are in flight")
        for process in d.servers_alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        assert d.stop() == 0
        d.start().ready()
    job = d.done("job.jsonl")
    job.check(asked)
    assert {record["attempts"] for record in job.results} == {1}
