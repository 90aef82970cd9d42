"""Memory of the main process and the time to the first request, for a small and a huge drop.

    python bench/memory.py [--lines 10000 1000000]

Resident memory of the main process at its greatest while the job runs; milliseconds from the rename of a drop to its
first request at a server (p99 over ``--latency-runs`` drops of each size; the job is cancelled after each). What is
dropped is on the disk already; with ``unflushed`` it was written just before, and the disk has to take it first: a drop
is accepted when it cannot be lost any more. The servers take no time. Needs nginx.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from harness import Daemon, finish, nginx, prompt_lines, remote_config, settled_size, table, wait_for, workplace

from obatchd.errors import ControlError


def peak_memory_mb(directory: Path, lines: int) -> tuple[float, float]:
    """(greatest resident memory of main in MB, prompts per second) over one whole job."""
    directory.mkdir()
    settings: dict[str, Any] = {"servers": {"remote_slots": 8}, "outbox": {"response_files": "never"}}
    with nginx(directory, 4) as ports, Daemon(directory, remote_config(ports, **settings)) as daemon:
        daemon.start()
        main = daemon.main
        drop = directory / "job.jsonl"
        prompt_lines(drop, lines)
        os.sync()
        begun_s = time.perf_counter()
        os.rename(drop, daemon.inbox / drop.name)
        peak = 0

        def done() -> bool:
            nonlocal peak
            peak = max(peak, main.memory_info().rss)
            return bool(list(daemon.outbox.glob("job.*/summary.json")))

        wait_for(done, 1800, "the job is done", 0.1)
        return max(peak, psutil.Process(main.pid).memory_info().rss) / 1e6, lines / (time.perf_counter() - begun_s)


def first_request_ms(directory: Path, lines: int, runs: int, *, flushed: bool) -> list[float]:
    """Milliseconds from the rename of a drop to its first prompt at a server, by the server's log."""
    directory.mkdir()
    log = directory / "chat.log"
    found = []
    source = directory / "source.jsonl"
    prompt_lines(source, lines)
    with (
        nginx(directory, 4, log) as ports,
        Daemon(directory, remote_config(ports, outbox={"response_files": "never"})) as daemon,
    ):
        daemon.start()
        for run in range(runs + 1):
            drop = directory / f"run{run}.jsonl"
            shutil.copyfile(source, drop)
            if flushed:
                os.sync()
            size = settled_size(log)
            begun_s = time.time()
            os.rename(drop, daemon.inbox / drop.name)
            wait_for(lambda size=size: log.stat().st_size > size, 60, "a prompt has come", 0.001)
            with open(log, "rb") as file:
                file.seek(size)
                first_s = float(file.readline())
            if run:  # the first one loads the model
                found.append((first_s - begun_s) * 1000)
            [job] = wait_for(lambda run=run: list(daemon.outbox.glob(f"run{run}.*")), 30, "the job is there", 0.01)
            with contextlib.suppress(ControlError):  # a small job may be over by now
                daemon.client.post(f"jobs/{job.name.rpartition('.')[2]}/cancel")
            wait_for(lambda job=job: (job / "summary.json").exists(), 120, "the job is over", 0.01)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, nargs=2, default=[10_000, 1_000_000])
    parser.add_argument("--latency-runs", type=int, default=20)
    arguments = parser.parse_args()
    small, large = arguments.lines
    figures: dict[str, float] = {}
    with workplace() as directory:
        for lines in (small, large):
            for flushed, kind in ((True, ""), (False, "unflushed_")):
                runs = arguments.latency_runs if flushed else max(2, arguments.latency_runs // 4)
                latencies = sorted(first_request_ms(directory / f"{kind}l{lines}", lines, runs, flushed=flushed))
                worst = latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))]
                figures[f"{kind}first_request_p99_ms_{lines}"] = worst
            peak, rate = peak_memory_mb(directory / f"m{lines}", lines)
            figures[f"main_peak_mb_{lines}"], figures[f"prompts_per_s_{lines}"] = peak, rate
    figures["growth_mb"] = figures[f"main_peak_mb_{large}"] - figures[f"main_peak_mb_{small}"]
    goals = {
        f"main_peak_mb_{large}": ("<=", 120.0),
        "growth_mb": ("<=", 5.0),
        f"first_request_p99_ms_{small}": ("<=", 50.0),
        f"first_request_p99_ms_{large}": ("<=", 50.0),
    }
    table("memory of the main process", [(name, f"{value:.1f}") for name, value in figures.items()])
    return finish("memory", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
