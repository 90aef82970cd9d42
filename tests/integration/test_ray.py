"""A head whose hosts are started by a real Ray of three nodes on this machine, and what fails in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cluster_support import Head
from daemon_support import Document, ask_server, prompts, wait_for
from ray_support import MISSING, Ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(MISSING, reason="Ray is not installed: pip install 'obatchd[ray]'"),
]
NODES, GPUS = 3, 2
BACK_S = 120.0  # 30 s are asked for on a machine of its own; tests share theirs
SIMULATOR: Document = {"service_s": 0.2, "models": [{"name": "tiny"}]}


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    made = Ray(NODES, SIMULATOR)
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def head(ray: Ray, make_head: Callable[..., Head]) -> Iterator[Head]:
    """A head whose hosts are all here; at the end it lets Ray go."""
    ray.start()
    made = make_head({"cluster": {"engine": "ray", "address": ray.address}, "servers": {"slots": 4}}, SIMULATOR)
    made.start()
    made.has_ready(NODES * GPUS, BACK_S)
    yield made
    let_go(made)


def let_go(head: Head) -> None:
    """Start the head without an engine, until no actor of it is left."""
    if head.process is not None and head.process.poll() is None:
        head.stop()
    config = head.config_file.read_text().replace('engine = "ray"', 'engine = "none"')
    head.config_file.write_text(config)
    head.start()
    wait_for(lambda: not (head.spool / "work" / "cluster" / "ray.json").exists(), BACK_S, "no actor is left")
    head.stop()


def launchers(head: Head) -> list[psutil.Process]:
    return [one for one in head.parts() if "obatchd.cluster.launch_ray" in one.cmdline()]


def loads(head: Head) -> dict[str, int]:
    """How many models each server has loaded, by the pid of its process: one that was started anew begins with none."""
    return {f"{one['id']} {one['pid']}": ask_server(one["url"], "/simulator/state")["loads"] for one in head.servers()}


def work(head: Head, count: int = 200, name: str = "q") -> tuple[str, list[Document]]:
    asked = prompts(count, name)
    return head.drop(f"{name}.jsonl", asked), asked


def test_jobs_are_answered_by_hosts_that_ray_started(head: Head, ray: Ray) -> None:
    drop, asked = work(head)
    summary = head.job(drop).check(asked)
    assert {server.partition(".")[0] for server in summary["servers"]} == set(ray.names())
    engine = head.client.get("hosts")["engine"]
    assert (engine["kind"], engine["state"], engine["authenticated"]) == ("ray", "here", False)
    assert [(node["name"], node["state"], node["gpus"]) for node in engine["nodes"]] == [
        (name, "running", GPUS) for name in ray.names()
    ]
