"""Hours of work over hosts; see scripts/soak. Exit status 1: something grows, slots stood empty, an answer is wrong."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from cluster_support import Fleet, HostProcess, make_fleet  # noqa: E402 - needs the path above
from daemon_support import Daemon  # noqa: E402

from obatchd.errors import DaemonDownError  # noqa: E402

HOSTS, GPUS, SLOTS = 7, 4, 4
QUEUE = 3 * HOSTS * GPUS * SLOTS  # requests that wait at least
CONFIG: dict[str, Any] = {
    "log_level": "info",
    "servers": {"slots": SLOTS, "backoff_max_s": 1},
    "dispatch": {"max_attempts": 1000, "poison_crashes": 1000, "strikes": 1_000_000},
}
OF_HOSTS: dict[str, Any] = {"log_level": "info", "gpus": {"poll_s": 5}}
SIMULATOR = {"service_s": {"kind": "uniform", "low": 1.0, "high": 6.0}, "chunk_s": 3600, "load_s": 0.5}
FAULTS = ("worker", "serve", "runner", "break", "reload", "host")
MINUTE_S, FAULT_S, POLL_S = 60.0, 50.0, 5.0
OCCUPANCY = 0.98
# The most that may be added in an hour, by figure; of what is left after the first fifth.
MOST_AN_HOUR = {"head_mib": 8.0, "hosts_mib": 8.0 * HOSTS, "descriptors": 10.0, "threads": 2.0, "wal_mib": 16.0}


class Soak:
    """The work, its faults, and the figures of each minute."""

    def __init__(self, fleet: Fleet, seed: int, lines: Path) -> None:
        self._fleet = fleet
        self._source = random.Random(seed)
        self._lines = lines
        self._asked: dict[str, list[dict[str, Any]]] = {}  # of jobs that are not judged yet
        self._jobs = 0
        self._faults: Counter[str] = Counter()
        self._shares: list[float] = []  # of slots that are busy, this minute
        self._log_bytes = 0
        self.answered = 0
        self.figures: list[dict[str, float]] = []
        self.violations: list[str] = []

    def run(self, hours: float) -> None:
        """Work for so long, and judge every job."""
        begun_s = time.monotonic()
        due = {"fault": begun_s + FAULT_S, "minute": begun_s + MINUTE_S, "poll": begun_s}
        while (now_s := time.monotonic()) < begun_s + hours * 3600:
            self._hand_over()
            if now_s >= due["poll"]:
                self._fleet.head.control("status", "--json")
                due["poll"] = now_s + POLL_S
            if now_s >= due["fault"]:
                self._befall(self._source.choice(FAULTS))
                due["fault"] = now_s + FAULT_S
            if now_s >= due["minute"]:
                self._write((now_s - begun_s) / 60)
                self._judge(wait=False)
                due["minute"] = now_s + MINUTE_S
            time.sleep(0.5)
        self._judge(wait=True)

    def _hand_over(self) -> None:
        with contextlib.suppress(DaemonDownError, OSError):
            status = self._fleet.head.status()
            servers = status["servers"]
            waiting = sum(job["requests"] - job["succeeded"] for job in status["jobs"])
            if waiting >= QUEUE:
                self._shares.append(sum(server["in_flight"] for server in servers) / (HOSTS * GPUS * SLOTS))
            while waiting < 2 * QUEUE:
                waiting += self._drop()

    def _drop(self) -> int:
        self._jobs += 1
        name, count = f"soak{self._jobs:06}", self._source.choice((1, 5, 20, 100, 400))
        words = " word" * self._source.choice((1, 10, 300))
        model = {"model": "simulated"} if self._source.random() < 0.03 else {}
        asked = [{"id": f"{name}-{i}", "prompt": f"{name}: what is {i}?{words}", **model} for i in range(count)]
        self._fleet.head.drop(f"{name}.jsonl", asked)
        self._asked[name] = asked
        return count

    def _befall(self, what: str) -> None:
        number = self._source.randrange(HOSTS)
        host, line = self._fleet.hosts[number], self._fleet.lines[number]
        self._faults[what] += 1
        with contextlib.suppress(psutil.Error, DaemonDownError, StopIteration):
            if what == "reload":
                self._fleet.head.control("reload")
            elif what == "break":
                line.break_()
                line.heal()
            elif what == "host":
                host.kill()
                host.launch()
            else:
                server = self._source.choice(host.servers())
                pid = server["worker_pid"] if what == "worker" else server["pid"]
                victim = psutil.Process(pid)
                (victim if what != "runner" else next(iter(victim.children()))).kill()

    # Figures.

    def _write(self, minute: float) -> None:
        processes = [_main(self._fleet.head), *(_main(host) for host in self._fleet.hosts)]
        log_bytes = sum(each.log_file.stat().st_size for each in (self._fleet.head, *self._fleet.hosts))
        figures = {
            "minute": round(minute, 2),
            "answered": self.answered,
            "occupancy": round(statistics.fmean(self._shares), 4) if self._shares else 0.0,
            "head_mib": processes[0].memory_info().rss / 2**20,
            "hosts_mib": sum(process.memory_info().rss for process in processes[1:]) / 2**20,
            "descriptors": processes[0].num_fds() - self._open_segments(processes[0].pid),
            "threads": processes[0].num_threads(),
            "wal_mib": _size(self._fleet.head.spool.rglob("*-wal")) / 2**20,
            "log_bytes": log_bytes - self._log_bytes,
            "faults": sum(self._faults.values()),
        }
        self._log_bytes = log_bytes
        self._shares.clear()
        self.figures.append(figures)
        with self._lines.open("a") as file:
            file.write(json.dumps({name: round(value, 3) for name, value in figures.items()}) + "\n")
        print(json.dumps(figures), flush=True)

    def _open_segments(self, pid: int) -> int:
        found = 0
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found += "/work/segments/" in os.readlink(path)
        return found

    # Verdict.

    def _judge(self, *, wait: bool) -> None:
        """Each job that is over: every request once and rightly. Its outbox is removed then."""
        for name, asked in list(self._asked.items()):
            if not wait and not any(self._fleet.head.outbox.glob(f"{name}.*/summary.json")):
                continue
            try:
                job = self._fleet.head.done(f"{name}.jsonl", 120)
                job.check(asked)
            except (AssertionError, KeyError, OSError) as error:
                self.violations.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            else:
                shutil.rmtree(job.directory)
            self.answered += len(asked)
            del self._asked[name]

    def judged(self) -> list[str]:
        """What is not as it should be, with the figures after the first fifth."""
        found = list(self.violations)
        settled = self.figures[len(self.figures) // 5 :]
        if len(settled) < 3:
            return [*found, "too short to judge: at least five minutes"]
        occupancy = statistics.fmean(each["occupancy"] for each in settled)
        if occupancy < OCCUPANCY:
            found.append(f"slots were busy for {occupancy:.3f} of the time, and not {OCCUPANCY}")
        for name, most in MOST_AN_HOUR.items():
            slope = (
                60
                * statistics.linear_regression(
                    [each["minute"] for each in settled], [each[name] for each in settled]
                ).slope
            )
            print(f"{name}: {slope:+.2f} an hour (at most {most:g})")
            if slope > most:
                found.append(f"{name} grows by {slope:.2f} an hour")
        return found


def _main(process: Daemon | HostProcess) -> psutil.Process:
    return psutil.Process(process.pid)


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            total += path.stat().st_size
    return total


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0, help="how long (default 2)")
    parser.add_argument("--seed", type=int, default=7, help="of jobs and faults (default 7)")
    parser.add_argument("--lines", type=Path, default=Path("soak.jsonl"), help="where the figures are kept")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="obatchd-soak-"))
    print(f"seed {options.seed}, {options.hours:g} h, in {root}; figures in {options.lines}", flush=True)
    with make_fleet(root, HOSTS, gpus=GPUS, config=CONFIG, simulator=SIMULATOR, of_hosts=OF_HOSTS) as fleet:
        soak = Soak(fleet, options.seed, options.lines)
        soak.run(options.hours)
        violations = soak.judged()
    for violation in violations:
        print(f"VIOLATION: {violation}")
    if violations:
        print(f"Everything is kept: {root}")
        return 1
    shutil.rmtree(root)
    print(f"{soak.answered} requests, every promise was kept")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
