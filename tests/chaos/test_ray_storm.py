"""A storm over the Ray that starts the hosts: its launcher, its raylets and its head are killed again and again."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest
from cluster_support import Head
from daemon_support import Document, prompts, wait_for
from ray_here import MISSING, RayHere

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(MISSING, reason="Ray is not installed: pip install 'obatchd[ray]'"),
]
NODES, GPUS = 4, 2
KILLS = Counter(launcher=14, raylet=10, gcs=6)
_LEAST, _JOB = 1000, 3000  # requests: a job lasts half a minute
BACK_S = 90.0  # after Ray is back
SIMULATOR: Document = {"service_s": {"kind": "uniform", "low": 0.1, "high": 0.5}, "models": [{"name": "tiny"}]}


class Storm:
    """One of them, with work all the time; ``seed`` decides the order of the kills."""

    def __init__(self, head: Head, ray: RayHere, seed: int) -> None:
        self.head = head
        self.ray = ray
        self.chosen = random.Random(seed)
        self.asked: dict[str, list[Document]] = {}
        self.back_s: dict[str, list[float]] = {"raylet": [], "gcs": []}

    def work(self) -> None:
        """Drop another job when the former ones are nearly done."""
        status = self.head.status()
        if status["queue"]["requests"] < _LEAST:
            name = f"storm{len(self.asked)}"
            self.asked[name] = prompts(_JOB, name)
            self.head.drop(f"{name}.jsonl", self.asked[name])

    def kill(self, what: str) -> None:
        if what == "launcher":
            self._kill_launcher()
        elif what == "raylet":
            number = self.chosen.choice(list(self.ray.numbers))
            self.ray.kill_raylet(number)
            self.ray.start_node(number)
            self._until_back(what)
        else:
            self.ray.kill_gcs()
            wait_for(lambda: self._engine() != "here", 150, "the head has noticed it")
            self.ray.end_by_hand()
            self.ray.start()
            self._until_back(what)

    def _kill_launcher(self) -> None:
        pids = self._launchers()
        for process in self.head.parts():
            if process.pid in pids:
                process.kill()
        wait_for(lambda: self._launchers() and not self._launchers() & pids, 60, "another launcher")
        wait_for(lambda: self._engine() == "here", BACK_S, "it sees Ray")

    def _until_back(self, what: str) -> None:
        began_s = time.monotonic()
        self.head.has_ready(NODES * GPUS, BACK_S)
        self.back_s[what].append(round(time.monotonic() - began_s, 1))

    def _launchers(self) -> set[int]:
        return {part.pid for part in self.head.parts() if "obatchd.cluster.launch_ray" in part.cmdline()}

    def _engine(self) -> str:
        return str(self.head.status()["engine"]["state"])


def test_thirty_kills_of_launcher_raylets_and_rays_head_lose_no_request(make_head: Callable[..., Head]) -> None:
    seed = int(os.environ.get("OBATCHD_STORM_SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed: OBATCHD_STORM_SEED={seed}")
    ray = RayHere(NODES, SIMULATOR)
    try:
        ray.start()
        settings = {"cluster": {"engine": "ray", "address": ray.address}, "servers": {"slots": 4}}
        head = make_head(settings, SIMULATOR)
        head.start()
        head.has_ready(NODES * GPUS, 2 * BACK_S)
        pid, storm = head.pid, Storm(head, ray, seed)
        kills = list(KILLS.elements())
        storm.chosen.shuffle(kills)
        for number, what in enumerate(kills, start=1):
            storm.work()
            print(f"{number}: {what}", flush=True)
            storm.kill(what)
        for name, asked in storm.asked.items():
            head.done(f"{name}.jsonl", 300).check(asked)
        assert head.status()["pid"] == pid, "the daemon was never started again"
        print(f"{sum(map(len, storm.asked.values()))} requests; seconds until all were back: {storm.back_s}")
    finally:
        ray.clean()
