"""Floods: a hundred thousand small drops, one drop of a gigabyte, ten thousand jobs that wait.

    python bench/floods.py [--drops 100000] [--lines 1000000] [--waiting 10000]

Everything is answered to the end and counted: by the summaries, and by the lines in the results. Beside it, once in
0.2 s, how long ``status`` takes, and the greatest resident memory of the main process. The servers take no time. 0
leaves a flood out. Needs nginx; best on a file system on which nothing was deleted lately (``BENCH_DIR``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Daemon, finish, nginx, remote_config, table, wait_for, workplace

_TEXT = "The quick brown fox jumps over the lazy dog and thinks about it for a long while. "


class Watch:
    """Asks for the status now and then, in a thread of its own."""

    def __init__(self, daemon: Daemon) -> None:
        self.status_ms: list[float] = []
        self.peak_mb = 0.0
        self._daemon, self._main = daemon, daemon.main
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.2):
            begun_s = time.perf_counter()
            self._daemon.status()
            self.status_ms.append((time.perf_counter() - begun_s) * 1000)
            self.peak_mb = max(self.peak_mb, self._main.memory_info().rss / 1e6)

    @contextmanager
    def running(self) -> Iterator[Watch]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()

    def figures(self, name: str, seconds: float, requests: int) -> dict[str, float]:
        times = sorted(self.status_ms)
        return {
            f"{name}_s": seconds,
            f"{name}_per_s": requests / seconds,
            f"{name}_status_p99_ms": times[int(len(times) * 0.99)],
            f"{name}_status_worst_ms": times[-1],
            f"{name}_peak_mb": self.peak_mb,
        }


def check(daemon: Daemon, jobs: int, requests: int) -> None:
    """Every job has a summary, every request succeeded and is in the results once.

    Raises:
        SystemExit: it is not so.
    """
    seen, succeeded, ids = 0, 0, 0
    for entry in os.scandir(daemon.outbox):
        summary = json.loads(Path(entry.path, "summary.json").read_bytes())
        seen, succeeded = seen + 1, succeeded + summary["succeeded"]
        with open(Path(entry.path, "results.jsonl"), "rb") as results:
            ids += len({json.loads(line)["line"] for line in results})
    if (seen, succeeded, ids) != (jobs, requests, requests):
        raise SystemExit(f"{jobs} jobs of {requests} requests: {seen} summaries, {succeeded} succeeded, {ids} results")


def all_done(daemon: Daemon, jobs: int) -> bool:
    """Whether there are so many summaries; they are counted when the daemon has nothing to do."""
    if os.listdir(daemon.inbox) or daemon.status()["queue"]["jobs"]:
        return False
    return sum(os.path.exists(os.path.join(entry.path, "summary.json")) for entry in os.scandir(daemon.outbox)) == jobs


def flood(directory: Path, drops: int, lines: int, text: str, *, held: bool = False) -> tuple[Watch, float]:
    """Rename ``drops`` files of ``lines`` requests in, one after another, and wait until all is answered.

    Args:
        held: dispatch is paused until every drop is a job.
    """
    directory.mkdir()
    with nginx(directory, 4) as ports, Daemon(directory, configuration(ports)) as daemon:
        daemon.start()
        source = directory / "drops"
        source.mkdir()
        for number in range(drops):
            with open(source / f"d{number:06d}.jsonl", "w") as file:
                file.writelines(f'{{"id": "r{line}", "prompt": "{line}: {text}"}}\n' for line in range(lines))
        os.sync()
        if held:
            daemon.client.post("pause")
        with Watch(daemon).running() as watch:
            begun_s = time.perf_counter()
            for number in range(drops):
                os.rename(source / f"d{number:06d}.jsonl", daemon.inbox / f"d{number:06d}.jsonl")
            if held:
                wait_for(lambda: daemon.status()["queue"]["jobs"] == drops, 900, "every drop is a job", 0.5)
                daemon.client.post("resume")
            wait_for(lambda: all_done(daemon, drops), 1800, "everything is answered", 0.5)
            took_s = time.perf_counter() - begun_s
        check(daemon, drops, drops * lines)
    return watch, took_s


def configuration(ports: list[int]) -> dict[str, Any]:
    return remote_config(ports, servers={"remote_slots": 8}, outbox={"response_files": "never"})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--drops", type=int, default=100_000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=10_000)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    floods = {
        "drops": (arguments.drops, 1, _TEXT, False),
        "lines": (1, arguments.lines, _TEXT * 12, False),
        "waiting": (arguments.waiting, 20, _TEXT, True),
    }
    with workplace() as directory:
        for name, (drops, lines, text, held) in floods.items():
            if drops and lines:
                watch, took_s = flood(directory / name, drops, lines, text, held=held)
                figures |= watch.figures(name, took_s, drops * lines)
    table("floods, answered to the end", [(name, f"{value:,.1f}") for name, value in figures.items()])
    goals = {name: ("<=", 150.0) for name in figures if name.endswith("status_p99_ms")}
    return finish("floods", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
