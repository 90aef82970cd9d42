"""One session between head and host, the same on both sides: frames in order, calls with answers, signs of life.

Whatever goes wrong ends the session, and says why: a batch that is missing or comes twice, silence, a message that is
none. A new session then begins with what there is, so that neither side ever lives on a stale picture of the other.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import attrs
import msgspec

from obatchd import log
from obatchd.cluster import messages, wire
from obatchd.cluster.calls import Answering, Asking, Desk
from obatchd.errors import ClusterError
from obatchd.frames import FULL_BYTES
from obatchd.tasks import to_its_end

_log = log.get(__name__)
_BEAT_S = 2.0  # the longest time without a message to the other side
_TICK_S = 0.5
_SILENT_TICKS = 15  # ticks and not seconds, because this loop itself may have stood still
_BATCH_BYTES = wire.MESSAGE_BYTES // 4
_CLOSE_S = 2.0
_MOST_BYTES = 4 * 2**20  # of a message of head or host that is no answer
_MOST_MESSAGES_PER_S = 20_000
_WINDOW_S = 5.0
Message = TypeVar("Message", contravariant=True)
M = TypeVar("M")
T = TypeVar("T")


class Socket(Protocol):
    """A connection that carries whole messages in order; a WebSocket, or a stand-in."""

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more. Raises ConnectionError where the other side is gone."""

    async def receive(self) -> bytes:
        """The next message. Raises ConnectionError where the other side is gone, ClusterError for what is none."""

    async def close(self) -> None:
        """Idempotent."""


class Heard(Protocol[Message]):
    """Whoever owns a session; called in the event loop. What it raises ends the session."""

    def control(self, message: Message) -> None:
        """A message of :mod:`obatchd.cluster.messages`; calls and replies are not among them."""

    def frame(self, channel: int, data: bytes) -> None:
        """Bytes of a worker's connection."""

    def drained(self) -> None:
        """There is room again after ``is_full``."""


@attrs.define(eq=False)
class Session(Generic[M]):
    """One connection, from its beginning to its end. ``desks`` answer calls of the other side, by the name of each."""

    _socket: Socket
    peer: str  # of the other side, for the log
    _decoder: msgspec.msgpack.Decoder[Any]
    _heard: Heard[M]
    _desks: Mapping[str, Desk] = attrs.field(factory=dict)
    _trusted: bool = True  # the other side: a question of it that cannot be is answered with an error, and no lie
    code: str = attrs.field(default="", init=False)  # of the rule that the other side broke; empty: it broke none
    began_s: float = attrs.field(factory=time.monotonic, init=False)
    _queue: deque[wire.Piece] = attrs.field(factory=deque, init=False)
    _queued_bytes: int = attrs.field(default=0, init=False)
    _was_full: bool = attrs.field(default=False, init=False)
    _fresh: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _ended: asyncio.Future[str] = attrs.field(init=False)
    _unheard_ticks: int = attrs.field(default=0, init=False)
    _heard_count: int = attrs.field(default=0, init=False)  # batches and messages since ``_counted_s`` (monotonic)
    _counted_s: float = attrs.field(factory=time.monotonic, init=False)
    _asking: Asking = attrs.field(init=False)
    _answering: Answering = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._ended = asyncio.get_running_loop().create_future()
        self._asking = Asking(self)
        self._answering = Answering(self, self._desks, self._trusted)

    # What is said.

    def say(self, message: object) -> bool:
        """Queue a message of ours. False: the session is over."""
        return self.send(wire.CONTROL, messages.encode(message))

    def send(self, channel: int, data: bytes) -> bool:
        """Queue bytes for a channel. False: the session is over."""
        if self._ended.done():
            return False
        for piece in wire.pieces(channel, data):
            self._queue.append(piece)
        self._queued_bytes += len(data)
        self._was_full = self._was_full or self.is_full
        self._fresh.set()
        return True

    @property
    def is_full(self) -> bool:
        """Whether more than :data:`obatchd.frames.FULL_BYTES` wait to be sent; ``drained`` is called when they left."""
        return self._queued_bytes > FULL_BYTES

    @property
    def is_over(self) -> bool:
        return self._ended.done()

    async def call(self, method: str, kind: type[T], timeout_s: float | None = None, /, **arguments: Any) -> T:
        """Ask the other side; its answer as ``kind``.

        Raises what the other side raised of :mod:`obatchd.errors`, ServerError (``host_away``) where the session ends
        before the answer, or ``timeout_s`` pass.
        """
        return await self._asking.call(method, kind, timeout_s, arguments)

    def stream(self, method: str, kind: type[T], /, **arguments: Any) -> AsyncGenerator[T, None]:
        """As :meth:`call`, of an answer that comes in parts."""
        return self._asking.stream(method, kind, arguments)

    def end(self, reason: str) -> None:
        """End the session; ``run`` returns then."""
        if not self._ended.done():
            self._ended.set_result(reason)

    def broken(self, error: ClusterError) -> None:
        """End the session: the other side said what cannot be."""
        if not self._ended.done():
            self.code = error.code
            self.end(error.message)

    async def over(self) -> str:
        """Wait for the end; why it came. ``run`` returns a moment later, when the last words have left."""
        return await asyncio.shield(self._ended)

    # Its life.

    async def run(self) -> str:
        """Carry what is said both ways until the session ends; why it ended."""
        tasks = [asyncio.create_task(work) for work in (self._write(), self._read(), self._watch())]
        try:
            return await asyncio.shield(self._ended)
        finally:
            self.end("given up")
            await to_its_end(self._stop(tasks))

    async def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        try:  # the last words, such as a refusal
            async with asyncio.timeout(_CLOSE_S):
                while self._queued_bytes and not tasks[0].done():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._asking.over(self._ended.result())
        await self._answering.stop()
        await self._socket.close()

    async def _write(self) -> None:
        number = 0
        try:
            while True:
                if not self._queue:
                    self._fresh.clear()
                    await _within(_BEAT_S, self._fresh)
                batch: list[wire.Piece] = []
                size = 0
                while self._queue and size < _BATCH_BYTES:
                    piece = self._queue.popleft()
                    size += len(piece.data)
                    batch.append(piece)
                number += 1
                await self._socket.send(wire.encode(wire.Batch(number, batch)))
                self._queued_bytes -= size
                if self._was_full and self._queued_bytes < FULL_BYTES // 4:
                    self._was_full = False
                    self._heard.drained()
        except ConnectionError as error:
            self.end(f"the connection broke: {log.reason(error)}")
        except Exception as error:  # noqa: BLE001 - logged; the session ends, and another one begins
            self._defect(error)

    async def _read(self) -> None:
        receiver = wire.Receiver()
        try:
            while True:
                data = await self._socket.receive()
                self._unheard_ticks = 0
                self._count()
                for channel, whole in receiver.received(data):
                    self._count()
                    self._take(channel, whole)
        except ConnectionError as error:
            self.end(f"the connection broke: {log.reason(error)}")
        except ClusterError as error:
            self.broken(error)
        except msgspec.MsgspecError as error:
            self.broken(ClusterError(f"a message that is none: {error}", code="bad_frame"))
        except Exception as error:  # noqa: BLE001 - logged; the session ends, and another one begins
            self._defect(error)

    def _defect(self, error: Exception) -> None:
        _log.exception("session_defect", peer=self.peer)
        self.end(f"a defect of obatchd ({type(error).__name__})")

    def _take(self, channel: int, data: bytes) -> None:
        if channel != wire.CONTROL:
            self._heard.frame(channel, data)
            return
        match message := self._decoder.decode(data):
            case messages.Part() | messages.Reply():
                self._asking.answered(message)
            case _ if len(data) > _MOST_BYTES:
                raise ClusterError(f"a message of {len(data)} bytes, which is no answer", code="bad_frame")
            case messages.Call() | messages.CancelCall():
                self._answering.asked(message)
            case _:
                self._heard.control(message)

    def _count(self) -> None:
        self._heard_count += 1
        if self._heard_count >= _MOST_MESSAGES_PER_S * _WINDOW_S:
            took_s = time.monotonic() - self._counted_s
            if took_s < _WINDOW_S:
                words = f"it said {self._heard_count} things within {took_s:.1f} s"
                raise ClusterError(words, code="untrue")
            self._heard_count, self._counted_s = 0, time.monotonic()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._unheard_ticks += 1
            if self._unheard_ticks >= _SILENT_TICKS:
                self.end(f"{self.peer} has said nothing for {_TICK_S * _SILENT_TICKS:g} s")


async def _within(timeout_s: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
