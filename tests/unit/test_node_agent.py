"""The agent on a node of Ray, without Ray: its host is a script that writes down what it hears."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_support import wait_for
from process_support import alive

from obatchd.cluster.node_agent import directory_of

HOST = """
import fcntl, json, os, signal, sys, time
directory = sys.argv[sys.argv.index("--dir") + 1]
lock = os.open(f"{directory}/.lock", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit("another obatchd host works here")
os.ftruncate(lock, 0)
os.pwrite(lock, str(os.getpid()).encode(), 0)
secret = ""
if "--enrol" in sys.argv:
    secret = os.fdopen(int(sys.argv[sys.argv.index("--enrol") + 1].removeprefix("fd:"))).read()
    open(f"{directory}/credential", "w").write("mine")
told = open(f"{directory}/told", "a")
def tell(**what):
    print(json.dumps({"pid": os.getpid(), **what}), file=told, flush=True)
def hear(number, frame):
    tell(signal=number)
    if number == signal.SIGTERM or os.path.exists(f"{directory}/obeys"):
        sys.exit(0)
signal.signal(signal.SIGUSR1, hear)
signal.signal(signal.SIGTERM, hear)
tell(arguments=sys.argv[1:], secret=secret, environment=dict(os.environ))
while True:
    time.sleep(1)
"""
ACTOR = """
import sys, threading
from obatchd.cluster.node_agent import NodeAgent
agent = NodeAgent("0123456789abcdef", "node1", [sys.executable, sys.argv[1]])
for line in sys.stdin:
    name, _, argument = line.rstrip().partition(" ")
    print(getattr(agent, name)(*([argument] if argument else [])), flush=True)
threading.Event().wait()
"""


class Actor:
    """A process with an agent, as Ray's actor is one."""

    def __init__(self, root: Path) -> None:
        (root / "host.py").write_text(HOST)
        variables = os.environ | {"OBATCH_HOSTS_DIR": str(root), "RAY_AUTH_TOKEN": "ray's", "OMP_NUM_THREADS": "1"}
        self.directory = root / "node1"
        self.process = subprocess.Popen(
            [sys.executable, "-c", ACTOR, str(root / "host.py")], env=variables, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def call(self, name: str, argument: str = "") -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{name} {argument}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip()

    def told(self) -> list[dict[str, object]]:
        file = self.directory / "told"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def starts(self) -> list[dict[str, object]]:
        return [told for told in self.told() if "arguments" in told]

    def until_starts(self, count: int) -> dict[str, object]:
        wait_for(lambda: len(self.starts()) == count, 15, f"{count} starts of the host")
        return self.starts()[-1]

    def pids(self) -> set[int]:
        return {pid for told in self.told() if isinstance(pid := told["pid"], int)}

    def clean(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()
        for pid in self.pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def actor(tmp_path: Path) -> Iterator[Actor]:
    made = Actor(tmp_path)
    yield made
    made.clean()


def enrolled(actor: Actor) -> int:
    """An actor whose host runs; its pid."""
    actor.call("enrol", "obatch://head:7700/#one-use")
    pid = actor.until_starts(1)["pid"]
    assert isinstance(pid, int)
    return pid


def test_a_host_without_credential_waits_for_a_code_and_gets_it_through_a_descriptor(actor: Actor) -> None:
    assert actor.call("look") == "('starting', '', True)"
    enrolled(actor)
    start = actor.starts()[0]
    assert start["secret"] == "obatch://head:7700/#one-use"
    assert "one-use" not in json.dumps([start["arguments"], start["environment"]])
    assert actor.call("look") == "('running', '', False)"
    assert not [file for file in actor.directory.iterdir() if file.name != "told" and b"one-use" in file.read_bytes()]


def test_a_host_gets_nothing_of_ray(actor: Actor) -> None:
    enrolled(actor)
    environment = actor.starts()[0]["environment"]
    assert isinstance(environment, dict)
    assert not [name for name in environment if name.startswith("RAY_")]
    assert "OMP_NUM_THREADS" not in environment
    assert environment["OBATCH_HOST_ALLOCATION"] == "Ray's node node1"


def test_a_host_that_died_is_started_again_with_its_own_credential(actor: Actor) -> None:
    os.kill(enrolled(actor), signal.SIGKILL)
    again = actor.until_starts(2)
    assert again["secret"] == ""
    assert "was ended by signal 9" in actor.call("look")


def test_a_code_for_a_host_that_runs_starts_it_anew(actor: Actor) -> None:
    enrolled(actor)
    actor.call("enrol", "obatch://head:7700/#another")
    assert actor.until_starts(2)["secret"] == "obatch://head:7700/#another"


def test_the_kernel_tells_a_host_that_its_actor_died(actor: Actor) -> None:
    pid = enrolled(actor)
    actor.process.kill()
    wait_for(lambda: {"pid": pid, "signal": signal.SIGUSR1} in actor.told(), 10, "SIGUSR1")


def test_an_actor_has_the_host_of_its_predecessor_hurry(actor: Actor, tmp_path: Path) -> None:
    pid = enrolled(actor)
    actor.process.kill()
    wait_for(lambda: {"pid": pid, "signal": signal.SIGUSR1} in actor.told(), 10, "SIGUSR1")
    (actor.directory / "obeys").touch()  # from now on a signal ends it, as a second one does
    after = Actor(tmp_path)
    try:
        assert after.until_starts(2)["pid"] != pid
        assert not alive(pid)
    finally:
        after.clean()


def test_a_host_that_was_stopped_ends_the_actor_with_it(actor: Actor) -> None:
    pid = enrolled(actor)
    actor.call("stop")
    assert actor.process.wait(10) == 0
    assert not alive(pid)


def test_leaving_gives_back_the_work_and_then_the_node(actor: Actor) -> None:
    enrolled(actor)
    (actor.directory / "obeys").touch()
    actor.call("leave")
    assert actor.process.wait(10) == 0


def test_hosts_of_two_heads_have_directories_of_their_own() -> None:
    variables = {"HOME": "/home/u"}
    one, other = (directory_of(head * 8, "node1", variables) for head in "ab")
    assert one == Path("/home/u/.local/state/obatch-hosts/aaaaaaaa/node1") and one != other
    assert directory_of("x", "node1", {"OBATCH_HOSTS_DIR": "/scratch/o"}) == Path("/scratch/o/node1")
