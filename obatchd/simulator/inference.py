"""Generate and chat: from the request's fields to the last line of the answer."""

from __future__ import annotations

import math
import os
import time
from typing import Any, Protocol

import msgspec

from obatchd.simulator import answers, golog, grammar
from obatchd.simulator.ask import Ask
from obatchd.simulator.config import Fault
from obatchd.simulator.runner import RunnerGone
from obatchd.simulator.scheduler import Loaded, Scheduler, ServeError

_UNEXPECTED_EOF = "an error was encountered while running the model: unexpected EOF"
_CUDA_ERROR = "an error was encountered while running the model: CUDA error: an illegal memory access was encountered"
_AT_ARRIVAL = frozenset({"status", "busy"})
_IN_SLOT = frozenset(
    {
        "crash",
        "runner_crash",
        "cuda_error",
        "hang",
        "slow",
        "cut",
        "not_done",
        "no_reason",
        "empty",
        "leak",
        "no_format",
        "think_tags",
        "think_open",
    }
)
_BUSY_TEXT = "server busy, please try again.  maximum pending requests exceeded"


class CutStream(Exception):
    """The connection ends here, without a last line."""


class Output(Protocol):
    """Where an answer goes."""

    async def text(self, piece: str, thinking: bool) -> None: ...

    async def call(self, function: dict[str, Any]) -> None: ...

    async def finish(self, fields: dict[str, Any], text: str = "", thinking: bool = False) -> None:
        """The last line, after a last piece where there is one: they become known at the same instant."""


async def answer(scheduler: Scheduler, ask: Ask, output: Output) -> None:
    """Answer ``ask`` into ``output``.

    Raises:
        ServeError: an error for the client, also after the first piece.
        CutStream: the connection is to end.
    """
    scheduler.statistics.requests += 1
    schema = isinstance(ask.format, dict)
    if (fault := scheduler.faults.strike(_AT_ARRIVAL, ask.spec.name, ask.prompt, schema=schema)) is not None:
        busy = fault.kind == "busy"
        raise ServeError(503 if busy else fault.status, _BUSY_TEXT if busy else fault.message)
    loaded = await scheduler.acquire(ask.spec, ask.load_options(scheduler.line), ask.keep_alive_s)
    try:
        load_duration_s = time.monotonic() - ask.arrived_s
        slot = await scheduler.take_slot(loaded, ask.sent)
        leaks = False
        try:
            answering = Answering(scheduler, ask, loaded, output, load_duration_s, loaded.slots.reused(slot))
            leaks = answering.leaks
            await answering.run()
            scheduler.statistics.served += 1
            scheduler.statistics.served_by_slot[slot] += 1
        except RunnerGone:
            golog.slog("ERROR", "server.go:1724", "simulated runner died", model=ask.spec.name)
            raise ServeError(500, _CUDA_ERROR if answering.says_why else _UNEXPECTED_EOF) from None
        finally:
            scheduler.leave_slot(loaded, slot, leaks=leaks)
    finally:
        scheduler.release(loaded)


class Answering:
    """One request in its slot."""

    def __init__(
        self, scheduler: Scheduler, ask: Ask, loaded: Loaded, output: Output, load_duration_s: float, reused: int
    ) -> None:
        self._scheduler = scheduler
        self._ask = ask
        self._runner = loaded.runner
        self._num_ctx = loaded.num_ctx
        self._output = output
        self._load_duration_s = load_duration_s
        self._reused = reused  # tokens of its prompt
        schema = isinstance(ask.format, dict)
        self._fault = scheduler.faults.strike(_IN_SLOT, ask.spec.name, ask.prompt, schema=schema)
        self._slowness = loaded.slowness
        if self._fault is not None and self._fault.kind == "slow":
            self._slowness *= self._fault.factor
        self.says_why = self._fault is not None and self._fault.kind == "cuda_error"
        self.leaks = self._fault is not None and self._fault.kind == "leak"

    async def run(self) -> None:
        ask, config = self._ask, self._scheduler.config
        prompt_tokens = self._checked_prompt()
        await self._make_grammar()
        pieces, thinking, done_reason = self._pieces(prompt_tokens)
        prompt_s = 0.0
        rate = config.tokens_per_s / self._slowness
        if config.throughput is not None:
            busy = self._scheduler.statistics.in_flight
            rate = config.throughput.of_one(busy, answers.digest(ask.prompt)) / self._slowness
        if config.service_s is not None:
            rate = len(pieces) / max(1e-9, config.service_s.draw(answers.digest(ask.prompt)) * self._slowness)
        elif config.prompt_tokens_per_s:
            prompt_s = max(1, prompt_tokens - self._reused) / config.prompt_tokens_per_s * self._slowness
        self._scheduler.producing(1)
        try:
            start_s = time.monotonic()
            await self._runner.pause(prompt_s)
            first_s = time.monotonic()
            if ask.chat and ask.tools and self._fault is None:
                await self._output.call(answers.tool_call(ask.tools[0], ask.prompt))
                pieces = []
            last = await self._send(pieces, thinking, rate, first_s)
            end_s = time.monotonic()
        finally:
            self._scheduler.producing(-1)
        await self._finish(len(pieces), prompt_tokens, done_reason, (start_s, first_s, end_s), last)

    def _checked_prompt(self) -> int:
        """Prompt tokens that are processed."""
        ask = self._ask
        format_ok = ask.format in (None, "", "json") or isinstance(ask.format, dict)
        if not format_ok:
            shown = msgspec.json.encode(ask.format).decode().replace('"', '\\"')
            raise ServeError(500, f'invalid format: "{shown}"; expected "json" or a valid JSON Schema object')
        line = self._scheduler.line
        if isinstance(ask.format, dict) and (
            refusal := line.no_grammar(ask.format, valid=answers.valid_schema(ask.format))
        ):
            raise ServeError(*refusal)
        if ask.prompt_tokens <= self._num_ctx:
            return ask.prompt_tokens
        if refusal := line.too_long(ask.prompt_tokens, self._num_ctx, truncate=ask.truncate, shift=ask.shift):
            raise ServeError(*refusal)
        golog.slog("WARN", "runner.go:153", "truncating input prompt", limit=self._num_ctx, prompt=ask.prompt_tokens)
        return self._num_ctx

    async def _make_grammar(self) -> None:
        """Die of a schema as the real 0.24 does; 0.33 has refused such a one already."""
        if self._scheduler.line.separate:
            return
        match grammar.trouble(self._ask.format) if isinstance(self._ask.format, dict) else "":
            case "serve":
                golog.slog("ERROR", "simulated", "SIGSEGV: segmentation violation")
                os._exit(2)
            case "runner":
                self._runner.kill()
                await self._runner.pause(None)

    def _pieces(self, prompt_tokens: int) -> tuple[list[str], int, str]:
        """All tokens, how many of the first are reasoning, and why they end."""
        ask, config = self._ask, self._scheduler.config
        prompt_digest = answers.digest(ask.prompt)
        self._scheduler.statistics.recent.append(
            {
                "at_s": time.time(),
                "model": ask.spec.name,
                "digest": prompt_digest,
                "prompt": ask.prompt[:200],
                "prompt_tokens": prompt_tokens,
                "num_ctx": self._num_ctx,
                "system": ask.system[:200],
                "options": ask.options,
                "format": ask.format,
                "images": ask.images,
                "think": ask.think,
            }
        )
        if self._fault is not None and self._fault.kind == "empty":
            return [], 0, "length"
        thinking: list[str] = []
        if ask.think:
            thinking = [f"{word} " for word in answers.filler(f"think/{prompt_digest}", config.thinking_tokens)]
        kind = "" if self._fault is None else self._fault.kind
        format_ = None if kind == "no_format" else ask.format or None
        text = answers.tokens(prompt_digest, ask.options.get("seed", -1), config.answer, format_)
        if kind == "think_tags":
            text = ["well, ", "</think>\n\n", *text]
            if not ask.spec.template.endswith("<think>"):
                text.insert(0, "<think>\n")
        elif kind == "think_open":
            text = [*text, " <think>", "well, "]
        pieces = thinking + text
        limit = ask.options.get("num_predict", -1)
        limits = [limit] if limit > 0 else []
        if not ask.shift:
            limits.append(max(1, self._num_ctx - prompt_tokens))
        most = min(limits, default=len(pieces) + 1)
        return pieces[:most], len(thinking), "length" if most <= len(pieces) else "stop"

    async def _send(self, pieces: list[str], thinking: int, rate: float, start_s: float) -> tuple[str, bool]:
        """Send the tokens at ``rate`` per second (0: at once), in pieces of at least ``chunk_s``.

        Returns:
            The last piece, due now and not sent yet, and whether it is reasoning; empty where all is sent.
        """
        step = max(1, math.ceil(rate * self._scheduler.config.chunk_s)) if rate else max(1, len(pieces))
        sent = 0
        while sent < len(pieces):
            end = min(sent + step, len(pieces))
            if sent < thinking:
                end = min(end, thinking)
            if (fault := self._fault) is not None and sent >= fault.after_tokens:
                start_s += await self._strike(fault)
            elif fault is not None:
                end = min(end, fault.after_tokens)
            await self._runner.pause(start_s + end / rate - time.monotonic() if rate else 0)
            text, reasoning = "".join(pieces[sent:end]), sent < thinking
            sent = end
            if sent == len(pieces) and self._fault is None:
                return text, reasoning
            await self._output.text(text, reasoning)
        if self._fault is not None:
            await self._strike(self._fault)
        return "", False

    async def _strike(self, fault: Fault) -> float:
        """Let the fault happen.

        Returns:
            Seconds lost by it, where the answer goes on.
        """
        if fault.kind in ("not_done", "no_reason", "empty"):
            return 0.0  # they show in the last line
        self._fault = None
        if fault.kind == "crash":
            golog.slog("ERROR", "simulated", "fatal error: concurrent map iteration and map write")
            os._exit(2)
        if fault.kind == "cut":
            raise CutStream
        if fault.kind in ("runner_crash", "cuda_error"):
            self._runner.kill()
            await self._runner.pause(None)
        if fault.kind == "hang":
            await self._hang(fault)
            return fault.seconds or 0.0
        return 0.0

    async def _hang(self, fault: Fault) -> None:
        if fault.seconds is None:
            self._runner.wedged = True  # nothing on this runner goes on, until it is killed
        self._scheduler.producing(-1)
        try:
            # A timer of libuv may ring a millisecond early; a hang is never shorter than it was asked to be.
            await self._runner.pause(None if fault.seconds is None else fault.seconds + 0.001)
        finally:
            self._scheduler.producing(1)

    async def _finish(
        self, count: int, prompt_tokens: int, reason: str, times_s: tuple[float, float, float], last: tuple[str, bool]
    ) -> None:
        start_s, first_s, end_s = times_s
        kind = None if self._fault is None else self._fault.kind
        if kind == "not_done":
            await self._output.finish({"done": False})
            return
        fields: dict[str, Any] = {"done": True}
        if kind != "no_reason":
            fields["done_reason"] = reason
        if not self._ask.chat and not self._ask.raw:
            fields["context"] = [*range(min(count, 16))]
        await self._output.finish(
            {
                **fields,
                "total_duration": _nanos(time.monotonic() - self._ask.arrived_s),
                "load_duration": _nanos(self._load_duration_s),
                "prompt_eval_count": prompt_tokens,
                "prompt_eval_duration": _nanos(first_s - start_s),
                "eval_count": max(1, count),
                "eval_duration": _nanos(end_s - first_s),
            },
            *last,
        )


def _nanos(seconds: float) -> int:
    return max(1, round(seconds * 1e9))


def load_answer(ask: Ask, reason: str) -> dict[str, Any]:
    """The answer to a request without a prompt."""
    text: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if ask.chat else {"response": ""}
    return {"model": ask.model, "created_at": golog.now_text(), **text, "done": True, "done_reason": reason}


async def load(scheduler: Scheduler, ask: Ask) -> dict[str, Any]:
    """Load or unload the model, for a request without a prompt.

    Raises:
        ServeError: it cannot be loaded.
    """
    if ask.keep_alive_s == 0:
        scheduler.unload(ask.spec)
        return load_answer(ask, "unload")
    scheduler.release(await scheduler.acquire(ask.spec, ask.load_options(scheduler.line), ask.keep_alive_s))
    return load_answer(ask, "load")
