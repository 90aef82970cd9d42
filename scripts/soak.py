"""Hours of work over hosts; see scripts/soak. Exit status 1: something grows, slots stood empty, an answer is wrong."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from cluster_support import Fleet, make_fleet  # noqa: E402 - needs the path above
from daemon_support import is_server  # noqa: E402
from soak_verdict import judged  # noqa: E402

from obatchd.errors import ObatchError  # noqa: E402

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
MINUTE_S, FAULT_S, POLL_S, LOOK_S = 60.0, 50.0, 5.0, 0.5


class Soak:
    """The work, its faults, and the figures of each minute."""

    def __init__(self, fleet: Fleet, seed: int, lines: Path) -> None:
        self._fleet = fleet
        self._source = random.Random(seed)
        self._lines = lines
        self._asked: dict[str, list[dict[str, Any]]] = {}  # of jobs that are not judged yet
        self._jobs = 0
        self._shares: list[float] = []  # of slots that are busy, this minute
        self._log_bytes = self._logged()
        self._begun_s = time.monotonic()
        self.faults: Counter[str] = Counter()
        self.answered = 0
        self.figures: list[dict[str, float]] = []
        self.violations: list[str] = []

    def run(self, hours: float) -> None:
        """Work for so long; what is judged then are the jobs that are over, and the figures of each minute."""
        end_s = self._begun_s + hours * 3600
        due = {"fault": self._begun_s + FAULT_S, "minute": self._begun_s + MINUTE_S, "poll": self._begun_s}
        while (now_s := time.monotonic()) < end_s:
            self._look()
            if now_s >= due["poll"]:
                self._poll()
                due["poll"] = now_s + POLL_S
            if now_s >= due["fault"]:
                self._befall(self._source.choice(FAULTS))
                due["fault"] += FAULT_S
            if now_s >= due["minute"]:
                self._judge(wait=False)
                self._write((now_s - self._begun_s) / 60)
                due["minute"] += MINUTE_S
            time.sleep(LOOK_S)

    def finish(self) -> None:
        """Let what was handed over be answered, and judge it."""
        self._judge(wait=True)

    def _look(self) -> None:
        """Note how many slots are busy while there is work for all, and hand over more of it."""
        try:
            status = self._fleet.head.status()
        except (ObatchError, OSError) as error:
            self._broken(f"the head does not answer: {error}")
            return
        waiting = sum(job["requests"] - job["succeeded"] for job in status["jobs"])
        if waiting >= QUEUE:
            busy = sum(server["in_flight"] for server in status["servers"])  # in a slot, not in a worker's queue
            self._shares.append(busy / (HOSTS * GPUS * SLOTS))
        while waiting < 2 * QUEUE:
            waiting += self._drop()

    def _poll(self) -> None:
        """As an operator who looks all the time."""
        for command in ("status", "hosts"):
            told = self._fleet.head.control(command, "--json")
            try:
                json.loads(told.stdout)
            except ValueError:  # its exit code is 1 also while a host is away
                self._broken(f"obatchctl {command} ended with {told.returncode}: {told.stderr[:300]}")

    def _broken(self, promise: str) -> None:
        self.violations.append(promise)
        print(f"VIOLATION: {promise}", flush=True)

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
        with contextlib.suppress(psutil.Error, StopIteration):  # a victim that is just away
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
                if (pid := server["worker_pid" if what == "worker" else "pid"]) is None:
                    return
                victim = psutil.Process(pid)
                (victim if what != "runner" else next(iter(victim.children()))).kill()
            self.faults[what] += 1

    # Figures.

    def _write(self, minute: float) -> None:
        """One line: what is cut short keeps what it measured."""
        head, *hosts = (psutil.Process(each.pid) for each in (self._fleet.head, *self._fleet.hosts))
        workers = [part for host in self._fleet.hosts for part in host.parts() if not is_server(part)]
        log_bytes = self._logged()
        segments = _open_segments(head.pid)
        figures = {
            "minute": minute,
            "answered": self.answered,
            "occupancy": statistics.fmean(self._shares) if self._shares else 0.0,
            "head_mib": _memory_mib([head]),
            "hosts_mib": _memory_mib(hosts),
            "workers_mib": _memory_mib(workers),
            "head_descriptors": head.num_fds() - segments,
            "hosts_descriptors": sum(host.num_fds() for host in hosts),
            "segments": segments,
            "head_threads": head.num_threads(),
            "hosts_threads": sum(host.num_threads() for host in hosts),
            "wal_mib": _size(self._fleet.head.spool.rglob("*-wal")) / 2**20,
            "log_kib": (log_bytes - self._log_bytes) / 2**10,
            "faults": self.faults.total(),
            "violations": len(self.violations),
        }
        self._log_bytes = log_bytes
        self._shares.clear()
        self.figures.append(figures)
        line = json.dumps({name: round(value, 4) for name, value in figures.items()})
        with self._lines.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def _logged(self) -> int:
        return _size(each.log_file for each in (self._fleet.head, *self._fleet.hosts))

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
                self._broken(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            else:
                shutil.rmtree(job.directory)
            self.answered += len(asked)
            del self._asked[name]


def _open_segments(pid: int) -> int:
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += "/work/segments/" in os.readlink(path)
    return found


def _memory_mib(processes: Iterable[psutil.Process]) -> float:
    total_bytes = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total_bytes += process.memory_info().rss
    return total_bytes / 2**20


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            total += path.stat().st_size
    return total


def _soaked(root: Path, options: argparse.Namespace) -> list[str]:
    """Go through all of it, or up to a signal that ends it; what was broken meanwhile."""
    violations: list[str] = []
    try:
        with make_fleet(root, HOSTS, gpus=GPUS, config=CONFIG, simulator=SIMULATOR, of_hosts=OF_HOSTS) as fleet:
            soak = Soak(fleet, options.seed, options.lines)
            try:
                soak.run(options.hours)
                soak.finish()
            except KeyboardInterrupt:
                print("cut short", flush=True)
            violations += soak.violations
            print(f"{soak.answered} requests answered once and rightly; faults: {dict(soak.faults)}", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever ends it is shown beside the figures
        traceback.print_exc()
        violations.append(f"the soak broke off: {type(error).__name__}: {error}")
    return violations


def _judge(lines: Path, violations: list[str]) -> int:
    """Tell every figure that was kept; the exit status."""
    for each in judged([json.loads(line) for line in lines.read_text().splitlines()]):
        print(("" if each.good else "VIOLATION: ") + each.words)
        violations += [] if each.good else [each.words]
    print(f"{len(violations)} violations" if violations else "every promise was kept")
    return 1 if violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0, help="how long (default 2)")
    parser.add_argument("--seed", type=int, default=7, help="of jobs and faults (default 7)")
    parser.add_argument("--lines", type=Path, default=Path("soak.jsonl"), help="where the figures are kept")
    parser.add_argument("--judge", action="store_true", help="judge figures that were kept, and do nothing else")
    options = parser.parse_args()
    if options.judge:
        return _judge(options.lines, [])
    options.lines.write_text("")
    root = Path(tempfile.mkdtemp(prefix="obatchd-soak-"))
    print(f"seed {options.seed}, {options.hours:g} h, in {root}; figures in {options.lines}", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in the background without the first
        signal.signal(number, signal.default_int_handler)
    status = _judge(options.lines, _soaked(root, options))
    if status:
        print(f"Everything is kept: {root}")
    else:
        shutil.rmtree(root)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
