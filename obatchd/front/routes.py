"""The routes of the API, each with the scopes of keys that it takes: whoever adds some makes a list of these."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from attrs import frozen

from obatchd.control.answer import CALLER as _CALLER
from obatchd.front.answers import BODY_LIMIT_BYTES

CALLER = _CALLER  # who asks; of every route but those without scopes
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@frozen
class Route:
    """One of them."""

    method: str
    path: str
    handler: Handler
    scopes: tuple[str, ...] | None  # a key needs one of these; None: everybody is answered, without a key
    body_limit_bytes: int | None = BODY_LIMIT_BYTES  # as far as the head says; the handler counts what comes
