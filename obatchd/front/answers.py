"""What every route needs: answers, refusals as OpenAI's or Ollama's API has them, a JSON body, the place in a list."""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import msgspec
from aiohttp import web

from obatchd import errors, log
from obatchd.control.answer import status_of
from obatchd.control.programs import Selection
from obatchd.documents.native import ErrorText
from obatchd.documents.programs import Problem, ProblemDocument
from obatchd.errors import ApiError

_log = log.get(__name__)
BODY_LIMIT_BYTES = 1024**2  # of every route that says nothing else
_NATIVE = "/api/"  # where refusals have Ollama's form
_BODY_S = 60.0  # longest time for a body
_LARGE_BYTES = 256 * 1024
_RETRY_AFTER_S = 5.0  # where nobody knows better
_SECURE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_TYPES = {429: "rate_limit_error", 403: "permission_error"}
T = TypeVar("T")
P = ParamSpec("P")
_object = msgspec.json.Decoder(dict[str, Any])
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DEFECT = ApiError("internal error; the daemon's log has it", status=500, code="internal_error", final=False)


def answer(document: msgspec.Struct, status: int = 200) -> web.Response:
    """The whole answer."""
    try:
        body = msgspec.json.encode(document)
    except UnicodeEncodeError:  # the name of a drop that is not UTF-8, as Python has it
        body = json.dumps(msgspec.to_builtins(document)).encode()
    return web.Response(body=body, status=status, content_type="application/json")


def refusal(error: ApiError, *, native: bool = False) -> web.Response:
    """A refusal as OpenAI's clients read it: they try 408, 409, 429 and 5xx again unless they are told not to.

    ``native``: as Ollama's read it.
    """
    response = answer(ErrorText(error.message) if native else problem(error), error.status)
    if error.final and (error.status >= 500 or error.status in (408, 409, 429)):
        response.headers["x-should-retry"] = "false"
    elif error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or _RETRY_AFTER_S)))
    return response


def add_usual_headers(response: web.StreamResponse) -> None:
    """Those that every answer has."""
    response.headers["x-request-id"] = f"req_{secrets.token_hex(12)}"
    response.headers.update(_SECURE)


def problem(error: ApiError) -> ProblemDocument:
    """A refusal as an object of OpenAI's API."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return ProblemDocument(Problem(error.message, kind, error.param, error.code))


def as_refusal(error: Exception, request: web.Request) -> web.Response:
    """Any error of a handler; a defect is in the log with its traceback."""
    native = request.path.startswith(_NATIVE)
    if isinstance(error, ApiError):
        return refusal(error, native=native)
    if isinstance(error, errors.ObatchError):
        return refusal(ApiError(error.message, status=status_of(error), code=error.code), native=native)
    if isinstance(error, web.HTTPException):
        words = f"Invalid URL ({request.method} {request.path})" if error.status == 404 else error.reason
        code = "unknown_url" if error.status == 404 else None
        return refusal(ApiError(words, status=error.status, code=code), native=native)
    _log.exception("http_call_failed", error, method=request.method, route=route_of(request))
    return refusal(_DEFECT, native=native)


def route_of(request: web.Request) -> str:
    """The pattern of a call's address, which names no file and no batch."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def too_large(most_bytes: int) -> ApiError:
    return ApiError(f"the body has more than {most_bytes} bytes", status=413, code="request_too_large")


class Room(Protocol):
    """The memory for a body on its way in; :class:`obatchd.front.guard.Held`."""

    def take(self, size_bytes: int) -> None:
        """So many bytes more have come; raises ApiError where all bodies, or those of one user, are too many."""

    def free(self) -> None:
        """It is whole, or does not come."""


ROOM = web.RequestKey("room", Room)


async def body_of(request: web.Request, most_bytes: int = BODY_LIMIT_BYTES) -> bytes:
    """The whole body, counted as it comes; raises ApiError where there is more of it, or it does not come."""
    content, room = request.content, request.get(ROOM)
    if content.is_eof() and content.exception() is None:  # a small one came with the head
        if len(whole := content.read_nowait()) > most_bytes:
            raise too_large(most_bytes)
        return whole
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for block in content.iter_any():
                body += block
                if len(body) > most_bytes:
                    raise too_large(most_bytes)
                if room is not None:
                    room.take(len(block))
    except TimeoutError:
        raise ApiError("the body did not come in time", status=408, code="timeout") from None
    except web.RequestPayloadError:
        raise ApiError("the body breaks the rules of HTTP", code="invalid_body") from None
    finally:
        if room is not None:
            room.free()
    return bytes(body)


async def object_sent(request: web.Request, most_bytes: int = BODY_LIMIT_BYTES) -> dict[str, Any]:
    """The JSON object in the body; raises ApiError where there is none."""
    return await apart(_decoded, await body_of(request, most_bytes), _object)


async def apart(do: Callable[Concatenate[bytes, P], T], body: bytes, *others: P.args, **named: P.kwargs) -> T:
    """``do`` with a body: with a large one in a thread, so that others do not wait."""
    if len(body) < _LARGE_BYTES:
        return do(body, *others, **named)
    return await asyncio.to_thread(do, body, *others, **named)


def fields_in(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of the JSON object in a body, each as it came; raises ApiError where there is none."""
    return _decoded(body, _fields)


def _decoded(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ApiError("the body must be a JSON object", code="invalid_json") from None


def selection(request: web.Request, default: int, most: int) -> Selection:
    """Which part of a list a query asks for; raises ApiError where that is none."""
    query = request.query
    text, order = query.get("limit", str(default)), query.get("order", "desc")
    if not re.fullmatch("[0-9]{1,9}", text) or not 0 < int(text) <= most:
        raise ApiError(f"limit must be a number from 1 to {most}", param="limit")
    if order not in ("asc", "desc"):
        raise ApiError("order must be asc or desc", param="order")
    return Selection(query.get("after") or None, int(text), order == "desc", query.get("purpose"))
