"""A storm over the Ray that starts the hosts: its launcher, its raylets and its head are killed again and again."""

from __future__ import annotations

import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from cluster_support import Head
from daemon_support import Document, prompts, wait_for
from ray_here import MISSING, RayHere
from ray_support import (
    BACK_S,
    GPUS,
    START_S,
    Loads,
    back_s,
    engine,
    frozen,
    launchers,
    ray_head,
    servers_of,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(MISSING, reason="Ray is not installed: pip install 'obatchd[ray]'"),
]
NODES = 4
# After those of Ray's parts and of a node's a model is loaded again; after the others none is.
KILLS = Counter(launcher=14, raylet=10, gcs=6, head=4, cut=4)
_LEAST, _JOB = 1000, 3000  # requests: a job lasts a minute
_CUT_S = 20.0  # less than Ray's time-out, and more than that of a session
SIMULATOR: Document = {"service_s": {"kind": "uniform", "low": 0.3, "high": 1.0}, "models": [{"name": "tiny"}]}


class Storm:
    """One of them, with work all the time; ``seed`` decides the order of the kills."""

    def __init__(self, head: Head, ray: RayHere, seed: int) -> None:
        self.head = head
        self.ray = ray
        self.chosen = random.Random(seed)
        self.asked: dict[str, list[Document]] = {}
        self.back_s: dict[str, list[float]] = defaultdict(list)
        self.loads = Loads(head, ray)

    def begin(self) -> None:
        """Start the head; every server loads its model for the first time."""
        self.head.start()
        self.head.has_ready(NODES * GPUS, START_S)
        self._have_loaded(*servers_of(self.ray))

    def kill(self, what: str) -> None:
        """One of them; returns when all is as it was."""
        self._work()
        match what:
            case "launcher":
                self._kill_launcher()
                self._have_loaded()
            case "head":
                self.head.kill()
                began_s = time.monotonic()
                self.head.start()
                self.head.has_ready(NODES * GPUS, BACK_S)
                self.back_s[what].append(round(time.monotonic() - began_s, 1))
                wait_for(lambda: self._engine() == "here", BACK_S, "it sees Ray")
                self._have_loaded()
            case "cut":
                self._cut(self._node())
                self._have_loaded()
            case "raylet":
                number = self._node()
                self.ray.kill_raylet(number)
                self.ray.start_node(number)
                self._until_back(what)
                self._have_loaded(*servers_of(self.ray, number))
            case "gcs":
                self.ray.kill_gcs()
                wait_for(lambda: self._engine() != "here", 150, "the head has noticed it")
                self.ray.end_by_hand()
                self.ray.start()
                self._until_back(what)
                self._have_loaded(*servers_of(self.ray))

    def answered(self) -> int:
        """Wait until all jobs are over, and check that each request was answered once; how many there were."""
        for name, asked in self.asked.items():
            self.head.done(f"{name}.jsonl", 300).check(asked)
        return sum(map(len, self.asked.values()))

    def _work(self) -> None:
        """Drop another job when the former ones are nearly done."""
        if self.head.status()["queue"]["requests"] < _LEAST:
            name = f"storm{len(self.asked)}"
            self.asked[name] = prompts(_JOB, name)
            self.head.drop(f"{name}.jsonl", self.asked[name])

    def _kill_launcher(self) -> None:
        pids = self._launchers()
        for process in launchers(self.head):
            process.kill()
        wait_for(lambda: self._launchers() and not self._launchers() & pids, 60, "another launcher")
        wait_for(lambda: self._engine() == "here", BACK_S, "it sees Ray")

    def _cut(self, number: int) -> None:
        began_s = time.monotonic()
        with frozen(self.ray.raylet(number), self.ray.host(number)):
            wait_for(lambda: time.monotonic() - began_s > _CUT_S, _CUT_S + 10, "it lasts so long")
            assert self.head.hosts()[self.ray.name(number)]["state"] == "away"
        began_s = time.monotonic()
        self.head.has_ready(NODES * GPUS, BACK_S)
        self.back_s["cut"].append(round(time.monotonic() - began_s, 1))

    def _until_back(self, what: str) -> None:
        took_s = back_s(self.head, self.ray)
        self.back_s[what].append(round(took_s, 1))
        assert took_s <= BACK_S

    def _have_loaded(self, *servers: str) -> None:
        """Each of these once since the last look, and no other."""
        self._work()
        self.loads.are(*servers)

    def _node(self) -> int:
        return self.chosen.choice(list(self.ray.numbers))

    def _launchers(self) -> set[int]:
        return {process.pid for process in launchers(self.head)}

    def _engine(self) -> str:
        return str(engine(self.head)["state"])


def test_thirty_kills_of_launcher_raylets_and_rays_head_lose_no_request(make_head: Callable[..., Head]) -> None:
    seed = int(os.environ.get("OBATCHD_STORM_SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed: OBATCHD_STORM_SEED={seed}")
    ray = RayHere(NODES, SIMULATOR)
    try:
        ray.start()
        head = ray_head(make_head, ray, SIMULATOR)
        storm = Storm(head, ray, seed)
        storm.begin()
        kills = list(KILLS.elements())
        storm.chosen.shuffle(kills)
        began_s = time.monotonic()
        for number, what in enumerate(kills, start=1):
            print(f"{time.monotonic() - began_s:5.0f} s  {number}: {what}", flush=True)
            storm.kill(what)
            assert head.status()["pid"] == head.pid, "the daemon was never started again by anybody else"
        print(f"{storm.answered()} requests, each answered once; loads of models: {storm.loads.count}")
        print(f"seconds until all were back: {dict(storm.back_s)}")
    finally:
        ray.clean()
