"""Burn-in runs in a whole daemon, with stand-in servers and GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, prompts, wait_for

from obatchd.burnin.report.reading import read_file
from obatchd.errors import ConfigError
from obatchd.simulator.timeline import GpuEvent, write_script

Start = Callable[..., Daemon]
SIMULATOR: dict[str, Any] = {
    "tokens_per_s": 400.0,
    "prompt_tokens_per_s": 40_000.0,
    "answer": {"kind": "uniform", "low": 40, "high": 80},
}
CONFIG: dict[str, Any] = {
    "burnin": {"canary_runs": 3, "canary_s": 3},
    "gpus": {"use": "simulated:3", "poll_s": 0.2, "slow_poll_s": 0.5},
}


def started(d: Daemon, *arguments: str) -> str:
    answer = d.control("burnin", "start", "--json", *arguments)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    return str(json.loads(answer.stdout)["run"])


def status(d: Daemon) -> dict[str, Any]:
    return d.client.get("burnin/status")


def loading(d: Daemon) -> bool:
    brief = d.status()["burnin"]
    return bool(brief and brief["elapsed_s"] >= 2)


def wait_for_the_end(d: Daemon) -> None:
    wait_for(lambda: d.status()["burnin"] is None, 40, "the run is over")


def test_a_run_over_a_kill_and_a_gpu_that_goes_bad_and_is_tested_again(daemon: Start, tmp_path: Path) -> None:
    d = daemon(CONFIG, simulator=SIMULATOR)
    run = started(d, "--gpus", "0,1", "--duration", "12s")
    d.drop("job.jsonl", prompts(60))
    wait_for(lambda: loading(d), 20, "the load has begun")
    before = status(d)["elapsed_s"]
    d.kill()  # nothing slow comes before this: the run goes on meanwhile
    d.start()
    line = "pid=4242, name=runner, DBE (double bit error)"
    faults = [GpuEvent("set", values={"ecc_uncorrected": 2}), GpuEvent("xid", xid=48, line=line)]
    write_script(d.spool / "work" / "simulator", {"1": faults})
    assert {record["server"] for record in d.done("job.jsonl", 30).results} == {"gpu2"}
    wait_for_the_end(d)
    wait_for(lambda: d.servers()[1]["state"] == "quarantined", what="the GPU that failed is taken out of use")
    look_at_the_report(d, run, before, line, tmp_path)
    listed = json.loads(d.control("burnin", "list", "--json").stdout)["runs"]
    assert [(row["run"], row["state"], row["verdict"]) for row in listed] == [(run, "completed", "FAIL")]
    assert {server["id"]: server["state"] for server in d.servers()} == {
        "gpu0": "ready", "gpu1": "quarantined", "gpu2": "ready",
    }  # fmt: skip

    with pytest.raises(ConfigError, match="is in quarantine"):
        d.client.post("burnin", body={"gpus": ["1"], "with_jobs": True})
    write_script(d.spool / "work" / "simulator", {})  # it is repaired
    again = d.client.post("burnin", body={"gpus": ["1"], "duration": "10s", "load": ["model"]})["run"]
    d.drop("after.jsonl", prompts(60, "after"))
    wait_for_the_end(d)
    report = status(d)
    assert (report["run"], report["gpus"][0]["verdict"]) == (again, "PASS_LOW_STRESS"), report["gpus"][0]["reasons"]
    wait_for(lambda: d.servers()[1]["state"] == "quarantined", what="ten seconds end no quarantine")
    assert {record["server"] for record in d.done("after.jsonl").results} == {"gpu0", "gpu2"}


def look_at_the_report(d: Daemon, run: str, before_s: float, line: str, tmp_path: Path) -> None:
    """Of a run on two GPUs with a gap, of which the second failed: as page, as JSON, and for the vendor."""
    page, whole = tmp_path / "page.html", tmp_path / "report.json"
    answer = d.control("burnin", "report", run[:8], "--html", page)
    assert answer.returncode == 1, answer.stderr
    assert "obatchd was not running" in page.read_text()
    whole.write_text(json.dumps(d.client.get("burnin/reports/latest")))
    report = read_file(whole)
    assert (report["run"], report["state"], report["verdict"]) == (run, "completed", "FAIL")
    assert [gap["reason"] for gap in report["gaps"]] == ["obatchd was not running"]
    assert report["elapsed_s"] >= 12 > before_s
    first, second = report["gpus"]
    assert second["verdict"] == "FAIL"
    assert {"ecc_uncorrected", "xid_48"} <= {reason["signal"] for reason in second["reasons"]}
    [xid] = [event for event in second["events"] if event["verbatim"]]
    assert xid["verbatim"].endswith(line)
    assert first["verdict"] == "PASS_LOW_STRESS", first["reasons"]
    assert first["stress"]["slots_busy_percent"] >= 95
    for gpu in report["gpus"]:
        assert gpu["work"]["tokens"] > 100 and gpu["work"]["failed"] <= 20
        assert gpu["canary"]["state"] == "on" and gpu["canary"]["mismatches"] == 0
        assert gpu["identity"]["serial"].startswith("SIM")
    assert d.control("burnin", "report", whole).returncode == 1
    archive = tmp_path / "gpu0.tar.gz"
    bundled = d.control("burnin", "bundle", "0", "--output", archive)
    assert bundled.returncode == 0, bundled.stderr
    assert archive.stat().st_size > 10_000
    assert "nvidia-smi: not installed" in bundled.stdout
    assert d.servers()[0]["state"] == "ready"  # lent to the tools, and taken back


def test_batch_work_as_the_load_and_a_stop(daemon: Start) -> None:
    d = daemon(CONFIG, simulator=SIMULATOR)
    d.drop("job.jsonl", prompts(4000))
    started(d, "--gpus", "1", "--duration", "1h", "--with-jobs")
    assert d.control("burnin", "start").returncode == 1
    assert d.status()["burnin"]["gpus"] == [gpu["uuid"] for gpu in status(d)["gpus"]]
    assert "burn-in" in d.control("status").stdout
    wait_for(lambda: status(d)["gpus"][0]["work"]["tokens"] > 500, 20, "batch work is counted")
    assert d.control("burnin", "stop").returncode == 0
    wait_for_the_end(d)
    answer = d.control("burnin", "report")
    assert answer.returncode == 2
    assert "stopped" in answer.stdout and "INCONCLUSIVE" in answer.stdout
    assert all(server["state"] == "ready" for server in d.servers())
    [gpu] = status(d)["gpus"]
    assert gpu["load"]["model"] == "tiny" and gpu["work"]["failed"] == 0
    d.control("servers", "drain", "gpu1")
    assert "gpu1 is draining" in d.control("burnin", "start", "--gpus", "1").stderr


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this host has an NVIDIA driver")
def test_without_a_driver_the_daemon_works_and_says_that_nobody_can_watch(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "all"}, "servers": {"ollama": "simulator"}})
    asked = prompts(5)
    d.drop("job.jsonl", asked)
    d.done("job.jsonl").check(asked)
    assert [server["id"] for server in d.servers()] == ["cpu0"]
    found = d.client.get("gpus")
    assert (found["state"], found["gpus"]) == ("absent", [])
    assert "No NVIDIA driver" in found["message"] and "No NVIDIA driver" in d.control("gpus").stdout
    assert d.control("burnin", "report").returncode == 2
    for arguments, words in (
        ([], "no GPU with a server here"),
        (["--gpus", "7"], "no GPU '7'"),
    ):
        answer = d.control("burnin", "start", *arguments)
        assert answer.returncode == 1
        assert words in answer.stderr
