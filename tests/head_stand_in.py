"""A stand-in for the head of many hosts, in the event loop of a test: it accepts hosts and gives their servers work."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import msgspec
from aiohttp import web
from programs_support import certificate

from obatchd.cluster import messages, wire
from obatchd.cluster.messages import Accepted, Challenge, Hello, HostNews, Refused, ServerNews, Terms
from obatchd.cluster.session import Session
from obatchd.dispatch import protocol
from obatchd.jobs.model import Profile

CREDENTIAL = "secret-of-this-host"
SECRET = "secret-of-an-enrolment"
WAIT_S = 60.0
_encode = msgspec.msgpack.Encoder().encode


class _Socket:
    """A WebSocket of the head. Implements :class:`obatchd.cluster.session.Socket`."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def send(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise ConnectionResetError("the host is gone")
        return bytes(message.data)

    async def close(self) -> None:
        await self._socket.close()


@attrs.define(eq=False)
class Came:
    """One session of a host. Implements :class:`obatchd.cluster.session.Heard`."""

    terms: Terms
    refusal: Refused | None
    session: Session[Any] = attrs.field(init=False)
    hello: Hello | None = None
    servers: dict[str, ServerNews] = attrs.field(factory=dict)
    host: HostNews | None = None
    workers: dict[str, int] = attrs.field(factory=dict)  # the latest channel by server
    ended: list[messages.WorkerEnded] = attrs.field(factory=list)
    alarms: list[messages.AlarmNews] = attrs.field(factory=list)
    said: dict[int, list[protocol.ToMain]] = attrs.field(factory=dict)  # by channel
    vacated: list[tuple[str, float, str]] = attrs.field(factory=list)
    over: str = ""
    _nonce: bytes = b"nonce"

    def greet(self) -> None:
        self.session.say(Challenge(self._nonce, "1.0"))

    def control(self, message: Any) -> None:
        match message:
            case Hello():
                assert message.nonce == self._nonce
                self.hello = message
                self.session.say(self.refusal or Accepted(self.terms))
            case ServerNews():
                self.servers[message.id] = message
            case HostNews():
                self.host = message
            case messages.WorkerStarted():
                self.workers[message.server] = message.channel
                self.said[message.channel] = []
            case messages.WorkerEnded():
                self.ended.append(message)
            case messages.AlarmNews():
                self.alarms.append(message)

    def frame(self, channel: int, data: bytes) -> None:
        self.said[channel].append(protocol.to_main.decode(data))

    def drained(self) -> None:
        pass

    async def vacate(self, server: str, patience_s: float, reason: str) -> None:
        """The desk ``head``."""
        self.vacated.append((server, patience_s, reason))

    # What a dispatcher does.

    def tell(self, server: str, message: object) -> None:
        self.session.send(self.workers[server], _encode(message))

    async def ready(self, count: int) -> None:
        """Wait until so many servers are READY and have a worker."""

        def are() -> bool:
            return sum(news.state == "ready" for news in self.servers.values()) == count == len(self.workers)

        await until(are, f"{count} servers are ready")

    async def load(self, server: str, profile: Profile) -> None:
        await self.session.call("servers.load", type(None), WAIT_S, server=server, profile=profile)

    async def ask(self, server: str, *prompts: str) -> list[protocol.ResultItem]:
        """Have a loaded server answer."""
        news = self.servers[server]
        assert news.loaded is not None
        heard = self.said[self.workers[server]]
        begin = len(heard)
        self.tell(server, protocol.Configure(server, news.gpu_label, news.base_url, "", news.slots, 5.0, 60.0, 60.0))
        self.tell(server, protocol.JobContext(1, "job", "", {}, 100))
        items = [
            protocol.OfferItem(1, line, 1, msgspec.json.encode({"prompt": prompt}))
            for line, prompt in enumerate(prompts, 1)
        ]
        options = {**news.load_options, "num_ctx": news.loaded.context_length}
        self.tell(server, protocol.Offer(news.loaded.model, options, items))

        def results() -> list[protocol.ResultItem]:
            given = [message.items for message in heard[begin:] if isinstance(message, protocol.Results)]
            return [item for items in given for item in items]

        await until(lambda: len(results()) == len(prompts), "all prompts are answered")
        return results()


class StandInHead:
    """Listens at a port of loopback until it is closed; may be closed and started again."""

    def __init__(self, directory: Path) -> None:
        self.terms = Terms({"servers": {"slots": 2}, "": {"context_length": 4096}}, 3600.0)
        self.refusal: Refused | None = None
        self.came: list[Came] = []
        self.secrets = {SECRET}
        self.joined: list[dict[str, Any]] = []
        self.credentials = {CREDENTIAL}
        self.tried = 0  # calls that had no good credential
        self.port = 0
        self._certificate, self._key = certificate(directory, "head", "127.0.0.1")
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def link(self) -> str:
        """With which one host may join, or each that has this link while ``secrets`` has its secret."""
        return f"obatch://{self.address}/#{SECRET}.{self.fingerprint.removeprefix('sha256:')}"

    @property
    def fingerprint(self) -> str:
        content = ssl.PEM_cert_to_DER_cert(self._certificate.read_text())
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    async def start(self) -> StandInHead:
        app = web.Application()
        app.router.add_get("/v1/hosts", self._attend)
        app.router.add_post("/v1/join", self._join)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._certificate, self._key)
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def close(self) -> None:
        """End all sessions, and listen no more."""
        for came in self.came:
            came.session.end("the head ends")
        if self._runner is not None:
            await self._runner.cleanup()

    async def _join(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["secret"] not in self.secrets:
            return web.json_response({"code": "wrong_secret", "message": "that code was used"}, status=403)
        self.joined.append(asked)
        return web.json_response({"name": asked["name"], "credential": CREDENTIAL})

    async def _attend(self, request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.credentials:
            self.tried += 1
            raise web.HTTPUnauthorized
        socket = web.WebSocketResponse(max_msg_size=wire.MESSAGE_BYTES)
        await socket.prepare(request)
        came = Came(self.terms, self.refusal)
        came.session = Session(_Socket(socket), "the host", messages.to_head, came, {"head": came})
        self.came.append(came)
        came.greet()
        came.over = await came.session.run()
        return socket

    async def next(self, look: Callable[[Came], bool] = lambda came: bool(came.servers)) -> Came:
        """The latest session, as soon as it goes on and ``look`` is true of it."""
        await until(lambda: bool(self.came) and not self.came[-1].over and look(self.came[-1]), "the host is here")
        return self.came[-1]


async def until(look: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for a condition in this loop."""
    deadline_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.01)
