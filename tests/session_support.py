"""Two ends of a session in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs

from obatchd.cluster import messages
from obatchd.cluster.session import Session


class MemorySocket:
    """One of two ends. Implements :class:`obatchd.cluster.session.Socket`."""

    def __init__(self) -> None:
        self.peer: MemorySocket | None = None
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False
        self.blocked = asyncio.Event()  # cleared: nothing leaves
        self.blocked.set()

    async def send(self, data: bytes) -> None:
        await self.blocked.wait()
        if self.closed or self.peer is None or self.peer.closed:
            raise ConnectionResetError("the other end is gone")
        self.peer._inbox.put_nowait(data)
        await asyncio.sleep(0)

    async def receive(self) -> bytes:
        data = await self._inbox.get()
        if data is None or self.closed:
            raise ConnectionResetError("the other end is gone")
        return data

    async def close(self) -> None:
        self.closed = True
        self._inbox.put_nowait(None)
        if self.peer is not None:
            self.peer._inbox.put_nowait(None)


def pair() -> tuple[MemorySocket, MemorySocket]:
    one, other = MemorySocket(), MemorySocket()
    one.peer, other.peer = other, one
    return one, other


@attrs.define(eq=False)
class Kept:
    """Keeps what it hears. Implements :class:`obatchd.cluster.session.Heard`."""

    messages: list[Any] = attrs.field(factory=list)
    frames: list[tuple[int, bytes]] = attrs.field(factory=list)
    drains: int = 0

    def control(self, message: Any) -> None:
        self.messages.append(message)

    def frame(self, channel: int, data: bytes) -> None:
        self.frames.append((channel, data))

    def drained(self) -> None:
        self.drains += 1


def sessions(head: Any, host: Any, *, of_head: Any = None, of_host: Any = None) -> tuple[Session[Any], Session[Any]]:
    """The head's session and the host's; ``of_head`` and ``of_host`` are the desks of each."""
    one, other = pair()
    return (
        Session(one, "host node01", messages.to_head, head, of_head or {}),
        Session(other, "the head", messages.to_host, host, of_host or {}),
    )
