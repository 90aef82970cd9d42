"""One request to one Ollama server, and what its answer amounts to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from obatchd.ollama import faults
from obatchd.ollama.connections import Broken, Connections, Sink, Unreachable
from obatchd.ollama.faults import Fault
from obatchd.prompts.reasoning import split_reasoning


class _Message(msgspec.Struct):
    content: str = ""
    thinking: str = ""
    tool_calls: list[msgspec.Raw] = []


class _Chunk(msgspec.Struct):
    message: _Message | None = None
    done: bool = False
    done_reason: str = ""
    error: str = ""
    prompt_eval_count: int = 0
    eval_count: int = 0
    total_duration: int = 0  # ns, as the three that follow
    load_duration: int = 0
    prompt_eval_duration: int = 0
    eval_duration: int = 0


class _Error(msgspec.Struct):
    error: str = ""


class Answer(NamedTuple):
    """A whole answer, or the fault that prevented one."""

    text: str
    think: str
    done_reason: str
    prompt_tokens: int
    response_tokens: int
    eval_s: float
    fault: Fault | None
    wait_s: float = 0.0  # inside the server, for a slot
    tool_calls: Sequence[msgspec.Raw] = ()  # functions that the model asks for, instead of text


_chunk = msgspec.json.Decoder(_Chunk)
_error = msgspec.json.Decoder(_Error)
_encode = msgspec.json.Encoder().encode
_NOTHING = _Chunk()
_ERROR_BYTES = 64 * 1024


def _failed(fault: Fault) -> Answer:
    return Answer("", "", "", 0, 0, 0.0, fault)


class _Stream:
    """The lines of an answer as they arrive."""

    __slots__ = ("_on_token", "_rest", "calls", "error", "last", "status", "texts", "thoughts")

    def __init__(self, on_token: Callable[[], None]) -> None:
        self.status = 0
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[msgspec.Raw] = []
        self.last = _NOTHING
        self.error: str | None = None  # of an error line; what follows it is passed over
        self._on_token = on_token
        self._rest = b""

    def begin(self, status: int) -> None:
        self.status = status

    def data(self, data: bytes) -> None:
        if self.status != 200:
            self._rest += data[:_ERROR_BYTES]
            return
        *lines, self._rest = (self._rest + data if self._rest else data).split(b"\n")
        for line in lines:
            if line:
                self._take(line)
        self._on_token()

    def answer(self) -> Answer:
        """What it all amounts to, when there is no more."""
        if self.status != 200:
            return _failed(faults.from_response(self.status, _error_text(self._rest)))
        if self._rest.strip():
            self._take(self._rest)
        if self.error is not None:
            return _failed(faults.from_response(200, self.error))
        return _finish(self.last, "".join(self.texts), "".join(self.thoughts), self.calls)

    def _take(self, line: bytes) -> None:
        if self.error is not None:
            return
        try:
            chunk = self.last = _chunk.decode(line)
        except msgspec.DecodeError as error:
            self.error = f"unexpected server status: the answer is not JSON ({error})"
            return
        if chunk.error:
            self.error = chunk.error
        if chunk.message is not None:
            if chunk.message.content:
                self.texts.append(chunk.message.content)
            if chunk.message.thinking:
                self.thoughts.append(chunk.message.thinking)
            if chunk.message.tool_calls:
                # What is kept raw points into the chunk, so it is copied (msgspec).
                self.calls += [msgspec.Raw(bytes(call)) for call in chunk.message.tool_calls]


class OllamaClient:
    """Asks one server, over connections that are kept. Proxies of the environment are never used.

    Args:
        base_url: e.g. ``http://127.0.0.1:11500``.
        token: bearer token, or empty.
        connect_timeout_s: limit on connecting. How long an attempt may take is for the worker, and silence has no limit
            here: a request may wait behind others or have a long prompt, so it counts per server (dispatch.watchdog).
    """

    def __init__(self, base_url: str, token: str, *, connect_timeout_s: float) -> None:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._connections = Connections(base_url, headers, connect_timeout_s)

    async def close(self) -> None:
        """Close the connections when the last request that uses them has ended."""
        await self._connections.close()

    async def chat(self, body: dict[str, Any], on_token: Callable[[], None]) -> Answer:
        """Send ``body`` to ``/api/chat`` and read the stream to its end; never raises for what a server may do.

        ``on_token`` is called for each piece of text that arrives.
        """
        stream = _Stream(on_token)
        fault = await self._post("/api/chat", body, stream)
        return _failed(fault) if fault is not None else stream.answer()

    async def embed(self, body: dict[str, Any]) -> Embedded:
        """Send ``body``, whose ``input`` is a list of texts, to ``/api/embed``; as little raised as by ``chat``."""
        response = _Body()
        fault = await self._post("/api/embed", body, response)
        return Embedded([], 0, fault) if fault is not None else response.embedded(len(body["input"]))

    async def _post(self, path: str, body: dict[str, Any], sink: Sink) -> Fault | None:
        try:
            await self._connections.post(path, _encode(body), sink)
        except Unreachable as error:
            return faults.connection_refused(str(error))
        except Broken as error:
            return faults.connection_lost(str(error))
        return None


class _Vectors(msgspec.Struct):
    embeddings: list[msgspec.Raw] = []
    prompt_eval_count: int = 0


class Embedded(NamedTuple):
    """Vectors as JSON arrays of numbers, one for each text, or the fault that prevented them."""

    vectors: list[msgspec.Raw]
    prompt_tokens: int
    fault: Fault | None


_vectors = msgspec.json.Decoder(_Vectors)


class _Body:
    """A response that is read as a whole."""

    def __init__(self) -> None:
        self.status = 0
        self.parts: list[bytes] = []

    def begin(self, status: int) -> None:
        self.status = status

    def data(self, data: bytes) -> None:
        self.parts.append(data)

    def embedded(self, texts: int) -> Embedded:
        body = b"".join(self.parts)
        if self.status != 200:
            return Embedded([], 0, faults.from_response(self.status, _error_text(body)))
        try:
            answer = _vectors.decode(body)
        except msgspec.DecodeError as error:
            return Embedded([], 0, faults.from_response(200, f"unexpected server status: {error}"))
        if len(answer.embeddings) != texts:
            return Embedded([], 0, faults.wrong_count(texts, len(answer.embeddings)))
        return Embedded(answer.embeddings, answer.prompt_eval_count, None)


def _finish(last: _Chunk, text: str, think: str, calls: Sequence[msgspec.Raw] = ()) -> Answer:
    text, think = split_reasoning(text, think)
    fault = faults.incomplete(last.done, last.done_reason, text or ("(a call)" if calls else ""))
    counts = (last.prompt_eval_count, last.eval_count, last.eval_duration / 1e9)
    # load_duration ends when the runner is handed over; the wait for a slot comes after it (ollama server/routes.go).
    wait_ns = last.total_duration - last.load_duration - last.prompt_eval_duration - last.eval_duration
    return Answer(text, think, last.done_reason, *counts, fault, max(0.0, wait_ns / 1e9), calls)


def _error_text(body: bytes) -> str:
    try:
        return _error.decode(body).error
    except msgspec.DecodeError:
        return body[:500].decode("utf-8", "replace").strip()
