"""The health of GPUs in the whole daemon: quarantine and release, GPUs that are lost, shared, lent, out of hours."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, prompts, wait_for

from obatchd.simulator.timeline import GpuEvent, write_script

Start = Callable[..., Daemon]
STEADY: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.3}}
GPUS = {"use": "simulated:2", "poll_s": 0.1, "slow_poll_s": 0.2}


def happens(d: Daemon, gpu: int, *events: GpuEvent) -> None:
    write_script(d.spool / "work" / "simulator", {str(gpu): list(events)})


def states(d: Daemon) -> list[str]:
    return [server["state"] for server in d.servers()]


def health(d: Daemon) -> list[str]:
    return [gpu["health"] for gpu in d.client.get("gpus")["gpus"]]


def uuid(d: Daemon, gpu: int) -> str:
    found: str = d.client.get("gpus")["gpus"][gpu]["uuid"]
    return found


def test_a_gpu_with_memory_errors_is_taken_out_and_comes_back_by_release(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    keep = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"
    alarms = {"command": [sys.executable, "-c", keep, str(told)], "on": ["quarantine", "job_done"]}
    d = make_daemon({"gpus": GPUS, "alarms": alarms}, simulator=STEADY).start().ready()
    asked = prompts(80)
    d.drop("job.jsonl", asked)
    wait_for(lambda: d.servers()[1]["in_flight"] == 4)
    happens(d, 1, GpuEvent("xid", xid=48))
    wait_for(lambda: states(d)[1] == "quarantined")
    job = d.done("job.jsonl")
    job.check(asked)
    assert {result["attempts"] for result in job.results} == {1}  # moved, not failed
    assert not d.events("server_strike")
    wait_for(lambda: told.exists() and len(told.read_text().splitlines()) == 2, what="two alarms")
    by_kind = {alarm["kind"]: alarm for alarm in map(json.loads, told.read_text().splitlines())}
    assert by_kind["quarantine"]["serial"] == "SIM0000000001" and by_kind["job_done"]["succeeded"] == 80

    gpu = d.client.get("gpus")["gpus"][1]
    assert gpu["health"] == "quarantine" and "XID 48" in gpu["reason"]
    assert "Collect evidence first" in gpu["action"] and "--gpu-reset" in gpu["action"]
    listed = d.control("gpus")
    assert listed.returncode == 1 and "quarantine" in listed.stdout and "XID 48" in listed.stdout
    assert "obatchctl gpus release 1" in listed.stdout
    shown = d.control("gpus", "show", "1")
    assert "SIM0000000001" in shown.stdout and "xid_48" in shown.stdout and "What to do" in shown.stdout

    d.kill()
    d.start()
    wait_for(lambda: states(d) == ["ready", "quarantined"], what="quarantine holds over a restart")
    assert d.control("gpus", "release", "1").returncode == 0
    d.ready()
    assert d.control("gpus", "release", "1").returncode == 1
    events = d.control("gpus", "events", "1").stdout
    assert "quarantine" in events and "release" in events and "SIM0000000001" in events
    time_of_release = d.client.get(f"gpus/{uuid(d, 1)}")["watched_since"]
    d.stop()
    d.start().ready()
    assert d.client.get(f"gpus/{uuid(d, 1)}")["watched_since"] == time_of_release
    assert health(d) == ["ok", "ok"]


def test_the_last_gpu_in_quarantine_pauses_visibly(daemon: Start) -> None:
    d = daemon({"gpus": GPUS}, simulator=STEADY)
    assert d.control("gpus", "quarantine", "0", "--reason", "noisy fan").returncode == 0
    wait_for(lambda: states(d) == ["quarantined", "ready"])
    happens(d, 1, GpuEvent("set", values={"remap_failed": True}))
    wait_for(lambda: states(d) == ["quarantined", "quarantined"])
    asked = prompts(5)
    d.drop("job.jsonl", asked)
    wait_for(lambda: d.status()["state"] == "paused")
    assert "every GPU is in quarantine" in d.status()["reasons"][0]
    assert any("noisy fan" in reason for reason in d.status()["reasons"])
    released = d.control("gpus", "release", "1")  # a lasting defect that the administrator accepts
    assert "remap_failed" in released.stdout
    d.done("job.jsonl").check(asked)
    assert health(d) == ["quarantine", "warn"]


def test_one_gpu_lost_of_four_and_a_driver_updated_underneath(daemon: Start) -> None:
    d = daemon({"gpus": GPUS | {"use": "simulated:4"}}, simulator=STEADY)
    asked = prompts(80)
    d.drop("job.jsonl", asked)
    wait_for(lambda: d.servers()[2]["in_flight"] == 4)
    lost = GpuEvent("lost")
    write_script(d.spool / "work" / "simulator", {"2": [lost], "0": [GpuEvent("mismatch")]})
    wait_for(lambda: states(d)[2] == "quarantined")
    d.done("job.jsonl").check(asked)
    assert health(d) == ["ok", "ok", "quarantine", "ok"]
    wait_for(lambda: any("reboot the host" in reason for reason in d.status()["reasons"]))
    refused = d.control("gpus", "release", "2")
    assert refused.returncode == 1 and "does not find the GPU" in refused.stderr
    d.stop()
    write_script(d.spool / "work" / "simulator", {"2": [lost]})
    d.start()  # it is missing at the start, too
    wait_for(lambda: states(d) == ["ready"] * 3)
    assert health(d) == ["ok", "ok", "quarantine", "ok"]
    assert "forgotten" in d.control("gpus", "release", "2").stdout
    assert len(health(d)) == 3


def test_a_probe_that_hangs_leaves_the_daemon_working_and_the_health_unknown(daemon: Start) -> None:
    d = daemon({"gpus": GPUS | {"silent_warn_s": 0.5, "silent_s": 1}}, simulator=STEADY)
    happens(d, 0, GpuEvent("hang"))
    wait_for(lambda: health(d) == ["unknown", "unknown"])
    asked = prompts(20)
    d.drop("job.jsonl", asked)
    d.done("job.jsonl").check(asked)
    wait_for(lambda: any("health of the GPUs is unknown" in reason for reason in d.status()["reasons"]))
    assert states(d) == ["ready", "ready"] and d.control("gpus").returncode == 1


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


def test_a_stranger_on_a_gpu_in_mid_job_stops_loads_there_until_it_leaves(
    daemon: Start, stranger: subprocess.Popen[bytes]
) -> None:
    d = daemon({"gpus": GPUS | {"use": "simulated:1"}}, simulator=STEADY)
    first, second = prompts(30, "a"), prompts(10, "b", model="simulated")
    d.drop("first.jsonl", first)
    wait_for(lambda: d.servers()[0]["in_flight"] == 4)
    happens(d, 0, GpuEvent("foreign", pid=stranger.pid))
    wait_for(lambda: "sleep" in d.client.get("gpus")["gpus"][0]["shared_with"])
    d.done("first.jsonl").check(first)  # what was loaded goes on
    d.drop("second.jsonl", second)
    wait_for(lambda: states(d) == ["draining"])
    assert f"pid {stranger.pid}" in d.servers()[0]["reason"] and "4.0 GiB" in d.servers()[0]["reason"]
    wait_for(lambda: d.servers()[0]["loaded"] is None, what="our own model is unloaded")
    stranger.kill()
    job = d.done("second.jsonl")
    job.check(second)
    assert {result["attempts"] for result in job.results} == {1}


def test_a_gpu_is_lent_and_comes_back_by_itself(daemon: Start) -> None:
    d = daemon({"gpus": GPUS, "servers": {"drain_s": 1}}, simulator=STEADY)
    asked = prompts(120)
    d.drop("job.jsonl", asked)
    wait_for(lambda: d.servers()[1]["in_flight"] == 4)
    assert d.control("gpus", "lend", "1", "--for", "3s").returncode == 0
    wait_for(lambda: d.servers()[1]["loaded"] is None and states(d)[1] == "draining")
    assert "lent until" in d.servers()[1]["reason"] and "lent until" in d.control("gpus").stdout
    wait_for(lambda: states(d) == ["ready", "ready"])
    job = d.done("job.jsonl")
    job.check(asked)
    assert {result["attempts"] for result in job.results} == {1}
    assert d.control("gpus", "lend", "1", "--for", "soon").returncode == 2
    assert d.control("gpus", "lend", "1", "--back").returncode == 1
    assert d.control("gpus", "lend", "nowhere", "--for", "2h").returncode == 1
    assert d.control("gpus", "lend", "1", "--for", "2h").returncode == 0
    d.kill()
    d.start()
    wait_for(lambda: states(d) == ["ready", "draining"], what="a loan holds over a restart")
    assert d.control("gpus", "lend", "1", "--back").returncode == 0
    d.ready()


def test_outside_its_hours_a_gpu_is_not_used(daemon: Start) -> None:
    hour = time.localtime().tm_hour
    closed = f"{(hour + 2) % 24:02d}:00-{(hour + 3) % 24:02d}:00"
    d = daemon({"gpus": GPUS}, simulator=STEADY)
    d.drop("warm.jsonl", prompts(8))
    d.done("warm.jsonl")
    d.stop()
    d.configure({"gpus": GPUS | {"allow": closed}})
    d.start()
    wait_for(lambda: states(d) == ["draining", "draining"])
    assert closed in d.servers()[0]["reason"]
