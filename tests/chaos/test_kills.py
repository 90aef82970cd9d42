"""SIGKILL at every instant of the protocols, and in a storm: each request ends up in the outbox exactly once."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from daemon_support import Daemon, Document, alive, ask_server, json_array_gz, jsonl, prompts, wait_for

from obatchd.errors import DaemonDownError

Make = Callable[..., Daemon]
Drop = tuple[str, Any, list[Document]]
INSTANTS = [
    "claim.after_intents",
    "claim.after_rename",
    "claim.after_flush",
    "claim.after_accept",
    "commit.before",
    "commit.before:3",
    "commit.after",
    "commit.after:3",
    "publish.after_whole",
    "publish.after_flush",
    "publish.after_summary",
]
SEED = int(os.environ.get("OBATCHD_TEST_SEED", "7"))
STORM_S = float(os.environ.get("OBATCHD_TEST_STORM_S", "45"))
ATTEMPTS: Document = {
    "dispatch": {"max_attempts": 100},  # here an attempt fails because we killed something
    "servers": {"slots": 4, "stagger_s": 0, "backoff_max_s": 0.2, "starts_limit": 1000},
}


def lines(name: str, count: int) -> Drop:
    asked = prompts(count, name)
    return f"{name}.jsonl", jsonl(asked), asked


def packed_lines(name: str, count: int) -> Drop:
    asked = prompts(count, name)
    return f"{name}.jsonl.gz", gzip.compress(jsonl(asked)), asked


def array(name: str, count: int) -> Drop:
    asked = prompts(count, name)
    return f"{name}.json.gz", json_array_gz(asked), asked


def folder(name: str, count: int) -> Drop:
    asked = prompts(count, name)
    return name, {f"{request['id']}.json": json.dumps(request).encode() for request in asked}, asked


def single(name: str, _count: int) -> Drop:
    [asked] = prompts(1, name)
    return f"{name}.json", json.dumps(asked, indent=1).encode(), [asked]


def check_all(d: Daemon, drops: list[Drop], timeout_s: float = 60) -> None:
    """Every drop is one complete job with one right answer for each request, and nothing else is anywhere."""
    deadline_s = time.monotonic() + timeout_s
    for name, _, asked in drops:
        d.done(name, deadline_s - time.monotonic()).check(asked)
    assert len(list(d.outbox.iterdir())) == len(drops)
    assert list(d.inbox.iterdir()) == []
    assert [path for path in (d.spool / "failed").rglob("*") if path.is_file()] == []
    wait_for(lambda: {job["state"] for job in d.client.get("jobs")["jobs"]} == {"done"}, 5, "every job is over")
    assert len(d.client.get("jobs")["jobs"]) == len(drops)


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_at_an_instant_of_a_protocol(make_daemon: Make, instant: str) -> None:
    d = make_daemon(simulator={"service_s": {"kind": "fixed", "value": 0.05}}).start(instant)
    drops = [lines("lines", 40), folder("folder", 5), array("array", 20), single("single", 1)]
    d.drop_all({name: content for name, content, _ in drops})
    assert d.process is not None
    assert d.process.wait(20) == -signal.SIGKILL
    d.start()
    check_all(d, drops)
    assert d.stop() == 0
    assert d.servers_alive() == []


class Storm:
    """Kills things at random and brings the daemon back; remembers every process it saw."""

    def __init__(self, d: Daemon, source: random.Random) -> None:
        self.d = d
        self.kills = dict.fromkeys(("daemon", "instant", "worker", "serve", "runner"), 0)
        self.seen: set[psutil.Process] = set()
        self._random = source

    def strike(self) -> None:
        if self.d.process is None or self.d.process.poll() is not None:
            self._start()
            return
        self.seen.update(self.d.parts())
        kind = self._random.choices(("daemon", "worker", "serve", "runner"), (2, 3, 3, 3))[0]
        if kind == "daemon":
            self.d.kill()
        elif not self._kill_part(kind):
            return
        self.kills[kind] += 1

    def _start(self) -> None:
        """Start it again, every other time with an instant at which it dies."""
        assert self.d.process is not None
        instant = ""
        if self._random.random() < 0.5:
            instant = f"{self._random.choice(INSTANTS).partition(':')[0]}:{self._random.randint(1, 20)}"
            self.kills["instant"] += 1
        self.d.launch(instant)

    def _kill_part(self, kind: str) -> bool:
        try:
            servers = self.d.servers()
            server = self._random.choice(servers)
            pids = [server["worker_pid"] if kind == "worker" else server["pid"]]
            if kind == "runner":
                pids = ask_server(server["url"], "/simulator/state")["runners"]
            if not pids or pids[0] is None:
                return False
            os.kill(self._random.choice(pids), signal.SIGKILL)
        except (DaemonDownError, OSError, IndexError):
            return False  # it is starting, or has died meanwhile
        return True


@pytest.mark.timeout(300)
def test_a_storm_of_kills_loses_and_doubles_nothing(make_daemon: Make) -> None:
    source = random.Random(SEED)
    d = make_daemon(
        {**ATTEMPTS, "gpus": {"use": "simulated:3"}, "log_level": "info"},
        simulator={"service_s": {"kind": "uniform", "low": 0.01, "high": 0.1}, "load_s": 0.05},
    ).start()
    sizes = [1, 3, 20, 60, 150, 300]
    makers = [lines, packed_lines, array, folder, single]
    drops: list[Drop] = []
    while sum(len(asked) for *_, asked in drops) < 3000:
        number = len(drops)
        drops.append(source.choice(makers)(f"d{number}", source.choice(sizes)))
    storm = Storm(d, source)
    begun_s = time.monotonic()
    waiting = list(drops)
    while (passed_s := time.monotonic() - begun_s) < STORM_S:
        while waiting and len(drops) - len(waiting) < len(drops) * passed_s / (STORM_S * 0.8):
            name, content, _ = waiting.pop(0)
            d.drop(name, content)
        storm.strike()
        time.sleep(source.uniform(0.2, 1.2))
    for name, content, _ in waiting:
        d.drop(name, content)
    if d.process is not None and d.process.poll() is None:
        storm.seen.update(d.parts())
        d.kill()
    d.start()
    check_all(d, drops, 90)
    answered = sum(len(asked) for *_, asked in drops)
    print(f"\nseed {SEED}: {answered} requests of {len(drops)} drops, kills {storm.kills}")
    assert all(storm.kills.values()), storm.kills
    storm.seen.update(d.parts())
    assert d.stop() == 0
    assert d.servers_alive() == []
    _, left = psutil.wait_procs(storm.seen, timeout=2)
    assert not [process for process in left if alive(process.pid)]
