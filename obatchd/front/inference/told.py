"""Answers as OpenAI's API has them: whole, and as chunks of a stream.

Objects: https://platform.openai.com/docs/api-reference/chat/streaming. Reasoning stands in ``reasoning``, where
Ollama's own copy of that API (ollama openai/openai.go) and lines of batches have it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
from attrs import define, field

from obatchd.control.programs import Awaited, Piece
from obatchd.errors import ApiError
from obatchd.front.answers import problem
from obatchd.front.inference.forced import as_calls, call_of
from obatchd.front.waiting import Kind

_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(msgspec.Struct):
    function: _Function


class _Choice(msgspec.Struct):
    """What is used of one in a whole answer."""

    index: int
    finish_reason: str
    message: dict[str, Any]


class _Whole(msgspec.Struct):
    choices: list[_Choice]
    usage: msgspec.Raw


_call = msgspec.json.Decoder(_Call)
_whole = msgspec.json.Decoder(_Whole)


@define(eq=False)
class Whole:
    """A whole answer, whose id ends in ``key``. Implements :class:`obatchd.front.waiting.Form`.

    ``model`` is the name that the call gave.
    """

    _key: str
    _model: str
    _forced: str | None = None  # the function whose arguments the text is
    kind: ClassVar[Kind] = Kind("application/json", b" ")

    async def end(self, awaited: Awaited) -> bytes:
        body = await awaited.body(self._key, self._model)
        return as_calls(body, self._forced, self._key) if self._forced is not None else body

    def problem(self, error: ApiError) -> bytes:
        return _encode(problem(error))


@define(eq=False)
class Chunks:
    """A stream of server-sent events. Implements :class:`obatchd.front.waiting.PieceForm`.

    Several answers to one question come as a whole each, at the end: they are asked for at different times.
    """

    _key: str
    _model: str
    _usage: bool  # the last chunk is to have it, and then all others have a null
    _forced: str | None = None  # the function whose arguments the text is
    _created: int = field(factory=lambda: int(time.time()), init=False)
    _begun: bool = field(default=False, init=False)
    _calls: int = field(default=0, init=False)
    kind: ClassVar[Kind] = Kind(
        "text/event-stream", b": waiting\n\n", (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))
    )

    def piece(self, piece: Piece) -> bytes:
        delta: dict[str, Any] = {}
        if piece.text and self._forced is not None:
            delta["tool_calls"] = [self._argued(self._forced, piece.text)]
        elif piece.text:
            delta["content"] = piece.text
        if piece.think:
            delta["reasoning"] = piece.think
        if piece.calls:
            delta["tool_calls"] = [self._call(_call.decode(call).function) for call in piece.calls]
        return self._first() + self._chunk(delta)

    async def end(self, awaited: Awaited) -> bytes:
        body = await awaited.body(self._key, self._model)
        found = _whole.decode(as_calls(body, self._forced, self._key) if self._forced is not None else body)
        if len(found.choices) > 1:
            told = b"".join(self._told(choice) for choice in found.choices)
        else:
            told = self._first() + self._chunk({}, 0, found.choices[0].finish_reason)
        if self._usage:
            told += self._event([], found.usage)
        return told + _DONE

    def problem(self, error: ApiError) -> bytes:
        return _sent(problem(error))

    def _told(self, choice: _Choice) -> bytes:
        """One of several answers."""
        delta = {name: value for name, value in choice.message.items() if value is not None}
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
        return self._chunk(delta, choice.index) + self._chunk({}, choice.index, choice.finish_reason)

    def _first(self) -> bytes:
        """In front of all others, who says it."""
        if self._begun:
            return b""
        self._begun = True
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _argued(self, name: str, text: str) -> dict[str, Any]:
        """A piece of the arguments of the function that had to be called."""
        first, self._calls = not self._calls, 1
        return {"index": 0, **call_of(name, text, f"{self._key}-0")} if first else _more(text)

    def _call(self, function: _Function) -> dict[str, Any]:
        """A whole call of a function, with the id that it has in a whole answer."""
        index, self._calls = self._calls, self._calls + 1
        given = {"name": function.name, "arguments": bytes(function.arguments).decode()}
        return {"index": index, "id": f"call_{self._key}-{index + 1}", "type": "function", "function": given}

    def _chunk(self, delta: dict[str, Any], index: int = 0, finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event([choice], None)

    def _event(self, choices: Sequence[dict[str, Any]], usage: msgspec.Raw | None) -> bytes:
        chunk: dict[str, Any] = {
            "id": f"chatcmpl-{self._key}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        return _sent(chunk | {"usage": usage} if self._usage else chunk)


def _more(text: str) -> dict[str, Any]:
    return {"index": 0, "function": {"arguments": text}}


def _sent(document: Any) -> bytes:
    return b"data: " + _encode(document) + b"\n\n"
