"""The worker process: drives one server and holds its requests.

A child (:mod:`obatchd.child`) that the forkserver starts with this module preloaded, so it must import no more than it
needs and start no thread at import.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import traceback
from collections import deque
from functools import partial
from typing import Never

import msgspec
import uvloop

from obatchd.dispatch import protocol
from obatchd.dispatch.protocol import ResultItem
from obatchd.dispatch.worker.attempts import Attempts, Held
from obatchd.dispatch.worker.embedding import TOGETHER, may_join, size_of
from obatchd.dispatch.worker.streaming import Stream, TokenSender
from obatchd.frames import Channel
from obatchd.jobs.formats.request import Request, parse_request
from obatchd.jobs.model import written_line
from obatchd.ollama import faults
from obatchd.ollama.client import OllamaClient
from obatchd.ollama.faults import Fault

_PROGRESS_S = 1.0
_GATHER_S = 0.005


class Worker:
    """Offers in, results out; at most ``slots`` requests are at the server at a time."""

    def __init__(self, channel: Channel[protocol.ToWorker]) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._held: dict[tuple[int, int], Held] = {}
        self._queue: deque[tuple[int, int]] = deque()
        self._first: deque[tuple[int, int]] = deque()  # of a higher rank: these begin before the others
        self._slots: set[asyncio.Task[None]] = set()
        self._attempts = Attempts(self)
        self._tokens_out = TokenSender(channel)
        self._closing: set[asyncio.Task[None]] = set()
        self._started: list[tuple[int, int]] = []
        self._results: list[ResultItem] = []
        self._flushing: asyncio.Handle | None = None
        self._gathering = False
        self._limit: asyncio.TimerHandle | None = None
        self._limit_s = 0.0  # monotonic; when it rings
        self._tokens = 0
        self._last_token_s = time.monotonic()
        self._got = 0  # requests, in the life of this worker
        self._pinged = (0, 0)  # by the latest ping: how many were sent before it, and how many had come then

    async def run(self) -> None:
        """Serve until the socket closes."""
        self._channel.send(protocol.Hello(os.getpid()))
        ticker = asyncio.create_task(self._tick())
        with contextlib.suppress(ConnectionError):
            while True:
                self._handle(await self._channel.receive())
        ticker.cancel()

    def _handle(self, message: protocol.ToWorker) -> None:
        match message:
            case protocol.Offer():
                self._take(message)
            case protocol.JobContext():
                self._attempts.jobs[message.job] = message
            case protocol.Configure():
                self._reconfigure(message)
            case protocol.Recall():
                self._recall(message.count)
            case protocol.Cancel():
                self._abandon([key for key in self._held if key[0] == message.job])
            case protocol.CancelOne():
                self._abandon([(message.job, message.line)])
            case protocol.Forget():
                self._attempts.jobs.pop(message.job, None)
            case protocol.GiveUp():
                for held in self._held.values():
                    self._give_up(held, Fault(message.fault, message.code, message.message))
            case protocol.Ping():
                self._pinged = (message.offered, self._got)
                self._report_progress()

    def _take(self, offer: protocol.Offer) -> None:
        self._got += len(offer.items)
        for item in offer.items:
            key = (item.job, item.line)
            stream = Stream(item, self._tokens_out, silent=not offer.stream) if offer.rank else None
            self._held[key] = Held(item, offer, stream)
            (self._first if offer.rank else self._queue).append(key)
        self._fill()

    def _reconfigure(self, message: protocol.Configure) -> None:
        attempts, limit_s = self._attempts, message.connect_timeout_s
        old, attempts.server = attempts.server, message
        if attempts.client is None or msgspec.structs.replace(old, slots=message.slots) != message:
            if attempts.client is not None:
                closing = self._loop.create_task(attempts.client.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            attempts.client = OllamaClient(message.base_url, message.token, connect_timeout_s=limit_s)
        for held in self._held.values():
            if held.task is not None:
                self._watch_limit(held)
        self._fill()

    def _fill(self) -> None:
        """Open a slot for each request that may begin; a slot goes on with the next request by itself."""
        slots = self._attempts.server.slots
        for _ in range(min(len(self._queue) + len(self._first), slots - self._attempts.active)):
            if self._attempts.active == 0:
                self._last_token_s = time.monotonic()
            self._attempts.active += 1
            slot = self._loop.create_task(self._slot())
            self._slots.add(slot)
            slot.add_done_callback(self._slots.discard)

    async def _slot(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while (held := self._next()) is not None:
            held.task = task
            try:
                await self._answer(held)
            except asyncio.CancelledError:
                task.uncancel()  # the attempt was cancelled, not its slot
            finally:
                held.task = None
        self._attempts.active -= 1

    def _next(self) -> Held | None:
        """The request that begins now; None when there is none, or when slots became fewer."""
        slots = self._attempts.server.slots
        while (self._first or self._queue) and self._attempts.active <= slots:
            key = (self._first or self._queue).popleft()
            held = self._held.get(key)
            if held is not None:
                held.active = self._attempts.active
                held.began_s = time.monotonic()
                self._watch_limit(held)
                self._started.append(key)
                self._gather()  # one that is answered at once is never told to have begun
                return held
        return None

    def _recall(self, count: int) -> None:
        returned: list[tuple[int, int]] = []
        while (self._queue or self._first) and len(returned) < count:
            key = (self._queue or self._first).pop()
            if self._held.pop(key, None) is not None:
                returned.append(key)
        self._flush()
        self._channel.send(protocol.Returned(returned))

    def _abandon(self, keys: list[tuple[int, int]]) -> None:
        gone = [key for key in keys if key in self._held]
        for key in gone:
            held = self._held.pop(key)
            if held.task is not None:
                held.task.cancel()
        self._flush()
        self._channel.send(protocol.Returned(gone))

    def _give_up(self, held: Held, fault: Fault) -> None:
        if held.task is not None and held.fault is None:
            held.fault = fault
            held.task.cancel()

    def token(self, held: Held) -> None:
        """More of an answer has arrived."""
        self._tokens += 1
        self._last_token_s = held.token_s = time.monotonic()

    # Slots that are lent, to a request with several answers.

    @property
    def wanted(self) -> bool:
        return bool(self._queue or self._first) or self._attempts.active > self._attempts.server.slots

    def borrow(self) -> bool:
        if self._queue or self._first or self._attempts.active >= self._attempts.server.slots:
            return False
        self._attempts.active += 1
        return True

    def give_back(self) -> None:
        self._attempts.active -= 1
        self._fill()

    def _give_up_stuck(self) -> None:
        """An answer that began and stopped while others go on is stuck; one that did not begin may have to wait."""
        now_s, limit_s = time.monotonic(), self._attempts.server.stall_s
        if now_s - self._last_token_s >= limit_s / 2:
            return  # nothing moves on this server: the main process knows whether its GPU is busy
        for held in self._held.values():
            if held.token_s and now_s - held.token_s >= limit_s:
                self._give_up(held, faults.stalled(limit_s))

    def _watch_limit(self, held: Held) -> None:
        """See to it that an attempt ends in time: by one timer for all, which rings for the first whose time is up."""
        ends_s = held.began_s + (held.item.limit_s or self._attempts.server.request_timeout_s)
        if self._limit is None or ends_s < self._limit_s:
            if self._limit is not None:
                self._limit.cancel()
            self._limit_s = ends_s
            self._limit = self._loop.call_later(max(0.0, ends_s - time.monotonic()), self._give_up_late)

    def _give_up_late(self) -> None:
        self._limit, now_s = None, time.monotonic()
        for held in self._held.values():
            if held.task is None:
                continue
            limit_s = held.item.limit_s or self._attempts.server.request_timeout_s
            if now_s - held.began_s >= limit_s:
                self._give_up(held, faults.out_of_time(limit_s))
            else:
                self._watch_limit(held)

    async def _answer(self, held: Held) -> None:
        joined: list[Held] = []
        try:
            results = await self._attempts.run(held, partial(self._joining, joined))
        except Exception as error:  # noqa: BLE001 - a defect must cost one attempt, not the slot and the request
            traceback.print_exc()
            line = written_line(held.item.line)[0]
            reason = f"line {line}: a defect of obatchd ({type(error).__name__}: {error})"
            fault = Fault(faults.ANSWER, "worker_defect", reason)
            results = [(one, self._attempts.without_answer(one, fault)) for one in (held, *joined)]
        for one, result in results:
            key = (one.item.job, one.item.line)
            if self._held.get(key) is one:
                del self._held[key]
                self._results.append(result)
                self._flush_soon()

    def _joining(self, joined: list[Held], first: Held, request: Request) -> list[tuple[Held, Request]]:
        """The next requests of the job that can share a call; half of the queue stays for the next one.

        They are never reported as begun, and end with the first one's attempt. One of a higher rank has its call for
        itself.
        """
        found: list[tuple[Held, Request]] = []
        if first.offer.rank:
            return found
        passed: list[tuple[int, int]] = []  # of other jobs: they keep their turn
        size, room = size_of(request), min(TOGETHER - 1, len(self._queue) // 2)
        while self._queue and len(found) < room:
            key = self._queue.popleft()
            held = self._held.get(key)
            if held is None:
                continue
            if key[0] != first.item.job or held.offer.model != first.offer.model:
                passed.append(key)
                continue
            more = _parsed(held)
            if more is None or not may_join(request, size, more):
                passed.append(key)
                break
            held.active, held.began_s = first.active, first.began_s
            found.append((held, more))
            joined.append(held)
            size += size_of(more)
        self._queue.extendleft(reversed(passed))
        return found

    # Sending: everything of one turn of the loop goes out in as few frames as possible. Where that fails, the main
    # process is gone, and this one about to be.

    def _flush_soon(self) -> None:
        """While there is enough to do, messages may gather for a moment; before work runs out, they may not."""
        slots = self._attempts.server.slots
        if len(self._queue) <= slots:
            if self._flushing is None or self._gathering:
                self._stop_gathering()
                self._flushing = self._loop.call_soon(self._flush)
        else:
            self._gather()

    def _gather(self) -> None:
        if self._flushing is None:
            self._gathering = True
            self._flushing = self._loop.call_later(_GATHER_S, self._flush)

    def _stop_gathering(self) -> None:
        self._gathering = False
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None

    def _flush(self) -> None:
        self._stop_gathering()
        self._tokens_out.flush()
        # Ends before beginnings, or more requests than slots would seem to be in flight.
        if self._results:
            self._channel.send(protocol.Results(self._results))
            self._results = []
        if self._started:
            if going := [key for key in self._started if key in self._held]:
                self._channel.send(protocol.Started(going))
            self._started = []

    def _report_progress(self) -> None:
        silent_s = time.monotonic() - self._last_token_s if self._attempts.active else 0.0
        held = len(self._held) + len(self._results)
        self._channel.send(
            protocol.Progress(self._tokens, self._attempts.active, silent_s, held, self._got, *self._pinged)
        )
        self._tokens = 0

    async def _tick(self) -> None:
        # Nothing to say while idle: an idle worker costs no wake-up of the main process.
        while True:
            await asyncio.sleep(_PROGRESS_S)
            if self._attempts.active or self._tokens:
                self._report_progress()
                self._give_up_stuck()


def _parsed(held: Held) -> Request | None:
    try:
        return parse_request(held.item.raw)
    except (ValueError, RecursionError):
        return None  # it fails when its own turn comes


def main(connection: socket.socket) -> None:
    uvloop.run(_serve(connection))


async def _serve(connection: socket.socket) -> Never:
    await Worker(await Channel.open(connection, protocol.to_worker)).run()
    # Here and not after the loop is closed: work still in its threads would report to a closed loop.
    os._exit(0)
