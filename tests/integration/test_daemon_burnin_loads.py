"""Burn-ins of a whole daemon with products and patterns on stand-in GPUs: faults are found, and hurt no other GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from daemon_support import Daemon, prompts, wait_for

from obatchd.simulator.timeline import GpuEvent, Script, write_script

Start = Callable[..., Daemon]
pytestmark = pytest.mark.timeout(240)
SIMULATOR: dict[str, Any] = {
    "tokens_per_s": 400.0,
    "prompt_tokens_per_s": 40_000.0,
    "answer": {"kind": "uniform", "low": 40, "high": 80},
}


def config(gpus: int, **burnin: Any) -> dict[str, Any]:
    watched = {"use": f"simulated:{gpus}", "poll_s": 0.25, "slow_poll_s": 0.5}
    return {"burnin": {"canary_runs": 3, "canary_s": 5, **burnin}, "gpus": watched}


def begun(d: Daemon, script: Script, *arguments: str) -> None:
    """A run that is under way; the faults begin now."""
    answer = d.control("burnin", "start", "--json", "--profile", "quick", *arguments)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    wait_for(lambda: (brief := d.status()["burnin"]) and brief["elapsed_s"] >= 1, 60, "the load has begun")
    write_script(d.spool / "work" / "simulator", script)


def reported(d: Daemon, limit_s: float) -> dict[str, Any]:
    wait_for(lambda: d.status()["burnin"] is None, limit_s, "the run is over")
    found: dict[str, Any] = json.loads(d.control("burnin", "report", "--json").stdout)
    assert found["state"] == "completed", found["end"]
    return found


def signals(gpu: dict[str, Any]) -> set[str]:
    return {reason["signal"] for reason in gpu["reasons"] if reason["consequence"] != "note"}


def texts(gpu: dict[str, Any], signal: str) -> str:
    return " ".join(reason["text"] for reason in gpu["reasons"] if reason["signal"] == signal)


def test_each_load_finds_its_fault_on_its_gpu_over_a_kill_of_the_daemon(daemon: Start) -> None:
    d = daemon(config(5), simulator=SIMULATOR)
    d.ready()
    faults: Script = {
        "1": [GpuEvent("wrong_tile", every=5, bit=20)],
        "2": [GpuEvent("stuck_bit", bit=37, place_percent=40)],
        "3": [GpuEvent("slow_link", factor=2)],
        "4": [GpuEvent("power_cap", watts=150)],
    }
    begun(d, faults, "--load", "compute,memory", "--duration", "24s")
    parts = d.kill()
    psutil.wait_procs(parts, timeout=20)
    left = [part for part in parts if part.is_running() and part.status() != psutil.STATUS_ZOMBIE]
    assert not left, "no stress process outlives the daemon"
    d.start()
    report = reported(d, 120)
    assert [gap["reason"] for gap in report["gaps"]] == ["obatchd was not running"]
    healthy, tile, bit, link, capped = report["gpus"]
    assert healthy["verdict"] in ("PASS", "PASS_LOW_STRESS"), healthy["reasons"]
    assert "wrong" not in " ".join(signals(healthy))
    assert tile["verdict"] == "FAIL" and "tile " in texts(tile, "wrong_result")
    assert bit["verdict"] == "FAIL" and ", bit 37" in texts(bit, "wrong_memory")
    assert "wrong_result" not in signals(bit) and "wrong_memory" not in signals(tile)
    assert link["verdict"] == "FAIL" and "slow_link" in signals(link), link["reasons"]
    # Products of one precision run for ten seconds in turn, too short to be compared; memory is written all the time.
    assert capped["verdict"] == "FAIL" and "slow_memory" in signals(capped), capped["reasons"]
    assert capped["stress"]["power_percent"] < 50 < healthy["stress"]["power_percent"]
    for number, gpu in enumerate(report["gpus"][1:], 1):
        assert f"burnin bundle {number}" in gpu["action"]
    assert healthy["stress_loads"]["memory"]["covered_percent"] >= 94
    wait_for(
        lambda: d.servers()[2]["state"] == "quarantined", what="the GPU that does not hold its words is out of use"
    )
    d.drop("after.jsonl", prompts(40))
    assert "gpu0" in {record["server"] for record in d.done("after.jsonl").results}


def test_clean_gpus_have_no_fault_while_the_model_and_all_loads_take_turns(daemon: Start) -> None:
    d = daemon(config(3), simulator=SIMULATOR)
    d.ready()
    begun(d, {}, "--load", "model,compute,memory", "--duration", "24s")
    report = reported(d, 120)
    assert {gpu["verdict"] for gpu in report["gpus"]} <= {"PASS", "PASS_LOW_STRESS"}, [
        g["reasons"] for g in report["gpus"]
    ]
    for gpu in report["gpus"]:
        assert gpu["work"]["tokens"] > 100 and gpu["work"]["failed"] == 0
        assert {product["precision"] for product in gpu["stress_loads"]["products"]} >= {"FP32"}
        assert gpu["stress_loads"]["memory"]["covered_percent"] >= 94
        assert not {"wrong_result", "wrong_memory", "slow_link", "slow_compute", "slow_memory"} & signals(gpu)
    assert [phase["loads"] for phase in report["gpus"][0]["phases"]] == [["model"], ["compute", "memory"]]
    assert all(server["state"] == "ready" for server in d.servers())
    names = [process.name() for process in psutil.Process(d.pid).children(recursive=True)]
    assert not [name for name in names if "stress" in name], "no stress process stays"


def test_a_process_that_hangs_is_killed_or_eats_ends_its_own_loads_alone(daemon: Start) -> None:
    d = daemon(config(4, stress_memory_mib=300), simulator=SIMULATOR)
    d.ready()
    faults: Script = {
        "1": [GpuEvent("hang_kernel", at_s=1)],
        "2": [GpuEvent("killed", at_s=4)],
        "3": [GpuEvent("eats_memory", at_s=4)],
    }
    begun(d, faults, "--load", "compute,memory", "--duration", "45s")
    d.drop("meanwhile.jsonl", prompts(10))
    report = reported(d, 150)
    healthy, hung, killed, eaten = report["gpus"]
    assert healthy["verdict"] in ("PASS", "PASS_LOW_STRESS"), healthy["reasons"]
    assert not signals(healthy) - {"low_stress"}
    for gpu, signal, words in (
        (hung, "stress_hung", "said nothing for 30 s"),
        (killed, "stress_died", "died of signal 9"),
        (eaten, "stress_memory_limit", "more than 300"),
    ):
        assert gpu["verdict"] == "INCONCLUSIVE", gpu["reasons"]
        assert words in texts(gpu, signal), gpu["reasons"]
        assert gpu["action"] and gpu["action"] != "None."
    assert report["elapsed_s"] >= 44 and report["gaps"] == []
    d.done("meanwhile.jsonl")
    assert all(server["state"] == "ready" for server in d.servers())
