"""A Ray with its dashboard, through which its state and its jobs can be read: what is seen there, and what never is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_support import Head
from daemon_support import Document, prompts, wait_for
from ray_here import BIN, MISSING, NO_DASHBOARD, RayHere
from ray_support import (
    GPUS,
    START_S,
    has_secret,
    host_pids,
    let_go,
    places_with_secrets,
    ray_head,
    secret_hashes,
)

from obatchd.errors import DaemonDownError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(MISSING or NO_DASHBOARD, reason="Ray is not installed whole: pip install 'ray[default]'"),
]
NODES = 1  # with a second one on the same machine, Ray's dashboard finds no agent for a job
SIMULATOR: Document = {"service_s": {"kind": "uniform", "low": 0.1, "high": 0.3}, "models": [{"name": "tiny"}]}
KINDS = ("actors", "jobs", "workers", "tasks", "objects", "runtime-envs")  # of which Ray's state API tells
WAITS = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def ray() -> Iterator[RayHere]:
    made = RayHere(NODES, SIMULATOR, dashboard=True)
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def head(ray: RayHere, make_head: Callable[..., Head]) -> Iterator[Head]:
    """A head whose hosts are all here; at the end it lets Ray go."""
    ray.start()
    made = ray_head(make_head, ray, SIMULATOR)
    made.start()
    made.has_ready(NODES * GPUS, START_S)
    yield made
    let_go(made)


def listed(ray: RayHere) -> dict[str, str]:
    """All that ``ray list`` tells of, by kind: JSON, or words where it knows of none."""
    return {kind: ray.command("list", kind, "--detail", "--format", "json", "--limit", "10000") for kind in KINDS}


def test_nobody_finds_a_secret(head: Head, ray: RayHere) -> None:
    head.done(head.drop("q.jsonl", prompts(100)), 60)
    hashes = secret_hashes(head)
    assert len(hashes) >= 2 * NODES, "a code and a credential for each"
    credentials = [ray.directory(number) / "credential" for number in ray.numbers]
    assert all(has_secret(file.read_bytes(), hashes) and file.stat().st_mode & 0o777 == 0o600 for file in credentials)
    told = listed(ray)
    actors, jobs, tasks = (json.loads(told[kind]) for kind in ("actors", "jobs", "tasks"))
    agents = [actor for actor in actors if actor["class_name"] == "NodeAgent" and actor["state"] == "ALIVE"]
    assert {actor["name"] for actor in agents} == {ray.node_id(number) for number in ray.numbers}
    assert jobs, "the launcher is one"
    assert "NodeAgent.enrol" in {task["name"] for task in tasks}, "by which a code went to its host"
    for kind, content in told.items():
        assert not has_secret(content.encode(), hashes), kind
    assert not has_secret(ray.command("job", "list").encode(), hashes)
    places = places_with_secrets(hashes, [ray.root, head.root], but=credentials)
    assert not places


def test_the_search_finds_what_it_looks_for(head: Head, ray: RayHere) -> None:
    link, credential = head.code(), ray.directory(1) / "credential"
    secret = credential.read_text().strip()
    hashes = secret_hashes(head)
    environment = dict(os.environ, CANARY=f"x{link}")
    logs = Path(os.path.realpath(ray.root / "t" / "session_latest" / "logs"))
    with subprocess.Popen([sys.executable, "-c", WAITS, secret], env=environment) as canary:
        try:
            ray.command("job", "submit", "--submission-id", "canary", "--", "echo", secret)
            (logs / "canary.log").write_text(f"told_{secret}_to everybody")
            places = places_with_secrets(hashes, [ray.root], but=())
            seen = {"environ", "cmdline"} & {place.partition(" of ")[0] for place in places if str(canary.pid) in place}
        finally:
            canary.kill()
    assert seen == {"environ", "cmdline"}
    assert {str(credential), str(logs / "canary.log"), str(logs / "job-driver-canary.log")} <= places
    assert has_secret(listed(ray)["jobs"].encode(), hashes)
    assert has_secret(ray.command("job", "list").encode(), hashes)


def runs(head: Head) -> bool:
    with contextlib.suppress(DaemonDownError):
        return bool(head.status()["pid"])
    return False


def test_a_head_in_a_job_of_ray_is_followed_by_another_one(ray: RayHere, make_head: Callable[..., Head]) -> None:
    """As in docs/fleet.md: open jobs and hosts stay when its job is stopped, and the next one goes on with both."""
    ray.start()
    head = ray_head(make_head, ray, SIMULATOR)
    config = head.config_file.read_text().replace(ray.address, "auto")
    head.config_file.write_text(config)
    asked = prompts(2000)
    submit = ("job", "submit", "--no-wait", "--submission-id")
    of_a_node = ("env", "-u", "OBATCHD_GPUS", "-u", "OBATCHD_SERVERS_LISTEN")  # which is this machine here
    program = ("--", *of_a_node, str(BIN / "obatchd"), "--config", str(head.config_file), "--spool", str(head.spool))
    ray.command(*submit, "first", *program)
    wait_for(head.inbox.exists, START_S, "the head runs")
    head.drop("q.jsonl", asked)
    wait_for(lambda: runs(head) and head.ready_servers() == NODES * GPUS, START_S, "all servers are READY")
    wait_for(lambda: head.succeeded() > 50, 60, "work is under way")
    hosts = host_pids(ray)
    ray.command("job", "stop", "first")
    wait_for(lambda: not runs(head), 60, "the head has ended")
    assert not list(head.outbox.glob("q.*/summary.json"))
    ray.command(*submit, "second", *program)
    head.done("q.jsonl", START_S).check(asked)
    assert host_pids(ray) == hosts
    ray.command("job", "stop", "second")
    wait_for(lambda: not runs(head), 60, "the head has ended")
    head.config_file.write_text(config.replace('"auto"', f'"{ray.address}"'))
    let_go(head)
