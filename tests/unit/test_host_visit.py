"""A session as the host sees it: greeting, news, what the head tells of servers, and its end. Also who dials."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs
import pytest
from head_stand_in import until
from session_support import Kept, MemorySocket, pair

from obatchd import __version__
from obatchd.cluster import messages
from obatchd.cluster.host import dial, lease, visit
from obatchd.cluster.host.alarms import AlarmsToHead
from obatchd.cluster.host.dial import Dialer
from obatchd.cluster.host.head import Head
from obatchd.cluster.host.lease import Lease
from obatchd.cluster.host.mover import HeadMover
from obatchd.cluster.host.visit import Visit
from obatchd.cluster.session import Session
from obatchd.daemon.host import Identity
from obatchd.documents.alarms import GpusUnknown
from obatchd.errors import ClusterError, ServerError

ME = Identity("node07", "instance", "machine", "Slurm job 4711")
TERMS = messages.Terms({}, 60.0)


class Server:
    """The part of a managed server that a session moves."""

    id = "gpu0"

    def __init__(self) -> None:
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.did: list[str] = []
        self.fails = False
        self.tuning: Server | None = self

    def use(self, slots: int) -> None:
        self.did.append(f"use {slots}")

    def progress(self) -> None:
        self.did.append("progress")

    def fault(self, reason: str) -> None:
        self.did.append(f"fault {reason}")

    def broken(self, reason: str) -> None:
        self.did.append(f"broken {reason}")

    async def unload(self) -> None:
        self.did.append("unload")
        if self.fails:
            raise ServerError("it does not answer")


class Relayed:
    """The calls of a :class:`obatchd.cluster.host.relay.Relay`."""

    made: list[Relayed]

    def __init__(self, way: Any, owner: Any) -> None:
        self.did: list[Any] = []
        self.owner = owner
        self.made.append(self)

    def start(self, servers: Any) -> None:
        self.did.append(list(servers))

    async def stop(self) -> None:
        self.did.append("stop")

    def frame(self, channel: int, data: bytes) -> None:
        self.did.append((channel, data))

    def kill(self, channel: int) -> None:
        self.did.append(f"kill {channel}")

    def drained(self) -> None:
        pass


@attrs.define(eq=False)
class Parts:
    """Implements :class:`obatchd.cluster.host.visit.HostParts`, and of others what they need of a host."""

    asks: bool = False
    desks: Mapping[str, object] = attrs.field(factory=dict)
    found: dict[str, Any] = attrs.field(factory=lambda: {"gpu0": Server(), "gpu1": Server()})
    terms: list[messages.Terms] = attrs.field(factory=list)
    entries: int = 0
    leases: list[float] = attrs.field(factory=list)
    disownments: int = 0

    def is_testing(self) -> bool:
        return False

    def disowned(self) -> None:
        self.disownments += 1

    def servers(self) -> dict[str, Any]:
        return self.found

    def obey(self, terms: messages.Terms) -> None:
        self.terms.append(terms)

    def entered(self) -> None:
        self.entries += 1

    def lease_over(self, lease_s: float) -> None:
        self.leases.append(lease_s)


class Bench:
    """A visit, and the head's end of it."""

    def __init__(self) -> None:
        self.parts, self.head = Parts(), Head()
        self.visit = Visit(ME, self.parts, self.head)
        self.heard = Kept()
        one, self.socket = pair()
        self.session: Session[Any] = Session(one, "the host", messages.to_head, self.heard)
        self.ends = [asyncio.create_task(self.session.run()), asyncio.create_task(self.visit.run(self.socket))]

    async def accept(self) -> Relayed:
        self.session.say(messages.Challenge(b"n", "1.0"))
        await until(lambda: bool(self.heard.messages), "the host says hello")
        self.session.say(messages.Accepted(TERMS))
        await until(lambda: self.visit.entered, "it enters")
        return Relayed.made[-1]

    async def end(self) -> list[str]:
        self.session.end("the test is over")
        return list(await asyncio.gather(*self.ends))


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(visit, "Relay", Relayed)
    Relayed.made = []
    found = Bench()
    yield found
    await found.end()


async def test_a_host_says_who_it_is_and_enters_when_it_is_accepted(bench: Bench) -> None:
    relay = await bench.accept()
    [hello] = bench.heard.messages
    assert (hello.nonce, hello.name, hello.version, hello.allocation) == (b"n", "node07", __version__, "Slurm job 4711")
    assert (bench.parts.terms, bench.parts.entries, relay.did) == ([TERMS], 1, [["gpu0", "gpu1"]])
    assert bench.head.session is not None and bench.head.away_s == 0


async def test_a_host_without_terms_says_that_it_only_asks(bench: Bench) -> None:
    bench.parts.asks = True
    await bench.accept()
    [hello] = bench.heard.messages
    assert hello.asks and bench.parts.terms == [TERMS]


async def test_what_the_head_tells_reaches_the_server(bench: Bench) -> None:
    relay = await bench.accept()
    server = bench.parts.found["gpu0"]
    for message in (
        messages.Busy("gpu0", True), messages.Progressed("gpu0"), messages.Fault("gpu0", "slow"),
        messages.Fault("gpu0", "hangs", broken=True), messages.Busy("gpu9", True), messages.KillWorker(3), TERMS,
    ):  # fmt: skip
        bench.session.say(message)
    bench.session.send(3, b"frame")
    await until(lambda: relay.did[-1] == (3, b"frame"), "all of it arrives")
    assert server.did == ["progress", "fault slow", "broken hangs"]
    bench.session.say(messages.UseSlots("gpu0", 4))
    await until(lambda: server.did[-1] == "use 4", "its slots are chosen")
    assert server.in_flight == 1 and not server.idle.is_set() and bench.parts.found["gpu1"].idle.is_set()
    assert "kill 3" in relay.did and bench.parts.terms == [TERMS, TERMS]


async def test_a_session_that_ends_leaves_no_worker_and_no_busy_server(bench: Bench) -> None:
    relay = await bench.accept()
    bench.session.say(messages.Busy("gpu0", True))
    await until(lambda: not bench.parts.found["gpu0"].idle.is_set(), "it is busy")
    await bench.end()
    assert relay.did[-1] == "stop" and bench.parts.found["gpu0"].idle.is_set() and bench.head.session is None


async def test_a_defect_at_the_workers_ends_the_session(bench: Bench) -> None:
    relay = await bench.accept()
    relay.owner.task_failed("worker-gpu0", ValueError())
    assert "worker-gpu0" in (await bench.ends[1])


@pytest.mark.parametrize("message", [messages.Busy("gpu0", True), TERMS])
async def test_a_head_that_does_not_greet_first_is_left(bench: Bench, message: object) -> None:
    bench.session.say(message)
    assert "before it accepts" in await bench.ends[1]


async def test_a_head_that_greets_twice_is_left(bench: Bench) -> None:
    await bench.accept()
    bench.session.say(messages.Accepted(TERMS))
    assert "greets twice" in await bench.ends[1]


async def test_a_head_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "_GREETING_S", 0.05)
    _, socket = pair()
    assert "has not greeted" in await Visit(ME, Parts(), Head()).run(socket)


# Dialing.


class Refusals:
    """A head that accepts, refuses or is not there, in this order. Implements
    :class:`obatchd.cluster.host.way.Connector`."""

    address = "10.0.0.1:7700"

    def __init__(self, *answers: Exception | messages.Refused) -> None:
        self.answers = list(answers)
        self.tries = 0
        self.tasks: list[asyncio.Task[str]] = []

    async def connect(self) -> MemorySocket:
        self.tries += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        one, other = pair()
        session: Session[Any] = Session(one, "the host", messages.to_head, Kept())
        session.say(answer)
        self.tasks.append(asyncio.create_task(session.run()))
        return other


async def _dialed(way: Refusals, count: int) -> str:
    """Let it be tried so many times; its trouble."""
    parts = Parts()
    dialer = Dialer(way, ME, parts, Head(), parts)
    task = asyncio.create_task(dialer.run())
    await until(lambda: way.tries >= count, "it dials")
    task.cancel()
    await asyncio.gather(task, *way.tasks, return_exceptions=True)
    return dialer.trouble


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S", "_REFUSED_PAUSE_S"):
        monkeypatch.setattr(dial, name, 0.01)


@pytest.mark.usefixtures("quick")
async def test_a_head_that_is_away_is_dialed_again_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    assert await _dialed(Refusals(ConnectionRefusedError("nobody listens")), 5) == "nobody listens"
    assert caplog.text.count("head_away") == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "answer",
    [ClusterError("type obatchctl hosts code"), messages.Refused("version", "type obatchctl hosts code", final=True)],
)
async def test_a_refusal_for_good_is_told_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, answer: ClusterError | messages.Refused
) -> None:
    assert "hosts code" in await _dialed(Refusals(answer), 4)
    assert caplog.text.count("head_refuses") == 1


# While the head is away.


async def test_alarms_wait_for_the_head_and_the_oldest_give_way(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    alarms = AlarmsToHead(bench.head)
    for number in range(103):
        alarms.announce(GpusUnknown(str(number)))
    assert caplog.text.count("alarm_dropped") == 3
    await bench.accept()
    alarms.tell()
    await until(lambda: len(bench.heard.messages) == 101, "all are told")
    assert bench.heard.messages[1] == messages.AlarmNews("GpusUnknown", {"reason": "3"})


async def test_without_a_head_there_is_no_work_to_move() -> None:
    await HeadMover(Head()).vacate("gpu0", 60.0, "its GPU is bad")


class Looked:
    """The lease of :class:`obatchd.cluster.host.settings.HostSettings`, and how often it was looked at."""

    looks = 0

    @property
    def lease_s(self) -> float:
        self.looks += 1
        return 0.05


async def test_a_lease_that_is_over_unloads_the_models_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_LOOK_S", 0.01)
    head, parts, settings = Head(), Parts(), Looked()
    parts.found["gpu0"].fails = True
    task = asyncio.create_task(Lease(head, settings, parts).run())
    await until(lambda: bool(parts.leases), "the lease is over")
    looks = settings.looks
    await until(lambda: settings.looks > looks + 5, "it looks again")
    assert [server.did for server in parts.found.values()] == [["unload"], ["unload"]] and parts.leases == [0.05]
    session: Any = object()
    head.entered(session)
    looks = settings.looks
    await until(lambda: settings.looks > looks + 1, "it looks again")
    head.left(session)
    await until(lambda: len(parts.leases) == 2, "it is over again")
    task.cancel()
