"""A head whose hosts are started by a real Ray of three nodes on this machine, and what fails in it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

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
    host_pids,
    launchers,
    let_go,
    ray_head,
    servers_of,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(MISSING, reason="Ray is not installed: pip install 'obatchd[ray]'"),
]
NODES = 3
CUT_S = 40.0  # Ray takes a node for dead that is silent for a minute
SIMULATOR: Document = {"service_s": {"kind": "uniform", "low": 0.1, "high": 0.3}, "models": [{"name": "tiny"}]}


@pytest.fixture(scope="module")
def ray() -> Iterator[RayHere]:
    made = RayHere(NODES, SIMULATOR)
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def waiting(ray: RayHere, make_head: Callable[..., Head]) -> Head:
    """A head that is not started yet."""
    ray.start()
    return ray_head(make_head, ray, SIMULATOR)


@pytest.fixture
def loads(waiting: Head, ray: RayHere) -> Loads:
    """Of all hosts from the start of the head on."""
    return Loads(waiting, ray)


@pytest.fixture
def head(waiting: Head, loads: Loads) -> Iterator[Head]:
    """A head whose hosts are all here; at the end it lets Ray go."""
    waiting.start()
    waiting.has_ready(NODES * GPUS, START_S)
    yield waiting
    let_go(waiting)


class Work:
    """A job that all servers work on from the beginning of a test on."""

    def __init__(self, head: Head, count: int, name: str) -> None:
        self._head = head
        self._name = name
        self._asked = prompts(count, name)
        head.drop(f"{name}.jsonl", self._asked)
        wait_for(lambda: head.succeeded() > 50, 60, "work is under way")

    def is_done(self) -> None:
        """Wait for its end, and for that of more work that each server has a part in; each request has one answer."""
        self._head.done(f"{self._name}.jsonl", 120).check(self._asked)
        again = prompts(300, f"{self._name}-again")
        self._head.drop(f"{self._name}-again.jsonl", again)
        self._head.done(f"{self._name}-again.jsonl", 120).check(again)


def test_jobs_are_answered_by_hosts_that_ray_started(head: Head, ray: RayHere) -> None:
    asked = prompts(200)
    job = head.done(head.drop("q.jsonl", asked), 60)
    job.check(asked)
    assert {result["server"].partition(".")[0] for result in job.results} == set(ray.names())
    told = engine(head)
    assert (told["kind"], told["state"], told["authenticated"]) == ("ray", "here", False)
    assert [(node["name"], node["state"], node["gpus"]) for node in told["nodes"]] == [
        (name, "running", GPUS) for name in ray.names()
    ]


def test_a_raylet_that_is_killed_and_started_again_brings_its_host_back(head: Head, ray: RayHere, loads: Loads) -> None:
    work = Work(head, 1000, "raylet")
    loads.are(*servers_of(ray))
    ray.kill_raylet(2)
    wait_for(lambda: head.hosts()[ray.name(2)]["state"] == "away", 30, "its host is away")
    wait_for(lambda: ray.host(2) is None, 30, "its host has ended, because its GPUs may be somebody else's")
    ray.start_node(2)
    assert back_s(head, ray) <= BACK_S
    work.is_done()
    loads.are(*servers_of(ray, 2))


def test_a_launcher_that_is_killed_is_noticed_by_nobody(head: Head, ray: RayHere, loads: Loads) -> None:
    work = Work(head, 400, "launcher")
    loads.are(*servers_of(ray))
    hosts = host_pids(ray)
    first = launchers(head)[0]
    first.kill()
    wait_for(lambda: [one.pid for one in launchers(head)] not in ([], [first.pid]), 60, "another launcher")
    wait_for(lambda: engine(head)["state"] == "here", BACK_S, "Ray is here")
    work.is_done()
    loads.are()
    assert host_pids(ray) == hosts
    assert not head.events("host_away")


def test_a_head_that_is_killed_finds_its_hosts_again_with_their_models(head: Head, ray: RayHere, loads: Loads) -> None:
    work = Work(head, 600, "head")
    loads.are(*servers_of(ray))
    hosts = host_pids(ray)
    head.kill()
    head.start()
    head.has_ready(NODES * GPUS, BACK_S)
    work.is_done()
    loads.are()
    wait_for(lambda: engine(head)["state"] == "here", BACK_S, "Ray is here")
    assert host_pids(ray) == hosts


def test_a_cut_shorter_than_rays_time_out_costs_no_load(head: Head, ray: RayHere, loads: Loads) -> None:
    work = Work(head, 1000, "cut")
    loads.are(*servers_of(ray))
    hosts = host_pids(ray)
    began_s = time.monotonic()
    with frozen(ray.raylet(2), ray.host(2)):
        wait_for(lambda: head.hosts()[ray.name(2)]["state"] == "away", 15, "silence is noticed")
        wait_for(lambda: time.monotonic() - began_s > CUT_S, CUT_S + 10, "it lasts so long")
    head.has_ready(NODES * GPUS, BACK_S)
    work.is_done()
    loads.are()
    assert host_pids(ray) == hosts


def test_a_silence_of_ray_that_is_shorter_than_that_is_no_hosts_trouble(head: Head, ray: RayHere, loads: Loads) -> None:
    work = Work(head, 1000, "silent")
    loads.are(*servers_of(ray))
    hosts = host_pids(ray)
    began_s = time.monotonic()
    with frozen(ray.gcs()):
        wait_for(lambda: time.monotonic() - began_s > CUT_S, CUT_S + 10, "it lasts so long")
    work.is_done()
    loads.are()
    wait_for(lambda: engine(head)["state"] == "here", BACK_S, "Ray is here")
    assert host_pids(ray) == hosts
    assert not head.events("host_away")


def test_a_ray_that_ends_and_begins_anew_does_not_harm_the_daemon(head: Head, ray: RayHere, loads: Loads) -> None:
    work = Work(head, 600, "gcs")
    loads.are(*servers_of(ray))
    pid = head.pid
    ray.kill_gcs()
    wait_for(lambda: engine(head)["state"] == "gone", 150, "Ray is gone")
    assert "ray start --head" in engine(head)["reason"]
    ray.end_by_hand()
    ray.start()
    assert back_s(head, ray) <= BACK_S
    work.is_done()
    loads.are(*servers_of(ray))
    assert head.status()["pid"] == pid


def test_a_node_that_ray_takes_away_gives_back_its_work_first(head: Head, ray: RayHere) -> None:
    asked = prompts(4000, "drained")
    drop = head.drop("drained.jsonl", asked)
    wait_for(lambda: head.succeeded() > 50, 60, "work is under way")
    ray.drain(3)
    wait_for(lambda: ray.host(3) is None, 60, "its host has gone")
    assert head.status()["queue"]["requests"], "there was still work"
    job = head.done(drop, 180)
    job.check(asked)
    assert {result["attempts"] for result in job.results} == {1}
    assert head.hosts()[ray.name(3)]["state"] == "away"
    wait_for(lambda: ray.raylet(3) is None, 60, "its node is free, and Ray has taken it")


def test_a_forgotten_host_ends_until_its_raylet_is_started_again(head: Head, ray: RayHere) -> None:
    done = head.control("hosts", "forget", ray.name(2))
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: ray.host(2) is None, BACK_S, "its host has ended")

    def is_free() -> bool:
        nodes = {node["name"]: node for node in engine(head)["nodes"]}
        return nodes[ray.name(2)]["state"] == "none" and "forgotten" in nodes[ray.name(2)]["reason"]

    wait_for(is_free, 30, "its node says why it has none")
    ray.kill_raylet(2)
    ray.start_node(2)
    assert back_s(head, ray) <= BACK_S


def test_actors_end_when_the_head_leaves_ray(head: Head, ray: RayHere) -> None:
    let_go(head)
    assert host_pids(ray) == [None] * NODES
    head.config_file.write_text(head.config_file.read_text().replace('engine = "none"', 'engine = "ray"'))
    head.start()
    head.has_ready(NODES * GPUS, BACK_S)
    os.kill(launchers(head)[0].pid, signal.SIGSTOP)  # as one that hangs in Ray; it must not keep the daemon from ending
    assert head.stop() == 0
