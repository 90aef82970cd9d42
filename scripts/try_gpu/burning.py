"""The burn-in of five minutes with all loads, and what the card's own libraries reach in power."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from harness import Daemon
from machine import Machine, control, run
from results import Results

DURATION_S, REFERENCE_S = 300, 25
MOST_S = 430  # from its beginning to its end
LOADS = "model,compute,memory"
# Products as large as they are used for benchmarks, without any check; the first library that is there.
REFERENCE = """
import sys, time
seconds = float(sys.argv[1])
try:
    import torch
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product, wait, name = (lambda: torch.matmul(left, right)), torch.cuda.synchronize, "torch " + torch.__version__
except ImportError:
    import cupy
    left, right = (cupy.random.standard_normal((8192, 8192), dtype=cupy.float32).astype(cupy.float16) for _ in range(2))
    product, wait, name = (lambda: left @ right), cupy.cuda.Device().synchronize, "cupy " + cupy.__version__
product(); wait()
began_s, times = time.perf_counter(), 0
while time.perf_counter() - began_s < seconds:
    for _ in range(50):
        product()
    wait()
    times += 50
print(name, 2 * 8192**3 * times / (time.perf_counter() - began_s) / 1e12)
"""


class Watt:
    """Power of GPU 0 while something runs, by ``nvidia-smi``."""

    def __init__(self) -> None:
        self.seen_w: list[tuple[float, float]] = []  # seconds since the epoch
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watt:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        command = ["nvidia-smi", "-i", "0", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        while not self._over.wait(0.5):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            if done.returncode == 0:
                self.seen_w.append((time.time(), float(done.stdout.split()[0])))

    def median_w(self, from_s: float = 0.0) -> float:
        return statistics.median(watts for at_s, watts in self.seen_w if at_s >= from_s)


def reference(machine: Machine, results: Results) -> float | None:
    """The median power under products of the library that is here, or of gpu-burn; the first seconds left out."""
    if not machine.real:
        results.say("no reference of power: the GPU is a stand-in")
        return None
    burn = shutil.which("gpu-burn") or shutil.which("gpu_burn")
    command = [burn, str(REFERENCE_S)] if burn else [sys.executable, "-c", REFERENCE, str(REFERENCE_S)]
    with Watt() as watt:
        began_s = time.time()
        told = run(command, REFERENCE_S + 120, cwd=Path(burn).parent if burn else None).splitlines()[-1]
    median_w = watt.median_w(max(began_s, watt.seen_w[-1][0] - REFERENCE_S + 8))
    results.figure("reference_power_w", median_w, f"W, median, under {Path(burn).name if burn else told} TFLOP/s")
    return median_w


def burnin(machine: Machine, results: Results) -> None:
    """Five minutes with all loads, and the report."""
    reference_w = None
    with results.part("the reference of power"):
        reference_w = reference(machine, results)
    with machine.daemon("burnin", servers={"slots": 32}, burnin={"canary_runs": 5, "canary_s": 60}) as daemon:
        arguments = ["--gpus", "0", "--profile", "quick", "--duration", f"{DURATION_S}s", "--wait"]
        if "--load" in control(daemon, "burnin", "start", "--help").stdout:
            arguments += ["--load", LOADS]
        else:
            results.fail(f"burnin start has no --load yet: only the model loads ({LOADS} was to)")
        with results.part("the run"):
            _carry_out(results, daemon, arguments)
        with results.part("the report"):
            _report(machine, results, daemon, reference_w)


def _carry_out(results: Results, daemon: Daemon, arguments: list[str]) -> None:
    if daemon.status()["burnin"]:
        results.say("the run that was cut off goes on")
        _go_on(results, daemon)
        return
    try:
        answer = control(daemon, "burnin", "start", *arguments, timeout_s=MOST_S)
    except subprocess.TimeoutExpired:
        results.fail(f"the run was not over after {MOST_S} s, and is stopped")
        control(daemon, "burnin", "stop")
        return
    if answer.returncode not in (0, 1, 2):
        results.fail(f"burnin start ended with {answer.returncode}")
    for line in (answer.stdout + answer.stderr).strip().splitlines()[-60:]:
        results.say(line)


def _go_on(results: Results, daemon: Daemon) -> None:
    until_s = time.monotonic() + MOST_S
    while daemon.status()["burnin"]:
        if time.monotonic() > until_s:
            results.fail(f"the run was not over after {MOST_S} s more, and is stopped")
            control(daemon, "burnin", "stop")
            return
        time.sleep(1)
    for line in control(daemon, "burnin", "report").stdout.strip().splitlines()[-60:]:
        results.say(line)


def _report(machine: Machine, results: Results, daemon: Daemon, reference_w: float | None) -> None:
    told = control(daemon, "burnin", "report", "--html", str(results.kept / "burnin.html"))
    results.check((results.kept / "burnin.html").exists(), f"burnin.html is written, exit status {told.returncode}")
    report: dict[str, Any] = daemon.client.get("burnin/reports/latest")
    results.json("burnin.json", report)
    gpu = report["gpus"][0]
    results.figure("verdict", gpu["verdict"])
    for reason in gpu["reasons"]:
        results.say(f"{reason['consequence']} {reason['signal']}: {reason['text']}")
    stress = gpu["stress"]
    for name in (
        "power_w",
        "power_limit_w",
        "power_percent",
        "utilisation_percent",
        "clock_mhz",
        "temp_c",
        "memory_temp_c",
    ):
        results.figure(name, stress.get(name))
    if machine.real:
        results.check(gpu["verdict"] == "PASS", f"the verdict of a healthy card is {gpu['verdict']}")
    power_w = _power_under_products(daemon)
    if power_w is not None:
        results.figure("power_under_products_w", power_w, "W, median")
    if power_w is not None and reference_w:
        results.figure("power_to_reference", round(power_w / reference_w, 3))
        results.check(power_w >= 0.95 * reference_w, f"{power_w:.0f} W are at least 0.95 of {reference_w:.0f} W")


def _power_under_products(daemon: Daemon) -> float | None:
    """The median power of the buckets in phases with the load ``compute``, from the journal."""
    journals = sorted((daemon.spool / "work" / "burnin").glob("*.jsonl"))
    records = [json.loads(line) for line in journals[-1].read_text().splitlines()] if journals else []
    loads: list[str] = []
    seen_w = []
    for record in records:
        if record.get("type") == "phase":
            loads = record.get("loads", [])
        if record.get("type") == "bucket" and "compute" in loads:
            seen_w += [sample["power_w"] for sample in record["gpus"].values() if sample.get("power_w")]
    return statistics.median(seen_w[2:] or seen_w) if seen_w else None
