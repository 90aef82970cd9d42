"""What a call of OpenAI's API asks a model, as a request that obatchd knows: a line of a batch file."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from aiohttp import web
from attrs import frozen

from obatchd.errors import ApiError
from obatchd.front.answers import fields_sent
from obatchd.front.inference.forced import take_forced
from obatchd.front.waiting import ASKING_BYTES

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
_ID = "-"  # a line of a batch file has one
_NULL = b"null"
_NAME = re.compile("[a-z_]+")
_STREAM, _STREAM_OPTIONS = "stream", "stream_options"  # which such a line cannot have
_encode = msgspec.json.Encoder().encode


@frozen
class Asked:
    """A call."""

    model: str
    raw: bytes  # the line
    stream: bool
    usage: bool  # the stream is to end with what it took
    forced: str | None  # the function that has to be called
    fields: frozenset[str]

    def named_in(self, message: str) -> str | None:
        """The field that the reader's words begin with, as in ``n is not supported: …``."""
        found = _NAME.match(message)
        return found[0] if found and found[0] in self.fields else None


async def asked_of(request: web.Request, url: str) -> Asked:
    """What a call asks; raises ApiError where that is said in a wrong way.

    What is asked of the model itself passes as it came; the reader of lines of batch files judges it.
    """
    sent = await fields_sent(request, ASKING_BYTES)
    fields = {name: value for name, value in sent.items() if bytes(value) != _NULL}
    options = _taken(fields, _STREAM_OPTIONS, dict, "an object") or {}
    stream = _taken(fields, _STREAM, bool, "true or false") or False
    if stream and url == EMBEDDINGS:
        raise ApiError("vectors come in no stream", code="unsupported_parameter", param=_STREAM)
    if "model" not in fields:
        raise ApiError("you must provide a model", code="missing_required_parameter", param="model")
    model: str = _value(fields["model"], "model", str, "a text")
    forced = take_forced(fields) if url == CHAT else None
    raw = _encode({"custom_id": _ID, "url": url, "body": fields})
    return Asked(model, raw, stream, options.get("include_usage") is True, forced, frozenset(fields))


def _taken(fields: dict[str, msgspec.Raw], name: str, kind: type, words: str) -> Any:
    raw = fields.pop(name, None)
    return None if raw is None else _value(raw, name, kind, words)


def _value(raw: msgspec.Raw, name: str, kind: type, words: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(f"{name} must be {words}", code="invalid_type", param=name) from None
