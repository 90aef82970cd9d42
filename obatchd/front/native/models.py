"""Calls of Ollama's own API about the server and its models, and those that change models, which are refused.

Routes: ollama server/routes.go.
"""

from __future__ import annotations

import shlex

import msgspec
from aiohttp import web
from attrs import define

from obatchd.control.programs import SCOPES_OF_PROGRAMS, NativeModels
from obatchd.documents.native import Version
from obatchd.errors import ApiError
from obatchd.front.answers import answer
from obatchd.front.native.asked import asked_of, name_in
from obatchd.front.routes import Route

RUNNING = "Ollama is running"  # at /, where browsers get the page (front.page)
_COMMANDS = {"/api/pull": "obatchctl models pull", "/api/delete": "obatchctl models rm"}


@define(eq=False)
class NativeModelRoutes:
    """The routes."""

    _native: NativeModels

    def routes(self) -> list[Route]:
        programs = SCOPES_OF_PROGRAMS
        looking = [("/api/version", self._version, None), ("/api/tags", self._tags, programs)]
        changing = [
            ("POST", "/api/pull"), ("DELETE", "/api/delete"), ("POST", "/api/create"), ("POST", "/api/copy"),
            ("POST", "/api/push"), ("HEAD", "/api/blobs/{digest}"), ("POST", "/api/blobs/{digest}"),
        ]  # fmt: skip
        return [
            *(Route(method, path, handler, scopes) for method in ("GET", "HEAD") for path, handler, scopes in looking),
            Route("GET", "/api/ps", self._ps, programs),
            Route("POST", "/api/show", self._show, programs),
            *(Route(method, path, self._refuse, programs, body_limit_bytes=None) for method, path in changing),
        ]

    async def _version(self, request: web.Request) -> web.Response:
        return answer(Version(self._native.version()))

    async def _tags(self, request: web.Request) -> web.Response:
        return answer(await self._native.stored())

    async def _ps(self, request: web.Request) -> web.Response:
        return answer(await self._native.running())

    async def _show(self, request: web.Request) -> web.Response:
        asked = await asked_of(request)
        shown = await self._native.show(name_in(asked), verbose=asked.get("verbose") is True)
        return web.Response(body=msgspec.json.encode(shown), content_type="application/json")

    async def _refuse(self, request: web.Request) -> web.Response:
        """Models are the administrators' business: whoever may ask a model may not take it from others."""
        path = request.path
        if (command := _COMMANDS.get(path)) is None:
            words = (
                "programs cannot change the models of this fleet, and obatchctl makes none. An administrator can give "
                "the ollama command the address of one of the servers (obatchctl servers shows them)"
            )
            raise ApiError(words, status=403, code="forbidden")
        try:
            name = shlex.quote(name_in(await asked_of(request)))
        except ApiError:
            name = "NAME"
        words = f"programs cannot change the models of this fleet; an administrator can:  {command} {name}"
        raise ApiError(words, status=403, code="forbidden")
