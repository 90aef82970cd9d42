"""A joined host in memory, which speaks the protocol, beside a real dispatcher."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import attrs
import msgspec
from dispatch_support import SMALL, Key, Rig
from session_support import MemorySocket, pair

from obatchd import __version__
from obatchd.cluster import messages
from obatchd.cluster.head.hosts import Hosts
from obatchd.cluster.head.joined import Attached
from obatchd.cluster.head.reporting import HostAlarms
from obatchd.cluster.head.server import HostedServer
from obatchd.cluster.messages import Hello, HostNews, ServerNews, WorkerEnded, WorkerStarted
from obatchd.cluster.session import Session
from obatchd.dispatch import protocol
from obatchd.dispatch.protocol import OfferItem, ResultItem
from obatchd.documents.alarms import Alarm
from obatchd.documents.gpus import Gpus, KernelLogState
from obatchd.errors import ObatchError
from obatchd.jobs.model import Profile
from obatchd.servers.server import ServerFace
from obatchd.servers.states import ServerState
from obatchd.tasks import TaskSet

DEADLINE_S = 5.0


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that is about to be true."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


def server_news(server: str = "gpu0", **changes: Any) -> ServerNews:
    news = ServerNews(
        server, "ready", "answers", "", "http://127.0.0.1:11500", f"GPU-{server}", [], 2, "0.24.0", SMALL, None, 0.5, 0,
        4711, {},
    )  # fmt: skip
    return msgspec.structs.replace(news, **changes)


def host_news(**changes: Any) -> HostNews:
    news = HostNews(Gpus("absent", "", None, KernelLogState(None, ""), []), [])
    return msgspec.structs.replace(news, **changes)


@attrs.define(eq=False)
class Desk:
    """The servers of a stand-in host. Implements :class:`obatchd.cluster.desks.ServersDesk`, as far as tests ask."""

    host: StandInHost
    refuse: ObatchError | None = None
    lies: bool = False  # it says that it loaded a model, and has not
    may_load: asyncio.Event = attrs.field(factory=asyncio.Event)
    asked: list[tuple[str, Any]] = attrs.field(factory=list)
    preferred: list[int] = attrs.field(factory=list)  # slots, by the latest load

    async def load(self, server: str, profile: Profile, afresh: bool = False, prefer: Sequence[int] = ()) -> None:
        self.asked.append(("load", (server, profile, afresh)))
        self.preferred = list(prefer)
        self.host.tell(server, loaded=None, loading=profile)
        await self.may_load.wait()
        if self.refuse is not None:
            self.host.tell(server, loading=None)
            raise self.refuse
        self.host.loads += 1
        if not self.lies:
            self.host.tell(server, loaded=profile, loading=None)

    async def restart(self, server: str, reason: str) -> None:
        self.asked.append(("restart", (server, reason)))

    async def try_again(self, server: str) -> None:
        self.asked.append(("try_again", server))

    async def resume(self, server: str) -> None:
        self.asked.append(("resume", server))

    async def one_token(self, server: str, timeout_s: float) -> None:
        self.asked.append(("one_token", (server, timeout_s)))


@attrs.define(eq=False)
class StandInHost:
    """One host. What it has loaded outlives its sessions. Implements :class:`obatchd.cluster.session.Heard`."""

    name: str = "node07"
    version: str = __version__
    servers: dict[str, ServerNews] = attrs.field(factory=lambda: {"gpu0": server_news()})
    loads: int = 0
    session: Session[messages.ToHost] = attrs.field(init=False)
    socket: MemorySocket = attrs.field(init=False)
    desk: Desk = attrs.field(init=False)
    heard: list[Any] = attrs.field(factory=list)
    refused: messages.Refused | None = None
    terms: messages.Terms | None = None
    channels: dict[str, int] = attrs.field(factory=dict)  # of the workers, by server
    held: dict[str, dict[Key, OfferItem]] = attrs.field(factory=dict)  # by server
    got: dict[str, int] = attrs.field(factory=dict)
    clock_s: float = 0.0  # ahead of the true time
    nonce: bytes | None = None  # said instead of the one of the challenge
    silent: bool = False  # says no hello
    asks: bool = False  # for the terms alone
    keeps_workers: bool = False  # whatever the head says
    desks: dict[str, object] = attrs.field(factory=dict)  # beside that for servers
    _latest: int = 0

    def __attrs_post_init__(self) -> None:
        self.desk = Desk(self)
        self.desk.may_load.set()

    @contextlib.asynccontextmanager
    async def joined(self, hosts: Hosts, until_s: float | None = None) -> AsyncIterator[StandInHost]:
        """Dial the head, as it seems, and stay for the time of the context, or until the session ends."""
        one, self.socket = pair()
        self.session = Session(self.socket, "the head", messages.to_host, self, {"servers": self.desk, **self.desks})
        self._latest, self.refused = 0, None
        self.channels.clear()
        self.held.clear()
        tasks = [asyncio.create_task(hosts.attend(one, self.name, until_s)), asyncio.create_task(self.session.run())]
        try:
            yield self
        finally:
            self.session.end("the test is over")
            await asyncio.gather(*tasks)

    def control(self, message: messages.ToHost) -> None:
        self.heard.append(message)
        match message:
            case messages.Challenge():
                if not self.silent:
                    nonce = message.nonce if self.nonce is None else self.nonce
                    clock_s = time.time() + self.clock_s
                    self.say(Hello(nonce, self.name, self.version, "instance", "machine", clock_s, asks=self.asks))
            case messages.Accepted():
                self.terms = message.terms
                for news in self.servers.values():
                    self.say(news)
                self.say(host_news())
                for server in self.servers:
                    self.start_worker(server)
            case messages.Terms():
                self.terms = message
            case messages.Refused():
                self.refused = message
            case messages.KillWorker(channel) if not self.keeps_workers:
                server = next(name for name, known in self.channels.items() if known == channel)
                self.say(WorkerEnded(channel, "was ended", 1.0))
                self.start_worker(server)

    def start_worker(self, server: str) -> None:
        self._latest += 1
        self.channels[server], self.held[server], self.got[server] = self._latest, {}, 0
        self.say(WorkerStarted(server, self._latest, 99))
        self.worker_says(server, protocol.Hello(99))

    def frame(self, channel: int, data: bytes) -> None:
        server = next(name for name, known in self.channels.items() if known == channel)
        match protocol.to_worker.decode(data):
            case protocol.Offer(items=items):
                self.got[server] += len(items)
                self.held[server] |= {(item.job, item.line): item for item in items}
            case protocol.Recall():
                self.worker_says(server, protocol.Returned([]))
            case protocol.GiveUp(fault, code, message):
                for key in list(self.held[server]):
                    self.answer(key, server, fault=fault, code=code, message=message)

    def drained(self) -> None:
        pass

    def say(self, message: object) -> None:
        self.session.say(message)

    def tell(self, server: str, **changes: Any) -> None:
        """Something of a server has changed."""
        self.servers[server] = msgspec.structs.replace(self.servers[server], **changes)
        self.say(self.servers[server])

    def worker_says(self, server: str, message: protocol.ToMain) -> None:
        self.session.send(self.channels[server], msgspec.msgpack.encode(message))

    def begin(self, *keys: Key, server: str = "gpu0") -> None:
        self.worker_says(server, protocol.Started(list(keys)))

    def answer(self, key: Key, server: str = "gpu0", **changes: Any) -> None:
        item = self.held[server].pop(key)
        succeeded = not changes.get("fault")
        record = {
            "id": str(key[1]), "line": key[1], "outcome": "succeeded" if succeeded else "failed",
            "server": f"{self.name}.{server}", "started_at": "2026-11-28T10:00:00.000Z",
        }  # fmt: skip
        told = ResultItem(*key, item.attempt, succeeded, msgspec.json.encode(record), 0.1, 5, 7)
        self.worker_says(server, protocol.Results([msgspec.structs.replace(told, **changes)]))

    def answer_all(self, server: str = "gpu0") -> None:
        for key in list(self.held[server]):
            self.answer(key, server)


@attrs.define(eq=False)
class Known:
    """Hosts that joined, and who is told of them. Implements :class:`obatchd.cluster.head.hosts.KnownHosts`."""

    reasons: dict[str, str] = attrs.field(factory=dict)  # for which they get no work
    ends: dict[str, float] = attrs.field(factory=dict)  # of their allocations
    states: list[tuple[str, ServerState]] = attrs.field(factory=list)
    alarms: list[tuple[str, Alarm]] = attrs.field(factory=list)
    rig: Rig | None = None

    def names(self) -> list[str]:
        return list(self.reasons)

    def drained(self, name: str) -> str:
        return self.reasons.get(name, "")

    def set_drained(self, name: str, reason: str) -> None:
        self.reasons[name] = reason

    def until_s(self, name: str) -> float | None:
        return self.ends.get(name)

    def server_changed(self, server: HostedServer, old: ServerState, new: ServerState, reason: str) -> None:
        if old is not new:
            self.states.append((server.id, new))
        if self.rig is not None:
            self.rig.dispatcher.server_changed(server)

    def announce(self, alarm: Alarm, host: str = "") -> None:
        self.alarms.append((host, alarm))


@attrs.define(eq=False)
class HeadRig:
    """A dispatcher without servers of its own, and the hosts."""

    rig: Rig
    hosts: Hosts
    known: Known
    guests: dict[str, ServerFace]

    def server(self, server_id: str = "node07.gpu0") -> HostedServer:
        name = server_id.partition(".")[0]
        return self.hosts.hosts[name].servers[server_id]


@contextlib.asynccontextmanager
async def heads(**settings: Any) -> AsyncIterator[HeadRig]:
    """A head that waits for hosts."""
    rig = Rig(**settings)
    await rig.start()
    known = Known(rig=rig)
    guests: dict[str, ServerFace] = {}
    attached = Attached(rig.dispatcher, guests, known, TaskSet(rig.failures))
    hosts = Hosts(known, rig.settings, attached, HostAlarms(known))
    yield HeadRig(rig, hosts, known, guests)
    await hosts.stop()
    await rig.dispatcher.stop()
    assert not rig.failures
