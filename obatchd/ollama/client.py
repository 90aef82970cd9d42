"""One prompt, or texts for vectors, to one Ollama server, and the answer or the fault that comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from obatchd.ollama import faults
from obatchd.ollama.connections import Connections
from obatchd.ollama.faults import Cause, Fault
from obatchd.ollama.reading import Lines, Whole, exchange
from obatchd.prompts.reasoning import split_reasoning
from obatchd.words import counted


# Ollama leaves out what is absent; programs in front of it and its imitators write null.
class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Chunk(msgspec.Struct):
    message: _Message | None = None
    done: bool | None = None
    done_reason: str | None = None
    error: str | dict[str, Any] | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    total_duration: int | None = None  # ns, as the three that follow
    load_duration: int | None = None
    prompt_eval_duration: int | None = None
    eval_duration: int | None = None


class Answer(NamedTuple):
    """A whole answer, or the fault that prevented one."""

    text: str = ""
    think: str = ""
    done_reason: str = ""
    prompt_tokens: int = 0
    response_tokens: int = 0
    eval_s: float = 0.0
    fault: Fault | None = None
    wait_s: float = 0.0  # inside the server, for a slot
    tool_calls: Sequence[msgspec.Raw] = ()  # functions that the model asks for, instead of text
    prompt_s: float = 0.0  # computing the part of the prompt that no slot had


class _Vectors(msgspec.Struct):
    embeddings: list[msgspec.Raw]
    prompt_eval_count: int | None = None


class Embedded(NamedTuple):
    """Vectors as JSON arrays of numbers, one for each text, or the fault that prevented them."""

    vectors: list[msgspec.Raw]
    prompt_tokens: int
    fault: Fault | None


_chunk = msgspec.json.Decoder(_Chunk)
_vectors = msgspec.json.Decoder(_Vectors)
_encode = msgspec.json.Encoder().encode
_NOTHING = _Chunk()


class PieceListener(Protocol):
    """Hears an answer piece by piece."""

    def piece(self, text: str, think: str, calls: Sequence[msgspec.Raw]) -> None:
        """More has come: of the text, of reasoning beside it, and functions that the model asks for."""


class _Stream(Lines):
    """An answer in pieces of text; ``on_token`` is called as they arrive, and ``pieces`` hears them."""

    def __init__(self, url: str, on_token: Callable[[], None], opened: str, pieces: PieceListener | None) -> None:
        super().__init__(url)
        self._on_token = on_token
        self._pieces = pieces
        self._opened = opened
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[msgspec.Raw] = []
        self._last = _NOTHING
        self._fault: Fault | None = None  # of an error line; lines after it are passed over

    def data(self, data: bytes) -> None:
        before = self._last
        super().data(data)
        if self._last is not before:
            self._on_token()

    def answer(self) -> Answer:
        if self._fault is not None:
            return Answer(fault=self._fault)
        last = self._last
        reason, eval_ns = last.done_reason or "", max(0, last.eval_duration or 0)
        text, think = split_reasoning(
            "".join(self._texts), "".join(self._thoughts), opened=self._opened, cut=reason == "length"
        )
        fault = faults.incomplete(bool(last.done), reason, text or ("(a call)" if self._calls else ""))
        counts = (last.prompt_eval_count or 0, last.eval_count or 0, eval_ns / 1e9)
        # load_duration ends when the runner is handed over; the wait for a slot is after it (ollama server/routes.go).
        prompt_ns = last.prompt_eval_duration or 0
        wait_ns = (last.total_duration or 0) - (last.load_duration or 0) - prompt_ns - eval_ns
        return Answer(text, think, reason, *counts, fault, max(0.0, wait_ns / 1e9), self._calls, prompt_ns / 1e9)

    def take(self, line: bytes) -> None:
        if self._fault is not None:
            return
        begins = self._last is _NOTHING
        try:
            chunk = _chunk.decode(line)
        except faults.UNREADABLE as error:
            self._fault = faults.elsewhere(self.url, line) if begins else faults.not_ollama(str(error))
            return
        if begins and chunk == _NOTHING:  # JSON of something else: Ollama's has a message, an error or an end
            self._fault = faults.elsewhere(self.url, line)
            return
        self._last = chunk
        if chunk.error:
            words = chunk.error if isinstance(chunk.error, str) else _encode({"error": chunk.error}).decode()
            self._fault = faults.from_response(200, words)
        if chunk.message is not None:
            self._add(chunk.message)

    def _add(self, message: _Message) -> None:
        if message.content:
            self._texts.append(message.content)
        if message.thinking:
            self._thoughts.append(message.thinking)
        # Raw values point into the chunk, so they are copied (msgspec).
        calls = [msgspec.Raw(bytes(call)) for call in message.tool_calls or ()]
        self._calls += calls
        if self._pieces is not None:
            self._pieces.piece(message.content or "", message.thinking or "", calls)


class OllamaClient:
    """Asks one server, over connections that are kept. Proxies of the environment are never used.

    ``connect_timeout_s`` limits connecting. How long an attempt may take is for the worker, and silence has no limit
    here: a request may wait behind others or have a long prompt, so it counts per server (dispatch.watchdog).
    """

    def __init__(self, base_url: str, token: str, *, connect_timeout_s: float) -> None:
        self._connections = Connections(base_url, token, connect_timeout_s)
        self._chat_url, self._embed_url = f"{base_url}/api/chat", f"{base_url}/api/embed"

    async def close(self) -> None:
        """Close the connections when the last request that uses them has ended."""
        await self._connections.close()

    async def chat(
        self,
        body: dict[str, Any],
        on_token: Callable[[], None],
        opened: str = "",
        pieces: PieceListener | None = None,
    ) -> Answer:
        """Send ``body`` to ``/api/chat`` and read the stream to its end; never raises for a fault of the server.

        ``on_token`` is called when more has arrived, ``pieces`` hears what it is. ``opened`` is the tag of reasoning
        that the model's template puts before the answer.
        """
        stream = _Stream(self._chat_url, on_token, opened, pieces)
        fault = await exchange(self._connections, "/api/chat", _encode(body), stream)
        return Answer(fault=fault) if fault is not None else stream.answer()

    async def embed(self, body: dict[str, Any]) -> Embedded:
        """Send ``body``, whose ``input`` is a list of texts, to ``/api/embed``; as little raised as by ``chat``."""
        answer = Whole(self._embed_url)
        if (fault := await exchange(self._connections, "/api/embed", _encode(body), answer)) is not None:
            if fault.code == Cause.NOT_SUPPORTED.code:  # since 0.30 of every model of text
                words = f"{body['model']} makes no vectors on this server; name an embedding model ({fault.message})"
                fault = fault._replace(message=words)
            return Embedded([], 0, fault)
        try:
            found = _vectors.decode(answer.body)
        except faults.UNREADABLE:
            return Embedded([], 0, faults.elsewhere(answer.url, answer.body))
        if len(found.embeddings) != len(body["input"]):  # nobody can tell which vector belongs to which text
            words = (
                f"the server made {counted(len(found.embeddings), 'vector')} of {counted(len(body['input']), 'text')}"
            )
            return Embedded([], 0, Cause.INCOMPLETE.fault(words))
        return Embedded(found.embeddings, found.prompt_eval_count or 0, None)
