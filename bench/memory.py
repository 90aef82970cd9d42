"""Memory of the main process and the time to the first request, for a small and a huge drop.

    python bench/memory.py [--lines 10000 1000000]

Resident memory of the main process at its greatest while the job runs; milliseconds from the rename of a drop to its
first request at a server (p99 over ``--latency-runs`` drops of each size; the job is cancelled after each). The servers
take no time. Needs nginx.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil
from harness import Daemon, finish, nginx, prompt_lines, remote_config, table, wait_for, workplace


def peak_memory_mb(directory: Path, ports: list[int], lines: int) -> tuple[float, float]:
    """(greatest resident memory of main in MB, prompts per second) over one whole job."""
    directory.mkdir()
    config = remote_config(ports, servers={"remote_slots": 8}, outbox={"response_files": "never"})
    with Daemon(directory, config) as daemon:
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


def first_request_ms(directory: Path, ports: list[int], lines: int, runs: int) -> list[float]:
    """Milliseconds from the rename to the first result's start, from the daemon's own records."""
    directory.mkdir()
    config = remote_config(ports, outbox={"response_files": "always"})
    found = []
    with Daemon(directory, config) as daemon:
        daemon.start()
        source = directory / "source.jsonl"
        prompt_lines(source, lines)
        for run in range(runs + 1):
            drop = directory / f"run{run}.jsonl"
            shutil.copyfile(source, drop)
            begun_s = time.time()
            os.rename(drop, daemon.inbox / drop.name)
            pattern = f"run{run}.*"
            jobs = wait_for(lambda pattern=pattern: list(daemon.outbox.glob(pattern)), 30, "the job is there", 0.001)
            wait_for(lambda job=jobs[0]: any((job / "responses").glob("*.json")), 60, "a response is there", 0.001)
            job = jobs[0].name.rpartition(".")[2]
            first = min(_started_s(path) for path in (jobs[0] / "responses").glob("r?.json"))
            if run:  # the first one loads the model
                found.append((first - begun_s) * 1000)
            if not (jobs[0] / "summary.json").exists():
                daemon.client.post(f"jobs/{job}/cancel")
            wait_for(lambda job=jobs[0]: (job / "summary.json").exists(), 120, "the job is over", 0.01)
    return found


def _started_s(path: Path) -> float:
    return datetime.fromisoformat(json.loads(path.read_bytes())["started_at"]).timestamp()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, nargs=2, default=[10_000, 1_000_000])
    parser.add_argument("--latency-runs", type=int, default=20)
    arguments = parser.parse_args()
    small, large = arguments.lines
    figures: dict[str, float] = {}
    with workplace() as directory, nginx(directory, 4) as ports:
        for lines in (small, large):
            latencies = sorted(first_request_ms(directory / f"l{lines}", ports, lines, arguments.latency_runs))
            figures[f"first_request_p99_ms_{lines}"] = latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))]
            peak, rate = peak_memory_mb(directory / f"m{lines}", ports, lines)
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
