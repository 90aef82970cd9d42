"""Hosts that are not what they should be: other versions, other clocks, second ones, liars. Each is told, and loses
nothing for the others.

A real host works beside each played one, and goes on undisturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import toml
from cluster_support import Fleet, Head, HostProcess, make_fleet
from daemon_support import Document, prompts, wait_for
from played_support import ClientSocket, PlayedHost, credential, dial

import obatchd
from obatchd.cluster import messages
from obatchd.dispatch import protocol
from obatchd.gpucare.siblings import Sibling

STEADY: Document = {"service_s": {"kind": "fixed", "value": 0.1}, "load_s": 0.05}
_numbers = itertools.count(91)
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with make_fleet(tmp_path_factory.mktemp("strangers"), 1, simulator=STEADY) as fleet:
        yield fleet


@pytest.fixture
def joined(fleet: Fleet, tmp_path: Path) -> HostProcess:
    """A host that joined and is never started: its credential is played with."""
    name = f"node{next(_numbers)}"
    return HostProcess(tmp_path / name, fleet.head, name).join()


@contextlib.asynccontextmanager
async def connected(joined: HostProcess) -> AsyncGenerator[ClientSocket, None]:
    fingerprint = toml.loads(joined.config_file.read_text())["cluster"]["fingerprint"]
    async with dial(joined.head.port, fingerprint, credential(joined.directory)) as socket:
        yield socket


@contextlib.asynccontextmanager
async def played(joined: HostProcess, host: PlayedHost) -> AsyncGenerator[asyncio.Task[str], None]:
    """A session of ``host``, until the end of the block; the task tells why it ended."""
    async with connected(joined) as socket:
        session = asyncio.create_task(host.serve(socket))
        try:
            yield session
        finally:
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)


async def until(look: Callable[[], Any], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(look):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("version", ["99.1.0", "0.0.1"])
async def test_another_version_is_refused_with_both_and_what_to_do(
    fleet: Fleet, joined: HostProcess, version: str
) -> None:
    host = PlayedHost(joined.name, 1, hello={"version": version})
    async with played(joined, host) as session:
        await asyncio.wait_for(session, 10)
    assert host.refused is not None and host.refused.code == "version"
    assert version in host.refused.message and obatchd.__version__ in host.refused.message
    assert "install" in host.refused.message
    await until(lambda: version in fleet.head.hosts()[joined.name]["reason"])
    assert fleet.hosts[0].state() == "here"


async def test_a_patch_version_may_differ(fleet: Fleet, joined: HostProcess) -> None:
    series = obatchd.__version__.rpartition(".")[0]
    host = PlayedHost(joined.name, 1, hello={"version": f"{series}.99"})
    async with played(joined, host):
        await until(lambda: joined.state() == "here")


async def test_a_repeated_hello_is_refused(fleet: Fleet, joined: HostProcess) -> None:
    host = PlayedHost(joined.name, 1, hello={"nonce": b"that of another session"})
    async with played(joined, host) as session:
        await asyncio.wait_for(session, 10)
    assert host.refused is not None
    assert joined.state() == "away"


async def test_clocks_that_differ_by_a_day_are_told_and_do_no_harm(fleet: Fleet, joined: HostProcess) -> None:
    host = PlayedHost(joined.name, 1, hello={"clock_s": time.time() + DAY_S})
    async with played(joined, host):
        await until(lambda: fleet.head.ready_servers() == 3)
        asked = prompts(60, "clock")
        job = await asyncio.to_thread(fleet.job, "clock", asked)
        assert any(result["server"].startswith(joined.name) for result in job.results)
        assert any(joined.name in line for line in fleet.head.events("host_clock"))
        assert abs(fleet.head.hosts()[joined.name]["clock_ahead_s"] - DAY_S) < 60
        listed = await asyncio.to_thread(fleet.head.control, "hosts")
        assert "its clock is" in listed.stdout and "ahead of ours" in listed.stdout


async def test_a_second_session_of_a_host_replaces_the_first(fleet: Fleet, joined: HostProcess) -> None:
    first, second = PlayedHost(joined.name, 1), PlayedHost(joined.name, 1)
    async with played(joined, first) as one:
        await until(lambda: joined.state() == "here")
        async with played(joined, second) as other:
            await asyncio.wait_for(one, 10)
            await until(lambda: joined.state() == "here")
            await asyncio.to_thread(fleet.job, "second", prompts(40, "second"))
            assert not other.done()


class Liar(PlayedHost):
    """Lies once, as soon as it is offered something; ``lie`` is what it does."""

    def __init__(self, name: str, lie: Callable[[PlayedHost], None]) -> None:
        super().__init__(name, 1)
        self._lie = lie
        self.lied = False

    def frame(self, channel: int, data: bytes) -> None:
        if not self.lied and isinstance(protocol.to_worker.decode(data), protocol.Offer):
            self.lied = True
            self._lie(self)
        super().frame(channel, data)


def _answers_others_requests(host: PlayedHost) -> None:
    lie = b'{"id": "x", "line": 1, "outcome": "succeeded", "response": "a lie"}'
    items = [protocol.ResultItem(job, line, 1, True, lie, 0.1, 1, 1) for job in range(1, 9) for line in range(1, 200)]
    host.session.send(1, msgspec.msgpack.encode(protocol.Results(items)))


def _speaks_nonsense(host: PlayedHost) -> None:
    host.session.send(1, b"\xc1 no message")


def _speaks_nonsense_of_itself(host: PlayedHost) -> None:
    host.session.send(0, b"\xc1 no message")


def _names_a_channel_of_nobody(host: PlayedHost) -> None:
    host.session.send(4711, msgspec.msgpack.encode(protocol.Progress(1, 0, 0.0)))


def _tells_of_a_server_twice_as_good(host: PlayedHost) -> None:
    news = next(iter(host.servers.values())).news()
    host.session.say(msgspec.structs.replace(news, slots=-4, state="excellent"))


def _asks_and_asks(host: PlayedHost) -> None:
    for number in range(5000):
        host.session.say(messages.Call(number, "head.vacate", {"server": "gpu0", "patience_s": 60.0, "reason": "x"}))


def _asks_twice_the_same(host: PlayedHost) -> None:
    for _ in range(2):
        host.session.say(messages.Call(1, "head.vacate", {"server": "gpu0", "patience_s": 60.0, "reason": "x"}))


def _asks_what_cannot_be(host: PlayedHost) -> None:
    host.session.say(messages.Call(1, "head.siblings", {"own": [Sibling("GPU-1", crashes_s=[float("nan")])]}))


def _answers_what_nobody_asked(host: PlayedHost) -> None:
    host.session.say(messages.Reply(4711, msgspec.Raw(messages.encode(None))))


@pytest.mark.parametrize(
    "lie",
    [
        _answers_others_requests, _speaks_nonsense, _speaks_nonsense_of_itself, _names_a_channel_of_nobody,
        _tells_of_a_server_twice_as_good, _asks_and_asks, _asks_twice_the_same, _asks_what_cannot_be,
        _answers_what_nobody_asked,
    ],
)  # fmt: skip
async def test_a_host_that_breaks_the_rules_is_closed_and_told(
    fleet: Fleet, joined: HostProcess, lie: Callable[[PlayedHost], None]
) -> None:
    name, host = lie.__name__.strip("_"), Liar(joined.name, lie)
    asked = prompts(400, name)
    async with played(joined, host) as session:
        await until(lambda: fleet.head.ready_servers() == 3)
        fleet.head.drop(f"{name}.jsonl", asked)
        await asyncio.wait_for(session, 20)
        assert host.lied
        await until(lambda: joined.state() == "away")
        job = await asyncio.to_thread(fleet.done, name, asked)
    assert not any(result["response"] == "a lie" for result in job.results)
    assert fleet.head.hosts()[joined.name]["reason"]
    assert any(joined.name in line for line in fleet.head.events("host_untrue"))
    assert fleet.hosts[0].state() == "here"


async def test_a_message_of_100_megabytes_ends_the_connection(fleet: Fleet, joined: HostProcess) -> None:
    async with connected(joined) as socket:
        with contextlib.suppress(ConnectionError):
            await socket.send(bytes(100 * 2**20))
            async with asyncio.timeout(20):
                while True:
                    await socket.receive()
    assert socket.raw.closed
    await asyncio.to_thread(wait_for, lambda: fleet.hosts[0].state() == "here", 5)
    await asyncio.to_thread(fleet.job, "after", prompts(20, "after"))


def test_a_host_talks_to_no_head_but_its_own(fleet: Fleet, tmp_path: Path) -> None:
    host, line = fleet.hosts[0], fleet.lines[0]
    loads, mine = fleet.loads(), line.target
    other = Head(tmp_path / "other").start()
    try:
        line.target = other.port
        line.break_()
        line.heal()
        wait_for(lambda: host.state() == "away", 10, "it lost its head")
        wait_for(lambda: host.events("head_refuses"), 20, "it says why")
        assert "certificate" in host.events("head_refuses")[-1]
        assert host.name not in other.hosts()
        assert fleet.loads() == loads
    finally:
        line.target = mine
        other.stop()
        other.clean()
    assert host.stop() == 0
    host.start()
