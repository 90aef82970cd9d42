"""The routes of the API, each with the scopes of keys that it takes: whoever adds some makes a list of these."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from attrs import define, field, frozen

from obatchd.control.answer import CALLER as _CALLER
from obatchd.front.answers import BODY_LIMIT_BYTES, add_usual_headers

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
    waits: bool = False  # for an answer of a model: there may be more of these at once


class Call(web.Request):
    """A call, whose route is found after it has come."""

    def is_for(self, match: web.UrlMappingMatchInfo) -> None:
        """The router of aiohttp has found the route; an application of aiohttp would say so in the same way."""
        self._match_info = match

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Called by aiohttp before the head of an answer goes out."""
        add_usual_headers(response)


def call_of(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> Call:
    """A call, as aiohttp has it made of what has come."""
    return Call(message, payload, protocol, writer, task, asyncio.get_running_loop())


@define(eq=False)
class Table:
    """Which route a call is for. An application of aiohttp would do, and take a tenth more of the time of a chat."""

    _router: web.UrlDispatcher = field(factory=web.UrlDispatcher, init=False)
    _plain: dict[tuple[str, str], web.UrlMappingMatchInfo] = field(factory=dict, init=False)  # by method and path
    _routes: dict[Handler, Route] = field(factory=dict, init=False)

    def add(self, route: Route) -> None:
        added = self._router.add_route(route.method, route.path, route.handler)
        self._routes[route.handler] = route
        if "{" not in route.path:
            self._plain[route.method, route.path] = web.UrlMappingMatchInfo({}, added)

    async def find(self, call: Call) -> Route | None:
        """The route; None where there is none, which the call's handler then says."""
        match = self._plain.get((call.method, call.raw_path)) or await self._router.resolve(call)
        call.is_for(match)
        return self._routes.get(match.handler)
