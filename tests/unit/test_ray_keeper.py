"""The keeper of Ray's launcher, without Ray: its launcher is a script that says what a test has written down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from task_support import Failures

from obatchd.cluster.head.launcher import Launcher, known, strangers
from obatchd.cluster.launching import NodeNews
from obatchd.documents.engine import EngineState
from obatchd.errors import ClusterError
from obatchd.settings.tables.cluster import ClusterSettings

LAUNCHER = """
import json, os, socket, sys, threading, time
from obatchd import frames
from obatchd.cluster import launching as l
root = sys.argv[1]
connection = socket.socket(fileno=os.dup(0))
def note(**what):
    with open(f"{root}/heard", "a") as file:
        print(json.dumps({"pid": os.getpid(), **what}), file=file)
first = threading.Event()
def hear():
    try:
        while True:
            message = frames.receive(connection, l.to_launcher)
            if isinstance(message, l.Code):
                note(code=message.node, link=message.link)
            else:
                note(address=message.address, wanted=message.wanted, let_go=sorted(message.let_go), head=message.head)
            first.set()
    finally:
        os._exit(0)
threading.Thread(target=hear).start()
print("Ray talks a lot")
first.wait()
while True:
    plan = json.load(open(f"{root}/plan"))
    if trouble := plan.get("trouble"):
        frames.send(connection, l.Trouble(trouble))
        os._exit(1)
    if plan.get("cleared"):
        frames.send(connection, l.Cleared())
        os._exit(0)
    for node in plan.get("asked", []):
        frames.send(connection, l.Asked(node, node))
    nodes = [l.NodeNews(name, name, "10.0.0.1", 2, state) for name, state in plan.get("nodes", {}).items()]
    frames.send(connection, l.Seen(nodes, "2.60.0", True))
    note(said=True)
    time.sleep(0.05)
"""
HERE = {"nodes": {"node1": "running"}}


class Admission:
    """Implements :class:`obatchd.cluster.head.launcher.Admission`."""

    def __init__(self) -> None:
        self.joined = {"node1"}
        self.made = 0
        self.refuses = False

    def names(self) -> set[str]:
        return self.joined

    def link(self) -> str:
        if self.refuses:
            raise ClusterError("the disk is full", code="roster_not_written")
        self.made += 1
        return f"link-{self.made}"


class Bench:
    """A keeper with its stand-in launcher."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.admission = Admission()
        self.failures = Failures()
        self.keepers: list[Launcher] = []
        (root / "launcher.py").write_text(LAUNCHER)
        self.plan(HERE)

    def plan(self, plan: object) -> None:
        (self.root / "plan.new").write_text(json.dumps(plan))
        os.replace(self.root / "plan.new", self.root / "plan")

    def keeper(self, engine: str = "ray", address: str = "auto") -> Launcher:
        settings = ClusterSettings(listen="127.0.0.1:7700", engine=engine, address=address)  # type: ignore[arg-type]
        command = (sys.executable, str(self.root / "launcher.py"), str(self.root))
        file = self.root / "cluster" / "ray.json"
        made = Launcher(settings, file, "head-1", self.admission, self.failures, command)
        self.keepers.append(made)
        made.start()
        return made

    def heard(self, key: str) -> list[dict[str, object]]:
        file = self.root / "heard"
        lines = file.read_text().splitlines() if file.exists() else []
        return [told for line in lines if key in (told := json.loads(line))]

    async def until_said_again(self) -> None:
        """The launcher has spoken several times more."""
        before = len(self.heard("said"))
        await self.until(lambda: len(self.heard("said")) > before + 5, "more words")

    async def until(self, look: Callable[[], object], what: str) -> None:
        async with asyncio.timeout(60):
            while not look():
                await asyncio.sleep(0.02)
        assert not self.failures, what


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for keeper in made.keepers:
        await keeper.stop()
    assert not made.failures


def state(keeper: Launcher) -> EngineState:
    found = keeper.state()
    assert found is not None
    return found


async def test_it_tells_what_the_launcher_sees(bench: Bench) -> None:
    keeper = bench.keeper(address="10.0.0.1:6379")
    assert state(keeper).state == "starting"
    await bench.until(lambda: state(keeper).state == "here", "Ray is here")
    seen = state(keeper)
    assert (seen.kind, seen.address, seen.version, seen.authenticated) == ("ray", "10.0.0.1:6379", "2.60.0", True)
    assert [(node.name, node.state, node.gpus) for node in seen.nodes] == [("node1", "running", 2)]
    orders = bench.heard("address")[0]
    assert (orders["address"], orders["wanted"], orders["head"]) == ("10.0.0.1:6379", True, "head-1")


async def test_a_launcher_that_is_killed_is_followed_by_another(bench: Bench) -> None:
    keeper = bench.keeper()
    await bench.until(lambda: state(keeper).state == "here", "Ray is here")
    first = bench.heard("address")[0]["pid"]
    assert isinstance(first, int)
    os.kill(first, signal.SIGKILL)
    await bench.until(lambda: len(bench.heard("address")) == 2, "another one")
    await bench.until(lambda: state(keeper).state == "here", "Ray is here again")


async def test_what_ray_lacks_is_told_with_what_to_type_until_it_is_back(bench: Bench) -> None:
    bench.plan({"trouble": "no Ray answers at auto"})
    keeper = bench.keeper()
    await bench.until(lambda: state(keeper).state == "gone", "told")
    assert "no Ray answers at auto" in state(keeper).reason and "ray start --head" in state(keeper).reason
    bench.plan(HERE)
    await bench.until(lambda: state(keeper).state == "here" and not state(keeper).reason, "Ray is back")


async def test_a_host_that_asks_gets_one_code_and_only_over_the_socket(bench: Bench) -> None:
    bench.admission.joined = set()
    bench.plan({"nodes": {"node1": "starting"}, "asked": ["node1"]})
    bench.keeper()
    await bench.until(lambda: bench.heard("link"), "a code")
    assert bench.heard("link")[0]["link"] == "link-1"
    await bench.until_said_again()  # and it asks each time
    assert bench.admission.made == 1
    files = [file for file in (bench.root / "cluster").iterdir() if b"link-1" in file.read_bytes()]
    assert files == []


async def test_a_host_that_runs_with_a_credential_of_an_earlier_life_gets_a_code(bench: Bench) -> None:
    bench.admission.joined = set()
    bench.keeper()
    await bench.until(lambda: bench.heard("link"), "a code")


async def test_a_forgotten_host_gets_no_code_when_it_asks_at_once(bench: Bench) -> None:
    bench.keeper()
    kept = bench.root / "cluster" / "ray.json"
    await bench.until(lambda: kept.exists() and "node1" in kept.read_text(), "it has joined")
    bench.plan({**HERE, "asked": ["node1"]})
    bench.admission.joined = set()
    await bench.until(lambda: bench.heard("let_go")[-1]["let_go"] == ["node1"], "let go")
    await bench.until_said_again()
    assert not bench.heard("link")


async def test_a_code_that_cannot_be_made_harms_nobody(bench: Bench) -> None:
    bench.admission.joined, bench.admission.refuses = set(), True
    keeper = bench.keeper()
    await bench.until(lambda: state(keeper).state == "here", "Ray is here")
    await bench.until_said_again()
    assert state(keeper).state == "here" and not bench.heard("link")


async def test_a_forgotten_host_is_let_go_also_by_the_next_daemon(bench: Bench) -> None:
    keeper = bench.keeper()
    kept = bench.root / "cluster" / "ray.json"
    await bench.until(lambda: kept.exists() and "node1" in kept.read_text(), "it has joined")
    bench.admission.joined = set()
    await bench.until(lambda: bench.heard("let_go")[-1]["let_go"] == ["node1"], "let go")
    await keeper.stop()
    bench.keeper()
    await bench.until(lambda: len({told["pid"] for told in bench.heard("let_go")}) == 2, "the next launcher")
    assert bench.heard("let_go")[-1]["let_go"] == ["node1"] and not bench.heard("link")


async def test_actors_end_when_the_engine_is_not_ray_any_more(bench: Bench) -> None:
    keeper = bench.keeper(address="10.0.0.1:6379")
    await bench.until(lambda: state(keeper).state == "here", "Ray is here")
    await keeper.stop()
    after = bench.keeper("none")
    await bench.until(lambda: bench.heard("address")[-1]["wanted"] is False, "orders to end")
    assert bench.heard("address")[-1]["address"] == "10.0.0.1:6379"
    bench.plan({"cleared": True})
    await bench.until(lambda: after.state() is None, "all ended")
    assert not (bench.root / "cluster" / "ray.json").exists()


async def test_actors_end_in_the_old_ray_before_others_are_made_in_the_new_one(bench: Bench) -> None:
    keeper = bench.keeper(address="10.0.0.1:6379")
    await bench.until(lambda: state(keeper).state == "here", "Ray is here")
    await keeper.stop()
    bench.plan({"cleared": True})
    moved = bench.keeper(address="10.0.0.2:6379")
    await bench.until(lambda: bench.heard("address")[-1]["address"] == "10.0.0.2:6379", "the new one")
    orders = [(told["address"], told["wanted"]) for told in bench.heard("address")]
    assert list(dict.fromkeys(orders)) == [("10.0.0.1:6379", True), ("10.0.0.1:6379", False), ("10.0.0.2:6379", True)]
    bench.plan(HERE)
    await bench.until(lambda: state(moved).state == "here", "Ray is here")


async def test_without_an_engine_nothing_is_started_or_told(bench: Bench) -> None:
    keeper = bench.keeper("none")
    assert keeper.state() is None and not (bench.root / "cluster").exists()


def test_what_was_known_and_is_not_any_more_was_forgotten() -> None:
    nodes = [NodeNews("id1", "node1", "a", 2, "running"), NodeNews("id2", "node2", "a", 2, "running")]
    joined, forgotten = known(nodes, {"id1": "node1"}, {"node2"})
    assert (joined, forgotten) == ({"id2": "node2"}, {"id1"})
    assert strangers(nodes, joined, forgotten) == []
    assert [node.id for node in strangers(nodes, {}, {"id1"})] == ["id2"]
