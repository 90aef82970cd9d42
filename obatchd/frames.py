"""Messages over a socket, in frames: four bytes of length, then msgpack. With an event loop, or without one."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Generic, Protocol, TypeVar

import attrs
import msgspec

_HEADER = struct.Struct("<I")
FRAME_LIMIT_BYTES = 7 * 2**29  # a source may have 1 GiB (context.max_bytes), and thrice as much as UTF-8
_BUFFER_BYTES = 2**20  # read ahead of what is asked for
FULL_BYTES = 8 * 2**20  # so much that is not sent yet is enough: whoever asks sends no more until it has left
_encode = msgspec.msgpack.Encoder().encode
Message = TypeVar("Message")
Decoder = msgspec.msgpack.Decoder


def frame(message: object) -> bytes:
    body = _encode(message)
    return _HEADER.pack(len(body)) + body


def _length(header: bytes | bytearray) -> int:
    (length,) = _HEADER.unpack(header)
    if length > FRAME_LIMIT_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return int(length)


class Drained(Protocol):
    """Hears that there is room again in a channel that was full."""

    def drained(self) -> None:
        """What was queued has left."""


@attrs.define(eq=False)
class Channel(Generic[Message]):
    """One end of a socket, in an event loop."""

    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _decoder: Decoder[Message]
    _length: int | None = attrs.field(default=None, init=False)  # of the frame that is being received
    _frames: list[bytes] = attrs.field(factory=list, init=False)  # of this turn of the loop
    _queued_bytes: int = attrs.field(default=0, init=False)  # of those
    _draining: asyncio.Task[None] | None = attrs.field(default=None, init=False)  # while the socket is full
    _listener: Drained | None = attrs.field(default=None, init=False)  # whoever asks whether it is full
    _resumed: asyncio.Event | None = attrs.field(default=None, init=False)  # while nothing is to be received
    _loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop, init=False)

    @classmethod
    async def open(cls, connection: socket.socket, decoder: Decoder[Message]) -> Channel[Message]:
        """The channel owns ``connection`` from now on."""
        try:
            return cls(*await asyncio.open_connection(sock=connection, limit=_BUFFER_BYTES), decoder)
        except BaseException:
            connection.close()
            raise

    def send(self, message: object) -> bool:
        """Queue a message. False: the other end is known to be gone, and the message with it."""
        if self._writer.is_closing():  # uvloop's transport raises for a write after a failed one
            return False
        if not self._frames:
            self._loop.call_soon(self._write)  # uvloop would call the kernel for each
        made = frame(message)
        self._frames.append(made)
        self._queued_bytes += len(made)
        return True

    def _write(self) -> None:
        frames, self._frames = self._frames, []
        was_full, self._queued_bytes = self._queued_bytes > FULL_BYTES, 0
        if not frames or self._writer.is_closing():
            return
        self._writer.write(b"".join(frames) if len(frames) > 1 else frames[0])
        if self._listener is None or self._draining is not None:
            return
        if was_full or self._writer.transport.get_write_buffer_size() > FULL_BYTES:
            self._draining = self._loop.create_task(self._drain(self._listener))

    @property
    def is_full(self) -> bool:
        """Whether more than :data:`FULL_BYTES` wait to be sent; its listener hears when they have left."""
        return self._draining is not None or self._queued_bytes > FULL_BYTES

    async def _drain(self, listener: Drained) -> None:
        try:
            await self._writer.drain()
        except OSError:
            return  # and it stays full: nothing will leave any more
        self._draining = None
        listener.drained()

    async def receive(self) -> Message:
        """The next message; when this is cancelled, it is the next call's.

        Raises ConnectionError where the other end is gone, ValueError or msgspec.DecodeError where the frame is too
        long, or no message.
        """
        while self._resumed is not None:
            await self._resumed.wait()
        try:
            if self._length is None:
                self._length = _length(await self._reader.readexactly(_HEADER.size))
            body = await self._reader.readexactly(self._length)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("the other end is gone") from None
        self._length = None
        return self._decoder.decode(body)

    def listen(self, listener: Drained) -> None:
        """Keep watch over what is not sent yet: ``listener`` hears when there is room again after ``is_full``."""
        self._listener = listener
        self._writer.transport.set_write_buffer_limits(FULL_BYTES, FULL_BYTES // 4)

    def pause(self) -> None:
        """Receive nothing more until ``resume``: the other end waits when the socket is full, and so does its work."""
        self._resumed = self._resumed or asyncio.Event()

    def resume(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.set()

    @property
    def is_closed(self) -> bool:
        return self._writer.is_closing()

    def close(self) -> None:
        """Close the socket at once: a process that hangs would never read the rest."""
        self._listener = None
        self._write()
        if self._draining is not None:
            self._draining.cancel()
        self._writer.transport.abort()


def send(connection: socket.socket, message: object) -> None:
    """Send a message from a process without event loop. Raises ConnectionError where the other end is gone."""
    connection.sendall(frame(message))


def receive(connection: socket.socket, decoder: Decoder[Message]) -> Message:
    """Wait for a message in a process without event loop; raises as :meth:`Channel.receive` does."""
    return decoder.decode(_exactly(connection, _length(_exactly(connection, _HEADER.size))))


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        count = connection.recv_into(left)
        if not count:
            raise ConnectionResetError("the other end is gone")
        left = left[count:]
    return data
