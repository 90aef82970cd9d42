"""The quick look that indexes one request: enough to queue it, or to say why it cannot be run."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from obatchd.jobs.formats.images import image_problem
from obatchd.jobs.formats.openai import BatchError, label_in
from obatchd.jobs.formats.request import Known, Request, embed_texts, label_of, parse_batch_request, request_id
from obatchd.jobs.model import PRIORITY_CLASS, Entry, Refusal

_known = msgspec.json.Decoder(Known)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
THINK_LEVELS = ("auto", "low", "medium", "high", "max")
_CONTEXT_LIMIT = 2**24  # tokens; no model comes near


def index_line(number: int, offset: int, raw: bytes, where: str = "") -> Entry:
    """The entry of one request whose surrounding white space is removed.

    ``offset`` is that of ``raw`` in the request file; ``where`` says where its author finds it, if not there.
    """
    problem: tuple[str, str] | None
    try:
        known = _known.decode(raw)
        # What is skipped is not checked by msgspec, and would fail in the worker.
        problem = _problem(known, raw) if raw.isascii() else (_not_utf8(raw) or _problem(known, raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = _not_utf8(raw) or _explain(error)
    checksum = zlib.crc32(raw)
    if problem is not None:
        refusal = _refusal(number, offset, where, *problem)
        return Entry(number, offset, len(raw), checksum, request_id(raw), refusal=refusal)
    context = known.context_length
    if context is None and known.options is not None:
        context = known.options.get("num_ctx")
    return Entry(number, offset, len(raw), checksum, label_of(known), known.model, context, known.priority)


class BatchIndexer:
    """Indexes the lines of one OpenAI batch file, which has one model. Called as :func:`index_line`."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._first = 0

    def __call__(self, number: int, offset: int, raw: bytes, where: str = "") -> Entry:
        checksum = zlib.crc32(raw)
        model: str | None = None
        problem = _not_utf8(raw)
        label = label_in(raw)
        if problem is None:
            try:
                request = parse_batch_request(raw)
                label, model = request.id, request.model
                problem = self._problem(request, number)
            except BatchError as error:
                problem = (error.code, error.reason)
        if problem is not None:
            refusal = _refusal(number, offset, where, *problem)
            return Entry(number, offset, len(raw), checksum, label, refusal=refusal)
        return Entry(number, offset, len(raw), checksum, label, model)

    def _problem(self, request: Request, number: int) -> tuple[str, str] | None:
        images = [image for message in request.messages for image in message.get("images", ())]
        if problem := image_problem(images):
            return "invalid_request", problem
        texts = [request.prompt, *(message["content"] for message in request.messages)]
        if request.embed is None and not any(text.strip() for text in texts):
            return "invalid_request", "there is no text in it"
        if not self._first:
            self._first, self._model = number, request.model
        elif request.model != self._model:
            other = f"{request.model or 'no model'}, line {self._first} for {self._model or 'no model'}"
            return "model_mismatch", f"it asks for {other}; a batch has one model"
        return None


def refused(number: int, offset: int, length: int, code: str, reason: str, where: str = "") -> Entry:
    """The entry of something that is refused without a look at its content."""
    return Entry(number, offset, length, 0, refusal=_refusal(number, offset, where, code, reason))


def _refusal(number: int, offset: int, where: str, code: str, reason: str) -> Refusal:
    return Refusal(code, f"{where or f'line {number}, byte offset {offset}'}: {reason}")


def _problem(known: Known, raw: bytes) -> tuple[str, str] | None:
    text = known.prompt or known.content
    if not text and not known.messages:
        return _problem_without_prompt(raw)
    if text and text.isspace():
        return "missing_prompt", "the prompt is nothing but white space"
    if text and known.messages:
        return "wrong_type", 'it has a prompt and "messages"; give one of them'
    for message in known.messages or ():
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            return "wrong_type", 'every message needs a "role" and a "content", both strings'
    if known.priority is not None and known.priority not in PRIORITY_CLASS:
        return "wrong_type", f"priority {known.priority!r} is not one of low, normal, high"
    context = known.context_length if known.context_length is not None else (known.options or {}).get("num_ctx")
    if not _is_count(context, _CONTEXT_LIMIT):
        return "wrong_type", f"context_length {context!r} is not a number of tokens"
    if not _is_count(known.max_response_tokens, _CONTEXT_LIMIT):
        return "wrong_type", f"max_response_tokens {known.max_response_tokens!r} is not a number of tokens"
    return _problem_of_answer(known) or _problem_of_images(known)


def _problem_without_prompt(raw: bytes) -> tuple[str, str] | None:
    """What is wrong with what may be a request for vectors."""
    try:
        if embed_texts(_fields.decode(raw)) is not None:
            return None
    except ValueError as error:
        return "wrong_type", str(error)
    return "missing_prompt", 'there is no prompt: give "prompt", "content" or "messages" some text, or "input" to embed'


def _problem_of_answer(known: Known) -> tuple[str, str] | None:
    if isinstance(known.format, str) and known.format not in ("", "json"):
        return "wrong_type", f'format {known.format!r} is neither "json" nor a JSON Schema'
    if isinstance(known.think, str) and known.think not in THINK_LEVELS:
        return "wrong_type", f"think {known.think!r} is not true, false or one of {', '.join(THINK_LEVELS)}"
    return None


def _problem_of_images(known: Known) -> tuple[str, str] | None:
    images: list[Any] = list(known.images or ())
    if images and known.messages:
        return "wrong_type", 'it has "images" and "messages"; put the images into a message'
    for message in known.messages or ():
        if (more := message.get("images")) is not None:
            images += more if isinstance(more, list) else [more]
    problem = image_problem(images)
    return ("bad_image", problem) if problem else None


def _is_count(value: Any, limit: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 < value < limit)


def _not_utf8(raw: bytes) -> tuple[str, str] | None:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return "invalid_utf8", f"its byte {error.start} is not UTF-8"
    return None


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, msgspec.ValidationError):
        return "wrong_type", str(error)
    if isinstance(error, RecursionError):
        return "bad_json", "it is nested too deeply"
    return "bad_json", str(error)
