"""The worker process: drives one server and holds its requests.

Started by the forkserver with this module preloaded, so it must import no more than it needs and start no thread at
import. It ignores SIGINT and SIGTERM (Ctrl-C reaches the whole process group before the daemon can drain) and ends
at once when its socket closes, so that nothing of ours outlives a killed daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from functools import partial
from typing import Any, Never

import msgspec
import uvloop

from obatchd.dispatch import faults, protocol, records
from obatchd.dispatch.answering import structured_answer
from obatchd.dispatch.body import has_images, left_out, request_body
from obatchd.dispatch.client import Answer, OllamaClient
from obatchd.dispatch.faults import Fault
from obatchd.dispatch.protocol import JobContext, OfferItem, ResultItem
from obatchd.jobs.formats.request import Request, parse_request, request_id

_PROGRESS_S = 1.0
_GATHER_S = 0.005


class _Held:
    """A request the worker holds; ``task`` is that of its slot while it has one."""

    __slots__ = ("active", "began_s", "fault", "item", "offer", "task", "token_s")

    def __init__(self, item: OfferItem, offer: protocol.Offer) -> None:
        self.item = item
        self.offer = offer
        self.task: asyncio.Task[None] | None = None
        self.active = 0  # requests in a slot when it got one, itself included
        self.began_s = 0.0  # monotonic; when it got its slot
        self.token_s = 0.0  # monotonic; of the latest token, 0 before the first
        self.fault: Fault | None = None  # why its attempt was ended from outside


class Worker:
    """Offers in, results out; at most ``slots`` requests are at the server at a time."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._held: dict[tuple[int, int], _Held] = {}
        self._queue: deque[tuple[int, int]] = deque()
        self._active = 0  # slots in use
        self._slots: set[asyncio.Task[None]] = set()
        self._jobs: dict[int, JobContext] = {}
        self._configure: protocol.Configure | None = None
        self._client: OllamaClient | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._started: list[tuple[int, int]] = []
        self._results: list[ResultItem] = []
        self._flushing: asyncio.Handle | None = None
        self._gathering = False
        self._tokens = 0
        self._last_token_s = time.monotonic()

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Serve until the socket closes."""
        self._send(protocol.Hello(os.getpid()))
        ticker = asyncio.create_task(self._tick())
        async for message in protocol.from_main(reader):
            self._handle(message)
        ticker.cancel()

    def _handle(self, message: protocol.ToWorker) -> None:
        match message:
            case protocol.Offer():
                for item in message.items:
                    key = (item.job, item.line)
                    self._held[key] = _Held(item, message)
                    self._queue.append(key)
                self._fill()
            case protocol.JobContext():
                self._jobs[message.job] = message
            case protocol.Configure():
                self._reconfigure(message)
            case protocol.Recall():
                self._recall(message.count)
            case protocol.Cancel():
                self._cancel(message.job)
            case protocol.Forget():
                self._jobs.pop(message.job, None)
            case protocol.GiveUp():
                for held in self._held.values():
                    self._give_up(held, Fault(message.fault, message.code, message.message))
            case protocol.Ping():
                self._report_progress()

    def _reconfigure(self, message: protocol.Configure) -> None:
        old, self._configure = self._configure, message
        if self._client is None or old is None or msgspec.structs.replace(old, slots=message.slots) != message:
            if self._client is not None:
                closing = self._loop.create_task(self._client.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self._client = OllamaClient(message.base_url, message.token, connect_timeout_s=message.connect_timeout_s)
        self._fill()

    def _fill(self) -> None:
        """Open a slot for each request that may begin; a slot goes on with the next request by itself."""
        slots = self._configure.slots if self._configure else 0
        for _ in range(min(len(self._queue), slots - self._active)):
            if self._active == 0:
                self._last_token_s = time.monotonic()
            self._active += 1
            slot = self._loop.create_task(self._slot())
            self._slots.add(slot)
            slot.add_done_callback(self._slots.discard)

    async def _slot(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while (held := self._next()) is not None:
            held.task = task
            try:
                await self._answer((held.item.job, held.item.line), held)
            except asyncio.CancelledError:
                task.uncancel()  # the attempt was cancelled, not its slot
            finally:
                held.task = None
        self._active -= 1

    def _next(self) -> _Held | None:
        """The request that begins now; None when there is none, or when slots became fewer."""
        slots = self._configure.slots if self._configure else 0
        while self._queue and self._active <= slots:
            key = self._queue.popleft()
            held = self._held.get(key)
            if held is not None:
                held.active = self._active
                held.began_s = time.monotonic()
                self._started.append(key)
                self._flush_soon()
                return held
        return None

    def _result(self, key: tuple[int, int], held: _Held, result: ResultItem) -> None:
        if self._held.get(key) is held:
            del self._held[key]
            self._results.append(result)
            self._flush_soon()

    def _recall(self, count: int) -> None:
        returned: list[tuple[int, int]] = []
        while self._queue and len(returned) < count:
            key = self._queue.pop()
            if self._held.pop(key, None) is not None:
                returned.append(key)
        self._flush()
        self._send(protocol.Returned(returned))

    def _cancel(self, job: int) -> None:
        keys = [key for key in self._held if key[0] == job]
        for key in keys:
            held = self._held.pop(key)
            if held.task is not None:
                held.task.cancel()
        self._flush()
        self._send(protocol.Returned(keys))

    def _give_up(self, held: _Held, fault: Fault) -> None:
        if held.task is not None and held.fault is None:
            held.fault = fault
            held.task.cancel()

    def _on_token(self, held: _Held) -> None:
        self._tokens += 1
        self._last_token_s = held.token_s = time.monotonic()

    def _give_up_stuck(self, settings: protocol.Configure) -> None:
        """An answer that began and stopped while others go on is stuck; one that did not begin may have to wait."""
        now_s, limit_s = time.monotonic(), settings.stall_s
        if now_s - self._last_token_s >= limit_s / 2:
            return  # nothing moves on this server: the main process knows whether its GPU is busy
        for held in self._held.values():
            if held.token_s and now_s - held.token_s >= limit_s:
                self._give_up(held, faults.stalled(limit_s))

    def _give_up_late(self, settings: protocol.Configure) -> None:
        """End attempts whose time is up. One look a second for all of them costs less than a timer for each."""
        now_s = time.monotonic()
        for held in self._held.values():
            limit_s = held.item.limit_s or settings.request_timeout_s
            if held.task is not None and now_s - held.began_s >= limit_s:
                self._give_up(held, faults.out_of_time(limit_s))

    async def _answer(self, key: tuple[int, int], held: _Held) -> None:
        try:
            result = await self._attempt(held)
        except Exception as error:  # noqa: BLE001 - a defect must cost one attempt, not the slot and the request
            traceback.print_exc()
            fault = Fault(faults.ANSWER, "worker_defect", f"line {held.item.line}: {type(error).__name__}: {error}")
            result = self._without_answer(held, fault)
        self._result(key, held, result)

    def _without_answer(self, held: _Held, fault: Fault) -> ResultItem:
        item = held.item
        answer = _failed(fault)
        record = self._record(held, Request(id=request_id(item.raw)), answer, time.time(), 0.0)
        return ResultItem(item.job, item.line, item.attempt, False, record, 0.0, 0, 0, *fault)

    async def _attempt(self, held: _Held) -> ResultItem:
        started_s, clock = time.time(), time.perf_counter()
        item = held.item
        assert self._client is not None and self._configure is not None
        try:
            request = parse_request(item.raw)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            fault = Fault(faults.REQUEST, "bad_json", f"line {item.line}: {error}")
            answer, extra, request = _failed(fault), None, Request()
        else:
            answer, extra = await self._fulfil(held, request)
        duration_s = time.perf_counter() - clock
        record = self._record(held, request, answer, started_s, duration_s, extra)
        fault = answer.fault or Fault("", "", "")
        tokens = (answer.prompt_tokens, answer.response_tokens)
        succeeded = answer.fault is None
        # A constrained answer of a model that thinks takes a slot twice and reports the second time only; images are
        # decoded before the clock of the prompt starts. Neither is a wait (ollama server/routes.go, llama/runner).
        plain = not (extra and "data" in extra) and not has_images(request)
        return ResultItem(
            item.job, item.line, item.attempt, succeeded, record, duration_s, *tokens, *fault,
            eval_s=answer.eval_s, wait_s=answer.wait_s if plain else 0.0, active=min(held.active, self._active),
        )  # fmt: skip

    async def _fulfil(self, held: _Held, request: Request) -> tuple[Answer, dict[str, Any] | None]:
        """The answer to a request, and what its record gets beside it."""
        offer, context = held.offer, self._jobs[held.item.job]
        if offer.capabilities and "vision" not in offer.capabilities and has_images(request):
            return _failed(faults.no_vision(offer.model)), None
        body = request_body(request, context, offer.model, offer.load_options, offer.capabilities)
        extra: dict[str, Any] | None = None
        if "format" in body:
            in_source = request.in_source if request.in_source is not None else context.in_source
            answer, extra = await structured_answer(partial(self._ask, held), body, in_source)
        else:
            answer = await self._ask(held, body)
        if notes := left_out(request, offer.capabilities):
            extra = {**(extra or {}), "notes": notes}
        return answer, extra

    async def _ask(self, held: _Held, body: dict[str, Any]) -> Answer:
        assert self._client is not None
        held.token_s = 0.0
        try:
            return await self._client.chat(body, partial(self._on_token, held))
        except asyncio.CancelledError:
            if held.fault is None or held.task is None:
                raise
            held.task.uncancel()  # only the attempt ends here
            return _failed(held.fault)

    def _record(
        self,
        held: _Held,
        request: Request,
        answer: Answer,
        started_s: float,
        duration_s: float,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        assert self._configure is not None
        return records.attempt(
            self._configure, held.offer.model, held.item, request, answer, started_s, duration_s, extra
        )

    # Sending: everything of one turn of the loop goes out in as few frames as possible.

    def _flush_soon(self) -> None:
        """While there is enough to do, what is to be said may gather for a moment; before it runs out, it may not."""
        slots = self._configure.slots if self._configure else 0
        if len(self._queue) <= slots:
            if self._flushing is None or self._gathering:
                self._stop_gathering()
                self._flushing = self._loop.call_soon(self._flush)
        elif self._flushing is None:
            self._gathering = True
            self._flushing = self._loop.call_later(_GATHER_S, self._flush)

    def _stop_gathering(self) -> None:
        self._gathering = False
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None

    def _flush(self) -> None:
        self._stop_gathering()
        # Ends before beginnings, or more requests than slots would seem to be in flight.
        if self._results:
            self._send(protocol.Results(self._results))
            self._results = []
        if self._started:
            if going := [key for key in self._started if key in self._held]:
                self._send(protocol.Started(going))
            self._started = []

    def _send(self, message: protocol.ToMain) -> None:
        if not self._writer.is_closing():  # else the main process is gone, and this one about to be
            self._writer.write(protocol.frame(message))

    def _report_progress(self) -> None:
        silent_s = time.monotonic() - self._last_token_s if self._active else 0.0
        self._send(protocol.Progress(self._tokens, self._active, silent_s))
        self._tokens = 0

    async def _tick(self) -> None:
        # Nothing to say while idle: an idle worker costs no wake-up of the main process.
        while True:
            await asyncio.sleep(_PROGRESS_S)
            if self._configure is not None and (self._active or self._tokens):
                self._report_progress()
                self._give_up_stuck(self._configure)
                self._give_up_late(self._configure)


def _failed(fault: Fault) -> Answer:
    return Answer("", "", "", 0, 0, 0.0, fault)


def main(connection: socket.socket) -> Never:
    """Entry of the process; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = 1
    try:
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            uvloop.run(_serve(connection))
        status = 0
    except Exception:  # noqa: BLE001 - the last chance to say why it ends; a new worker follows
        traceback.print_exc()
    finally:
        # Without os._exit the interpreter would wait for whatever the last requests left behind.
        sys.stderr.flush()
        os._exit(status)


async def _serve(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**20)
    await Worker(writer).run(reader)
    os._exit(0)
