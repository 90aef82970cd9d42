"""One interactive request from its question to its end, as whoever asked it holds it."""

from __future__ import annotations

import asyncio
import hashlib
from types import TracebackType
from typing import NamedTuple, Protocol

import msgspec

from obatchd.dispatch.link import Link, Offered
from obatchd.dispatch.protocol import INTERACTIVE, TokenItem
from obatchd.jobs.formats.request import Request
from obatchd.jobs.lane import Lane, Pending, Taken
from obatchd.jobs.model import Profile


class Read(NamedTuple):
    """A question that was read already."""

    request: Request
    digest: bytes  # of its bytes


class Question(msgspec.Struct, frozen=True):
    """What somebody asks: a request as one line of a drop has it.

    ``raw`` names no sources. ``stream``: the answer is wanted piece by piece, so once a piece was handed over, a server
    that dies ends the lease. Without, the same request can go to another server as long as it has no result.
    ``timeout_s`` counts from the question. ``read``: what ``raw`` says, where somebody has read it already
    (:func:`obatchd.dispatch.interactive.desk.read_question`).
    """

    raw: bytes
    stream: bool = True
    timeout_s: float | None = None
    read: Read | None = None


class Delta(msgspec.Struct, frozen=True):
    """The next piece of an answer; what is empty has nothing new. ``calls`` are whole calls of functions, as JSON."""

    text: str = ""
    think: str = ""
    calls: list[msgspec.Raw] = []


class Ended(msgspec.Struct, frozen=True):
    """The end of a lease. ``record`` is as a line of ``results.jsonl`` or ``errors.jsonl``, or empty: no server had it.

    ``code`` and ``message`` say why there is no answer. ``again``: the same request may be asked again later, after
    ``retry_after_s`` where that is known.
    """

    succeeded: bool
    record: bytes = b""
    code: str = ""
    message: str = ""
    again: bool = True
    retry_after_s: float | None = None


class Closer(Protocol):
    """Takes leases back; :class:`obatchd.dispatch.interactive.desk.Desk`."""

    def closed(self, lease: Lease) -> None:
        """Nobody waits for the answer any more."""


_calls = msgspec.json.Decoder(list[msgspec.Raw])


class Lease:
    """An interactive request. Iterate over it for the pieces of its answer, then ask for its ``result``.

    Leaving its ``async with``, or ``close``, gives its slot back at once.
    """

    def __init__(
        self, closer: Closer, number: int, question: Question, profile: Profile, owner: int, digest: bytes
    ) -> None:
        lane = Lane(INTERACTIVE, number, owner, profile, "high", 0.0)
        self.number = number
        self.question = question
        self.profile = profile
        self.owner = owner
        self.digest = hashlib.sha256(f"{profile}\0".encode() + digest).digest()
        self.taken = Taken(lane, Pending(number, question.raw), 0.0)
        self.asked_s = 0.0  # monotonic, as the next three
        self.ends_s = float("inf")  # when its time is up
        self.first_token_s = 0.0  # 0: none yet
        self.waits = False  # for a slot
        self.link: Link | None = None  # the server that has it
        self.offered: Offered | None = None  # there
        self.crashed: dict[str, float] = {}  # servers that did so over it, with the time (monotonic)
        self.ended: Ended | None = None
        self.abandoned = False  # nobody waits for it, and its worker has not yet said that it is gone
        self.seen = False  # a piece was handed over
        self._closer = closer
        self._unread: list[Delta] = []
        self._waiter: asyncio.Future[bool] | None = None

    def close(self) -> None:
        """Nobody waits for the answer any more: its slot is free within a moment. May be called at any time."""
        if self.ended is None:
            self._closer.closed(self)

    async def wait(self, limit_s: float | None = None) -> bool:
        """Wait until more of the answer is there, or its end; False: ``limit_s`` have passed. One task at a time waits.

        A future and a timer of its own: an event and a time-out of asyncio take four times as long.
        """
        return bool(self._unread) or self.ended is not None or await self._change(limit_s)

    def fresh(self) -> Delta | None:
        """The pieces that have come since the last time, as one; None where there are none."""
        unread, self._unread = self._unread, []
        if len(unread) < 2:
            return unread[0] if unread else None
        calls = [call for delta in unread for call in delta.calls]
        return Delta("".join(delta.text for delta in unread), "".join(delta.think for delta in unread), calls)

    async def result(self) -> Ended:
        """How it ended, when it has; may be asked for without reading the pieces."""
        while self.ended is None:
            await self._change(None)
        return self.ended

    def __aiter__(self) -> Lease:
        return self

    async def __anext__(self) -> Delta:
        await self.wait()
        if (delta := self.fresh()) is None:
            raise StopAsyncIteration
        return delta

    async def _change(self, limit_s: float | None) -> bool:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        timer = None if limit_s is None else loop.call_later(limit_s, _settle, waiter, False)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Called by the desk.

    @property
    def servers(self) -> list[str]:
        """Those that had it and failed."""
        return self.taken.pending.servers

    def heard(self, item: TokenItem) -> None:
        """More of the answer has come."""
        if item.text or item.think or item.calls:
            self.seen = True
            self._unread.append(Delta(item.text, item.think, _calls.decode(item.calls) if item.calls else []))
            _settle(self._waiter, True)

    def end(self, ended: Ended) -> None:
        if self.ended is None:
            self.ended = ended
            _settle(self._waiter, True)


def _settle(waiter: asyncio.Future[bool] | None, came: bool) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(came)
