"""The quick look that indexes one request: enough to queue it, or to say why it cannot be run."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from obatchd.jobs.formats.images import image_problem
from obatchd.jobs.formats.openai import label_in
from obatchd.jobs.formats.request import (
    Known,
    Request,
    embed_texts,
    label_of,
    parse_batch_request,
    request_id,
    whole_fields,
)
from obatchd.jobs.formats.source import decoded, raw_fields
from obatchd.jobs.model import PRIORITY_CLASS, Entry, Refusal, RequestRefused

THINK_LEVELS = ("auto", "low", "medium", "high", "max")
_CONTEXT_LIMIT = 2**24  # tokens; no model comes near


def index_line(number: int, offset: int, raw: bytes, where: str = "") -> Entry:
    """The entry of one request whose surrounding white space is removed.

    ``offset`` is that of ``raw`` in the request file; ``where`` says where its author finds it, if not there.
    """
    try:
        known = whole_fields(raw)
        if not raw.isascii():  # msgspec does not check skipped values, and they would fail in the worker
            decoded(raw)
        _check(known, raw)
    except (ValueError, RecursionError) as error:
        return refused_request(number, offset, raw, request_id(raw), where, _explained(error, raw))
    context = _context_of(known)
    return Entry(number, offset, len(raw), zlib.crc32(raw), label_of(known), known.model, context, known.priority)


class BatchIndexer:
    """Indexes the lines of one OpenAI batch file, which has one model. Called as :func:`index_line`."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._first = 0

    def __call__(self, number: int, offset: int, raw: bytes, where: str = "") -> Entry:
        label = label_in(raw)
        try:
            decoded(raw)
            request = parse_batch_request(raw)
            label = request.id
            self._check(request, number)
        except RequestRefused as refusal:
            return refused_request(number, offset, raw, label, where, refusal)
        return Entry(number, offset, len(raw), zlib.crc32(raw), label, request.model)

    def _check(self, request: Request, number: int) -> None:
        images = [image for message in request.messages for image in message.get("images", ())]
        if problem := image_problem(images):
            raise RequestRefused("invalid_request", problem)
        texts = [request.prompt, *(message["content"] for message in request.messages)]
        if request.embed is None and not any(text.strip() for text in texts):
            raise RequestRefused("invalid_request", "there is no text in it")
        if not self._first:
            self._first, self._model = number, request.model
        elif request.model != self._model:
            other = f"{request.model or 'no model'}, line {self._first} for {self._model or 'no model'}"
            raise RequestRefused("model_mismatch", f"it asks for {other}; a batch has one model")


def refused(number: int, offset: int, length: int, code: str, reason: str, where: str = "") -> Entry:
    """The entry of something that is refused without a look at its content."""
    return Entry(number, offset, length, 0, refusal=_refusal(number, offset, where, code, reason))


def refused_request(
    number: int, offset: int, raw: bytes, label: str | None, where: str, refused: RequestRefused
) -> Entry:
    """The entry of a request that cannot be run; ``raw`` has the fields that come back with the failure."""
    refusal = _refusal(number, offset, where, refused.code, refused.reason)
    return Entry(number, offset, len(raw), zlib.crc32(raw), label, refusal=refusal)


def _refusal(number: int, offset: int, where: str, code: str, reason: str) -> Refusal:
    return Refusal(code, f"{where or f'line {number}, byte offset {offset}'}: {reason}")


def _check(known: Known, raw: bytes) -> None:
    text = known.prompt or known.content
    if not text and not known.messages:
        _check_without_prompt(raw)
        return
    if text and text.isspace():
        raise RequestRefused("missing_prompt", "the prompt is nothing but white space")
    if text and known.messages:
        raise RequestRefused("wrong_type", 'it has a prompt and "messages"; give one of them')
    for message in known.messages or ():
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise RequestRefused("wrong_type", 'every message needs a "role" and a "content", both strings')
    if known.priority is not None and known.priority not in PRIORITY_CLASS:
        raise RequestRefused("wrong_type", f"priority {known.priority!r} is not one of low, normal, high")
    _check_count("context_length", _context_of(known))
    _check_count("max_response_tokens", known.max_response_tokens)
    if isinstance(known.format, str) and known.format not in ("", "json"):
        raise RequestRefused("wrong_type", f'format {known.format!r} is neither "json" nor a JSON Schema')
    if isinstance(known.think, str) and known.think not in THINK_LEVELS:
        levels = ", ".join(THINK_LEVELS)
        raise RequestRefused("wrong_type", f"think {known.think!r} is not true, false or one of {levels}")
    _check_images(known)


def _check_without_prompt(raw: bytes) -> None:
    """A line that may be a request for vectors."""
    try:
        if embed_texts(raw_fields(raw)) is not None:
            return
    except ValueError as error:
        raise RequestRefused("wrong_type", str(error)) from None
    raise RequestRefused(
        "missing_prompt", 'there is no prompt: give "prompt", "content" or "messages" some text, or "input" to embed'
    )


def _check_images(known: Known) -> None:
    images: list[Any] = list(known.images or ())
    if images and known.messages:
        raise RequestRefused("wrong_type", 'it has "images" and "messages"; put the images into a message')
    for message in known.messages or ():
        if (more := message.get("images")) is not None:
            images += more if isinstance(more, list) else [more]
    if problem := image_problem(images):
        raise RequestRefused("bad_image", problem)


def _context_of(known: Known) -> Any:
    return known.context_length if known.context_length is not None else (known.options or {}).get("num_ctx")


def _check_count(name: str, tokens: Any) -> None:
    if tokens is not None and (type(tokens) is not int or not 0 < tokens < _CONTEXT_LIMIT):  # booleans are integers too
        raise RequestRefused("wrong_type", f"{name} {tokens!r} is not a number of tokens")


def _explained(error: Exception, raw: bytes) -> RequestRefused:
    if isinstance(error, RequestRefused):
        return error
    try:
        decoded(raw)
    except RequestRefused as refused:
        return refused
    if isinstance(error, RecursionError):
        return RequestRefused("bad_json", "it is nested too deeply")
    return RequestRefused("wrong_type" if isinstance(error, msgspec.ValidationError) else "bad_json", str(error))
