"""Many small drops: jobs per second and flushes per job; and flushes per second while one large job runs.

    python bench/drops.py [--drops 10000]

Files of one prompt each, renamed in one after another, servers without latency. Jobs per second from the first rename
to the last ``summary.json``. Flushes (fsync, fdatasync, syncfs, sync_file_range) are counted by strace in runs of their
own, because strace slows everything down. Needs nginx and strace.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from pathlib import Path

from harness import Daemon, finish, nginx, prompt_lines, remote_config, table, wait_for, workplace

FLUSHES = "fsync,fdatasync,syncfs,sync_file_range"


def write_drops(directory: Path, count: int) -> list[Path]:
    directory.mkdir()
    paths = []
    for i in range(count):
        path = directory / f"d{i:06d}.json"
        path.write_text(f'{{"prompt": "What is the meaning of drop {i}?"}}\n')
        paths.append(path)
    return paths


def count_summaries(outbox: Path) -> int:
    return sum(1 for entry in os.scandir(outbox) if os.path.exists(os.path.join(entry.path, "summary.json")))


def small_drops(directory: Path, ports: list[int], count: int, prefix: list[str] | None) -> float:
    """Seconds from the first rename to the last summary."""
    directory.mkdir()
    with Daemon(directory, remote_config(ports, servers={"remote_slots": 8})) as daemon:
        daemon.start(prefix)
        paths = write_drops(directory / "drops", count)
        os.sync()
        begun_s = time.perf_counter()
        for path in paths:
            os.rename(path, daemon.inbox / path.name)
        done = 0
        deadline_s = time.monotonic() + 600
        while done < count:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"only {done} of {count} jobs are done")
            time.sleep(0.1)
            # The status of thousands of jobs is work for the daemon, too: it is asked when the inbox is empty.
            if not os.listdir(daemon.inbox) and daemon.status()["queue"]["jobs"] == 0:
                done = count_summaries(daemon.outbox)
        return time.perf_counter() - begun_s


def large_job(directory: Path, ports: list[int], lines: int, prefix: list[str]) -> float:
    """Seconds that a job of ``lines`` prompts takes."""
    directory.mkdir()
    with Daemon(directory, remote_config(ports, outbox={"response_files": "never"})) as daemon:
        daemon.start(prefix)
        drop = directory / "large.jsonl"
        prompt_lines(drop, lines)
        begun_s = time.perf_counter()
        os.rename(drop, daemon.inbox / drop.name)
        wait_for(lambda: list(daemon.outbox.glob("large.*/summary.json")), 600, "the large job is done", 0.02)
        return time.perf_counter() - begun_s


def flushes(trace: Path) -> int:
    """Flushes in an strace summary (strace -c)."""
    names = FLUSHES.replace(",", "|")
    found = re.findall(rf"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(?:{names})$", trace.read_text(), re.MULTILINE)
    return sum(int(calls) for calls in found)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--drops", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=50_000)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    goals: dict[str, tuple[str, float]] = {"jobs_per_s": (">=", 500.0)}
    with workplace() as directory, nginx(directory, 4) as ports:
        elapsed_s = small_drops(directory / "plain", ports, arguments.drops, None)
        figures["jobs_per_s"] = arguments.drops / elapsed_s
        if shutil.which("strace"):
            trace = directory / "trace"
            prefix = ["strace", "-f", "-c", "--seccomp-bpf", "-e", f"trace={FLUSHES}", "-o", str(trace)]
            small_drops(directory / "traced", ports, arguments.drops, prefix)
            figures["flushes_per_job"] = flushes(trace) / arguments.drops
            elapsed_s = large_job(directory / "large", ports, arguments.lines, prefix)
            figures["flushes_per_s_large_job"] = flushes(trace) / elapsed_s
            goals |= {"flushes_per_job": ("<=", 0.5), "flushes_per_s_large_job": ("<=", 20.0)}
    table(f"{arguments.drops} drops of one prompt", [(name, f"{value:.3f}") for name, value in figures.items()])
    return finish("drops", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
