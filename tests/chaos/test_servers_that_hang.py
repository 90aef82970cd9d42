"""Servers that answer health checks and do no work: each is found, named, counted and mended, in the whole daemon."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from daemon_support import Daemon, prompts, wait_for

Start = Callable[..., Daemon]
STEADY: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.2}}


def config(**watchdog: float) -> dict[str, Any]:
    """Settings under which only the rules named here can strike within a test."""
    return {
        "dispatch": {"stall_s": watchdog.pop("stall_s", 600)},
        "servers": {"backoff_max_s": 0.1},
        "watchdog": {"probe_s": 1, "idle_gpu_s": 600, "leak_s": 600, "slow_s": 600, "vram_s": 600, **watchdog},
    }


def counted(d: Daemon, finding: str, server: int = 0) -> int:
    """How often the status says that a server was found so."""
    count: int = d.servers()[server]["watchdog"].get(finding, 0)
    return count


def back(d: Daemon) -> None:
    wait_for(lambda: [s["state"] for s in d.servers()] == ["ready", "ready"], 30, "both servers are ready")


@pytest.mark.parametrize("rule", [{"stall_s": 2}, {"idle_gpu_s": 2}], ids=["stalled", "gpu_idle"])
def test_a_hung_server_is_restarted_and_its_requests_go_elsewhere(daemon: Start, rule: dict[str, float]) -> None:
    d = daemon(config(**rule), simulator=STEADY)
    d.faults({"kind": "hang", "at": 5, "after_tokens": 3}, server=0)
    asked = prompts(100)
    d.drop("job.jsonl", asked)
    d.done("job.jsonl").check(asked)
    # The other server may be through with everything before this one has had its time to answer one token.
    wait_for(lambda: d.servers()[0]["restarts"] == 1, 20, "it is restarted")
    back(d)
    finding = "stalled" if "stall_s" in rule else "gpu_idle"
    assert counted(d, finding) == counted(d, "restart") == 1
    assert d.servers()[0]["restarts"] == 1
    assert len(d.events(f"watchdog_{finding}")) == len(d.events("watchdog_restart")) == 1
    assert d.servers()[1]["watchdog"] == {}


def test_one_request_that_pauses_does_not_count_while_others_go_on(daemon: Start) -> None:
    d = daemon(config(stall_s=2, idle_gpu_s=2), simulator=STEADY)
    d.faults({"kind": "hang", "at": 5, "seconds": 4}, server=0)
    asked = prompts(250)
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    job.check(asked)
    assert {r["attempts"] for r in job.results} == {1}
    assert [s["watchdog"] for s in d.servers()] == [{}, {}]


@pytest.mark.near
def test_an_answer_that_stops_midway_is_given_up_alone(daemon: Start) -> None:
    d = daemon(config(stall_s=2), simulator=STEADY)
    d.faults({"kind": "hang", "at": 5, "seconds": 20, "after_tokens": 3}, server=0)
    asked = prompts(250)
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    job.check(asked)
    assert sorted(r["attempts"] for r in job.results)[-2:] == [1, 2]
    assert [line for line in d.events("attempt_failed") if "code=stalled" in line]
    assert [s["restarts"] for s in d.servers()] == [0, 0]


def test_a_long_prompt_is_no_hang_while_the_gpu_works(daemon: Start) -> None:
    d = daemon(config(stall_s=2, idle_gpu_s=3.5), simulator={"prompt_tokens_per_s": 10, "tokens_per_s": 1000})
    asked = prompts(8, system="word " * 45)
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    job.check(asked)
    assert min(r["duration_s"] for r in job.results) > 3
    assert {r["attempts"] for r in job.results} == {1}
    assert [s["watchdog"] for s in d.servers()] == [{}, {}]


def test_a_slow_load_after_a_crash_of_the_runner_is_no_hang(daemon: Start) -> None:
    d = daemon(config(stall_s=2, idle_gpu_s=2), simulator={**STEADY, "load_s": 4})
    d.drop("first.jsonl", prompts(8, "first"))
    d.done("first.jsonl")
    for runner in [p for p in d.servers_alive() if "--name" in p.cmdline()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            runner.kill()
    asked = prompts(8)
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    job.check(asked)
    assert max(r["duration_s"] for r in job.results) > 3
    assert [s["watchdog"] for s in d.servers()] == [{}, {}]
    assert [s["restarts"] for s in d.servers()] == [0, 0]


def test_a_server_that_loses_slots_is_restarted_when_idle(daemon: Start) -> None:
    d = daemon(config(leak_s=2), simulator={"service_s": {"kind": "fixed", "value": 0.5}})
    d.faults({"kind": "leak", "at": 3}, {"kind": "leak", "at": 7}, server=0)
    asked = prompts(150)
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl", 60)
    job.check(asked)
    assert counted(d, "slots_leaking") == 1
    assert d.events("watchdog_slots_leaking")
    assert {r["attempts"] for r in job.results} == {1}, "it was emptied before"
    assert d.servers()[1]["watchdog"] == {}


def test_a_server_far_below_its_own_speed_is_recycled_then_restarted(daemon: Start) -> None:
    d = daemon(config(slow_s=2), simulator={"service_s": {"kind": "fixed", "value": 0.1}})
    d.drop("before.jsonl", prompts(200, "before"))
    d.done("before.jsonl")
    before = d.seen()[0]
    d.faults({"kind": "slow", "factor": 8}, server=0)
    d.drop("job.jsonl", prompts(1500))

    def loaded_again() -> bool:
        now = d.seen()[0]
        return now["pid"] == before["pid"] and now["runners"] not in ([], before["runners"])

    wait_for(loaded_again, 60, "the same server has another runner")
    wait_for(lambda: counted(d, "slow") >= 2, 60, "it was found slow again")
    job = d.done("job.jsonl", 60)
    job.check(prompts(1500))
    wait_for(lambda: d.servers()[0]["pid"] != before["pid"], 20, "it is restarted")
    back(d)
    assert counted(d, "restart") == 1
    assert d.seen()[0]["pid"] != before["pid"]
    first, second, *_ = d.events("watchdog_slow")
    assert "loads the model again" in first
    assert "restarts it when it is idle" in second
    assert d.servers()[1]["watchdog"] == {}
    assert {r["attempts"] for r in job.results} == {1}


def test_a_model_that_left_the_vram_means_a_restart(daemon: Start) -> None:
    d = daemon(config(vram_s=1), simulator=STEADY)
    d.drop("first.jsonl", prompts(20, "first"))
    d.done("first.jsonl")
    d.faults({"kind": "cpu"}, server=0)
    server = d.servers()[0]
    for runner in psutil.Process(server["pid"]).children():
        runner.kill()
    asked = prompts(200)
    d.drop("job.jsonl", asked)
    d.done("job.jsonl", 60).check(asked)
    wait_for(lambda: counted(d, "cpu_fallback") == 1, 10, "the fall to the CPU is counted")
    back(d)
    assert d.events("watchdog_cpu_fallback")
    assert d.servers()[1]["watchdog"] == {}


def test_a_server_that_hangs_again_and_again_gets_no_more_work(daemon: Start) -> None:
    d = daemon(config(stall_s=2, repeats=2), simulator=STEADY)
    d.drop("warm.jsonl", prompts(30, "warm"))
    d.done("warm.jsonl")
    asked = prompts(400)
    d.faults({"kind": "hang", "at": 3}, server=0)
    d.drop("job.jsonl", asked)
    wait_for(lambda: d.servers()[0]["restarts"] == 1, 20, "one restart")
    back(d)
    d.faults({"kind": "hang", "at": 3}, server=0)
    d.done("job.jsonl", 60).check(asked)
    wait_for(lambda: d.servers()[0]["state"] == "draining", 10, "it is drained")
    assert "resume" in d.servers()[0]["reason"]
    assert d.servers()[1]["state"] == "ready"


def test_a_prompt_that_hangs_every_server_fails_as_poison_with_the_evidence(daemon: Start) -> None:
    settings = config(stall_s=2, repeats=1)
    settings["servers"] |= {"starts_limit": 100}
    d = daemon(settings, simulator={**STEADY, "faults": [{"kind": "hang", "marker": "POISON"}]})
    asked = [*prompts(20), *prompts(1, "POISON"), *prompts(20, "more")]
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl", 90)
    job.check(asked, failed=1)
    [error] = job.errors
    assert (error["id"], error["code"]) == ("POISON-0", "poison")
    alone = r"\d times while they worked on the request, (2 of these|each time) while they worked on nothing else"
    assert re.search(alone, error["message"])
    assert "no token" in error["message"]
    assert set(error["servers"]) <= {"gpu0", "gpu1"}
    assert len(error["servers"]) == error["attempts"]
