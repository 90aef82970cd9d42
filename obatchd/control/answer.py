"""What every route needs: numbers of a query, and an answer as one JSON document or a line of several."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
from aiohttp import web

from obatchd import errors
from obatchd.control.auth import Caller
from obatchd.documents import SCHEMA

CALLER = web.RequestKey("caller", Caller)  # who asks; of every route

# The first match counts, so the leaves of the error tree come first.
_STATUS: tuple[tuple[type[errors.ObatchError], int], ...] = (
    (errors.NotFoundError, 404),
    (errors.ForbiddenError, 403),
    (errors.DropRefused, 422),
    (errors.ConfigError, 400),
    (errors.ControlError, 409),
    (errors.ServerError, 502),
    (errors.SpoolError, 507),
)


def status_of(error: errors.ObatchError) -> int:
    """The status of HTTP that an error is answered with."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def answer(document: msgspec.Struct, status: int = 200) -> web.Response:
    """The whole answer, with the number of the schema."""
    return web.Response(body=_encoded(document), status=status, content_type="application/json", charset="utf-8")


def answer_line(document: msgspec.Struct) -> bytes:
    """One line of an answer that goes on."""
    return _encoded(document) + b"\n"


def encoded(document: msgspec.Struct) -> bytes:
    """A part of an answer, as JSON."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:  # a path that is not UTF-8, as Python has it
        return json.dumps(msgspec.to_builtins(document)).encode()


def _encoded(document: msgspec.Struct) -> bytes:
    told = msgspec.structs.asdict(document).items()
    fields = {"schema": SCHEMA} | {name: value for name, value in told if value is not msgspec.UNSET}
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:  # a path that is not UTF-8, as Python has it
        return json.dumps(msgspec.to_builtins(fields)).encode()


def count_asked(request: web.Request, name: str, default: int, most: int) -> int:
    """The number that a query asks for.

    Raises:
        ConfigError: it is none from 1 to ``most``.
    """
    text = request.query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or not 0 < int(text) <= most:
        raise errors.ConfigError(f"{name} must be a number from 1 to {most}", code="bad_request")
    return int(text)


def time_asked(request: web.Request, name: str) -> float | None:
    """Wall-clock seconds that a query asks for.

    Raises:
        ConfigError: they are no number.
    """
    text = request.query.get(name)
    try:
        if text is None or math.isfinite(float(text)):
            return text if text is None else float(text)
        raise ValueError
    except ValueError:
        raise errors.ConfigError(f"{name} must be seconds since 1970", code="bad_request") from None


async def object_sent(request: web.Request) -> dict[str, Any]:
    """The JSON object in the body of a request; an empty one where there is no body."""
    try:
        sent = await request.json() if request.can_read_body else {}
    except (ValueError, RecursionError):
        sent = None
    if not isinstance(sent, dict):
        raise errors.ConfigError("the body must be a JSON object", code="bad_request")
    return sent
