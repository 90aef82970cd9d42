"""Hosts that are played: one process speaks the protocol for many hosts, with servers that cost next to nothing.

For lies that no ``obatchd host`` tells, and for fleets that are larger than one machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import socket
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import msgspec

import obatchd
from obatchd.cluster import messages
from obatchd.cluster.messages import Hello, HostNews, ServerNews, WorkerStarted
from obatchd.cluster.session import Session, Socket
from obatchd.dispatch import protocol
from obatchd.documents.gpus import Gpus, KernelLogState
from obatchd.gpus.model import Gpu
from obatchd.jobs.model import Profile
from obatchd.servers.stores.known import ModelInfo

_BEAT_S = 1.0
_MODEL = ModelInfo("tiny", "0" * 64, "F16", "1M", 8192, ["completion"], 1000)
_json = msgspec.json.Encoder().encode


class ClientSocket:
    """Implements :class:`obatchd.cluster.session.Socket` over a WebSocket of aiohttp."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.raw = socket

    async def send(self, data: bytes) -> None:
        await self.raw.send_bytes(data)

    async def receive(self) -> bytes:
        message = await self.raw.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return bytes(message.data)
        raise ConnectionResetError(f"the other side closed: {self.raw.close_code} {message.extra or ''}")

    async def close(self) -> None:
        await self.raw.close()


@contextlib.asynccontextmanager
async def dial(port: int, fingerprint: str, credential: str) -> AsyncGenerator[ClientSocket, None]:
    """A connection to the door of a head on this machine. ``fingerprint`` begins with ``sha256:``.

    It is closed at the end: aiohttp does not wait for the goodbye of TLS that follows the one of the WebSocket.
    """
    made: list[socket.socket] = []

    def make(address: aiohttp.AddrInfoType) -> socket.socket:
        made.append(socket.socket(*address[:3]))
        return made[-1]

    pin = aiohttp.Fingerprint(bytes.fromhex(fingerprint.removeprefix("sha256:")))
    headers = {"Authorization": f"Bearer {credential}"}
    url = f"wss://127.0.0.1:{port}/v1/hosts"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=make)) as client,
        client.ws_connect(url, ssl=pin, headers=headers, max_msg_size=0, compress=0) as connection,
    ):
        yield ClientSocket(connection)
    async with asyncio.timeout(5):
        while any(one.fileno() != -1 for one in made):
            await asyncio.sleep(0.01)


class Servers:
    """The desk ``servers`` of a played host."""

    def __init__(self, host: PlayedHost) -> None:
        self._host = host

    async def load(self, server: str, profile: Profile, afresh: bool = False) -> None:
        played = self._host.servers[server]
        played.loaded = profile
        played.loads += 1
        self._host.tell(played)

    async def unload(self, server: str) -> None:
        self._host.servers[server].loaded = None
        self._host.tell(self._host.servers[server])

    async def drain(self, server: str, reason: str) -> bool:
        return True

    async def resume(self, server: str) -> None: ...

    async def one_token(self, server: str, timeout_s: float) -> None: ...

    async def fallen_back(self, server: str) -> str:
        return ""


class Models:
    """The desk ``models`` of a played host."""

    async def ensure(self, model: str, by_admin: bool = False) -> ModelInfo:
        return msgspec.structs.replace(_MODEL, name=model)

    async def listed(self) -> list[Any]:
        return []

    async def show(self, model: str, verbose: bool = False) -> bytes:
        return b""


@attrs.define(eq=False)
class PlayedServer:
    """One server with a worker, which answers each prompt after ``service_s``."""

    host: PlayedHost
    id: str
    gpu: Gpu
    slots: int
    service_s: Callable[[str], float]
    channel: int = 0
    loaded: Profile | None = None
    loads: int = 0
    waiting: list[tuple[int, int, protocol.OfferItem, str]] = attrs.field(factory=list)  # by rank, then in order
    running: dict[tuple[int, int], asyncio.TimerHandle] = attrs.field(factory=dict)
    got: int = 0
    pinged: tuple[int, int] = (0, 0)  # offers that the head had sent at its latest ping, and those that had come then
    busy_s: float = 0.0  # of all slots
    spans: list[tuple[float, float]] = attrs.field(factory=list)  # of answers: begin and end on the monotonic clock

    def news(self) -> ServerNews:
        return ServerNews(
            self.id, "ready", "", "", "http://127.0.0.1:9", self.gpu.uuid, [self.gpu], self.slots, "0.24.0",
            self.loaded, None, 1.0, 0, None, {}, loads=self.loads,
        )  # fmt: skip

    def say(self, message: protocol.ToMain) -> None:
        self.host.session.send(self.channel, msgspec.msgpack.encode(message))

    def heard(self, message: protocol.ToWorker) -> None:
        match message:
            case protocol.Offer():
                for item in message.items:
                    self.got += 1
                    heapq.heappush(self.waiting, (-message.rank, self.got, item, message.model))
                self._fill()
            case protocol.Recall():
                back = [self.waiting.pop() for _ in range(min(message.count, len(self.waiting)))]
                heapq.heapify(self.waiting)
                self.say(protocol.Returned([(item.job, item.line) for _, _, item, _ in back]))
            case protocol.Cancel() | protocol.CancelOne():
                self._cancel(message)
            case protocol.Ping():
                self.pinged = (message.offered, self.got)
                self.beat()
            case _:
                pass

    def _cancel(self, message: protocol.Cancel | protocol.CancelOne) -> None:
        def meant(job: int, line: int) -> bool:
            return job == message.job and (isinstance(message, protocol.Cancel) or line == message.line)

        keys = [(item.job, item.line) for _, _, item, _ in self.waiting if meant(item.job, item.line)]
        self.waiting = [entry for entry in self.waiting if not meant(entry[2].job, entry[2].line)]
        heapq.heapify(self.waiting)
        for key in [key for key in self.running if meant(*key)]:
            self.running.pop(key).cancel()
            keys.append(key)
        self.say(protocol.Returned(keys))
        self._fill()

    def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        started: list[tuple[int, int]] = []
        while self.waiting and len(self.running) < self.slots:
            _, _, item, model = heapq.heappop(self.waiting)
            asked: dict[str, Any] = msgspec.json.decode(item.raw)
            after_s = self.service_s(asked.get("prompt", ""))
            key = (item.job, item.line)
            self.running[key] = loop.call_later(after_s, self._answer, item, model, asked, after_s)
            started.append(key)
        if started:
            self.say(protocol.Started(started))

    def _answer(self, item: protocol.OfferItem, model: str, asked: dict[str, Any], took_s: float) -> None:
        del self.running[item.job, item.line]
        self.busy_s += took_s
        now_s = time.monotonic()
        self.spans.append((now_s - took_s, now_s))
        self.say(protocol.Results([result(item, model, asked, f"{self.host.name}.{self.id}", took_s)]))
        self._fill()

    def beat(self) -> None:
        held = len(self.waiting) + len(self.running)
        self.say(protocol.Progress(1, len(self.running), 0.0, held, self.got, *self.pinged))

    def clear(self) -> None:
        """Forget all that it holds."""
        for timer in self.running.values():
            timer.cancel()
        self.running.clear()
        self.waiting.clear()

    def begin(self, channel: int) -> None:
        """A worker of this server starts, and the one before is gone with what it held."""
        self.clear()
        self.got, self.pinged, self.channel = 0, (0, 0), channel
        self.host.session.say(WorkerStarted(self.id, channel, 1))
        self.say(protocol.Hello(1))


def result(
    item: protocol.OfferItem, model: str, asked: dict[str, Any], server: str, took_s: float
) -> protocol.ResultItem:
    """A right answer, as a stand-in server gives it."""
    prompt = asked.get("prompt", "")
    record = {
        "id": str(asked.get("id", item.line)), "line": item.line, "outcome": "succeeded", "prompt": prompt,
        "response": "digest:" + hashlib.sha256(prompt.encode()).hexdigest()[:16], "model": model, "server": server,
        "attempts": item.attempt, "servers": [*item.servers, server], "started_at": _instant(took_s),
        "finished_at": _instant(0.0), "duration_s": took_s, "prompt_tokens": 5, "response_tokens": 5,
    }  # fmt: skip
    return protocol.ResultItem(item.job, item.line, item.attempt, True, _json(record), took_s, 5, 5, eval_s=took_s)


def _instant(ago_s: float) -> str:
    return datetime.fromtimestamp(time.time() - ago_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class PlayedHost:
    """One host. Implements :class:`obatchd.cluster.session.Heard`.

    ``hello`` are fields of its first message that differ from the truth.
    """

    def __init__(
        self,
        name: str,
        gpus: int,
        slots: int = 4,
        service_s: Callable[[str], float] = lambda prompt: 0.1,
        hello: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.servers = {
            f"gpu{number}": PlayedServer(self, f"gpu{number}", _card(name, number), slots, service_s)
            for number in range(gpus)
        }
        self.refused: messages.Refused | None = None
        self.accepted = asyncio.Event()
        self.session: Session[Any]
        self._hello = hello or {}
        self._by_channel: dict[int, PlayedServer] = {}
        self._latest = 0  # channel

    async def serve(self, socket: Socket) -> str:
        """One session, until it ends; why it did."""
        desks = {"servers": Servers(self), "models": Models()}
        self.session = Session(socket, "the head", messages.to_host, self, desks)
        beats = asyncio.create_task(self._beat())
        try:
            return await self.session.run()
        finally:
            beats.cancel()
            for server in self.servers.values():
                server.clear()

    def tell(self, server: PlayedServer) -> None:
        self.session.say(server.news())

    def control(self, message: Any) -> None:
        match message:
            case messages.Challenge():
                said: dict[str, Any] = {
                    "nonce": message.nonce, "name": self.name, "version": obatchd.__version__,
                    "instance": f"played-{self.name}", "machine": self.name, "clock_s": time.time(),
                }  # fmt: skip
                self.session.say(Hello(**said | self._hello))
            case messages.Accepted():
                self._begin()
            case messages.Refused():
                self.refused = message
            case messages.KillWorker():
                server = self._by_channel.pop(message.channel)
                self.session.say(messages.WorkerEnded(message.channel, "was ended", 1.0))
                self._start_worker(server)
            case _:
                pass

    def _begin(self) -> None:
        for server in self.servers.values():
            self.tell(server)
        self.session.say(HostNews(Gpus("ok", "", None, KernelLogState(None, ""), []), []))
        self._by_channel.clear()
        for server in self.servers.values():
            self._start_worker(server)
        self.accepted.set()

    def _start_worker(self, server: PlayedServer) -> None:
        self._latest += 1
        self._by_channel[self._latest] = server
        server.begin(self._latest)

    def frame(self, channel: int, data: bytes) -> None:
        if (server := self._by_channel.get(channel)) is not None:  # else its worker is gone
            server.heard(protocol.to_worker.decode(data))

    def drained(self) -> None:
        """It never holds anything back."""

    async def _beat(self) -> None:
        await self.accepted.wait()
        while True:
            await asyncio.sleep(_BEAT_S)
            for server in self.servers.values():
                server.beat()


def _card(name: str, number: int) -> Gpu:
    code = hashlib.sha256(f"{name}/{number}".encode()).hexdigest()
    uuid = f"GPU-{code[:8]}-{code[8:12]}-{code[12:16]}-{code[16:20]}-{code[20:32]}"
    return Gpu(uuid, "NVIDIA Played", number, f"00000000:{number + 1:02X}:00.0", 24 * 1024**3, "570.1")


def credential(directory: Path) -> str:
    """Of a host that has joined."""
    return (directory / "credential").read_text().strip()
