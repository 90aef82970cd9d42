"""Answers as Ollama has them: the pieces of a stream, its last line, and whole answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from attrs import define, field
from msgspec import UNSET, UnsetType

from obatchd.documents.native import ChatAnswer, Figures, GenerateAnswer, Said, Vector, Vectors

LOADED, UNLOADED = "load", "unload"
_NO_VECTORS = msgspec.Raw(b"[]")
_NS = 1_000_000_000


class Record(msgspec.Struct):
    """What is used of a result, as ``results.jsonl`` has it."""

    response: str = ""
    think: str = ""
    tool_calls: list[msgspec.Raw] = []
    done_reason: str = ""
    prompt_tokens: int = 0
    response_tokens: int = 0
    tokens_per_s: float | None = None
    duration_s: float = 0.0
    embedding: msgspec.Raw = msgspec.Raw()  # of a request for one vector; empty: of several
    embeddings: msgspec.Raw = msgspec.Raw()


_record = msgspec.json.Decoder(Record)


def record_in(result: bytes) -> Record:
    """The result in a line of ``results.jsonl``."""
    return _record.decode(result)


@define(eq=False)
class Teller:
    """Puts the answer to one call into words. ``model`` is the name that the call gave."""

    _model: str
    _chat: bool
    _began_s: float = field(factory=time.monotonic, init=False)

    def piece(self, text: str, think: str, calls: Sequence[msgspec.Raw]) -> ChatAnswer | GenerateAnswer:
        """More of an answer."""
        return self._said(text, think, calls, done=False)

    def end(self, record: Record) -> ChatAnswer | GenerateAnswer:
        """The end of an answer whose text has been told."""
        return self._with_figures(self._said("", "", (), done=True, reason=record.done_reason), record)

    def whole(self, record: Record) -> ChatAnswer | GenerateAnswer:
        """A whole answer."""
        said = self._said(record.response, record.think, record.tool_calls, done=True, reason=record.done_reason)
        return self._with_figures(said, record)

    def nothing(self, reason: str) -> ChatAnswer | GenerateAnswer:
        """The answer to a call that says nothing to the model."""
        return self._said("", "", (), done=True, reason=reason)

    def vectors(self, record: Record | None) -> Vectors:
        """One vector for each text; None: there were no texts."""
        if record is None:
            return Vectors(model=self._model, embeddings=_NO_VECTORS)
        many = record.embeddings
        if not bytes(many):
            many = msgspec.Raw(b"[" + bytes(record.embedding) + b"]")
        figures = self._figures(record)
        return Vectors(
            model=self._model,
            embeddings=many,
            total_duration=figures.total_duration,
            load_duration=figures.load_duration,
            prompt_eval_count=figures.prompt_eval_count,
        )

    @staticmethod
    def vector(record: Record | None) -> Vector:
        return Vector(_NO_VECTORS if record is None else record.embedding)

    def _said(
        self, text: str, think: str, calls: Sequence[msgspec.Raw], *, done: bool, reason: str = ""
    ) -> ChatAnswer | GenerateAnswer:
        created_at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        thinking: str | UnsetType = think or UNSET
        done_reason: str | UnsetType = reason or UNSET
        if not self._chat:
            return GenerateAnswer(
                model=self._model, created_at=created_at, response=text, thinking=thinking, done=done,
                done_reason=done_reason,
            )  # fmt: skip
        message = Said(content=text, thinking=thinking, tool_calls=list(calls) or UNSET)
        return ChatAnswer(model=self._model, created_at=created_at, message=message, done=done, done_reason=done_reason)

    def _with_figures(self, answer: ChatAnswer | GenerateAnswer, record: Record) -> ChatAnswer | GenerateAnswer:
        figures = self._figures(record)
        for name in Figures.__struct_fields__:
            setattr(answer, name, getattr(figures, name))
        return answer

    def _figures(self, record: Record) -> Figures:
        """``load_duration`` is all that passed outside the server that answered: the wait for a slot, and a load."""
        total_s = time.monotonic() - self._began_s
        eval_s = record.response_tokens / record.tokens_per_s if record.tokens_per_s else 0.0
        prompt_s = max(0.0, record.duration_s - eval_s)
        return Figures(
            total_duration=_nanoseconds(total_s),
            load_duration=_nanoseconds(total_s - record.duration_s),
            prompt_eval_count=record.prompt_tokens or UNSET,
            prompt_eval_duration=_nanoseconds(prompt_s),
            eval_count=record.response_tokens or UNSET,
            eval_duration=_nanoseconds(eval_s),
        )


def _nanoseconds(seconds: float) -> int | UnsetType:
    return round(seconds * _NS) if seconds > 0 else UNSET
