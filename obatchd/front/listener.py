"""Listens over TCP and on a Unix socket, and lets the same routes answer on both."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.http import HttpVersion11

from obatchd import log
from obatchd.control import auth
from obatchd.control.auth import Access
from obatchd.control.programs import Programs
from obatchd.control.sockets import listen
from obatchd.documents.programs import HttpDoor
from obatchd.doors.connections import Crowd
from obatchd.doors.reception import Reception
from obatchd.errors import ApiError, ControlError
from obatchd.front.answers import as_refusal, route_of, too_large
from obatchd.front.batches import BatchRoutes
from obatchd.front.files import FileRoutes
from obatchd.front.guard import Guard
from obatchd.front.inference.asking import InferenceRoutes
from obatchd.front.malformed import Calls
from obatchd.front.models import ModelRoutes
from obatchd.front.native.asking import NativeRoutes
from obatchd.front.native.models import NativeModelRoutes
from obatchd.front.page.routes import PageRoutes
from obatchd.front.routes import CALLER, Call, Route, Table, call_of
from obatchd.front.tls import Certificate
from obatchd.settings.addresses import Address
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)
_GONE = 499  # a status that nobody reads
_TCP = "http-tcp"
_NO_PAGE = (
    'no browser can reach the page, because obatchd listens nowhere for them. Set listen = "127.0.0.1:8434" in [http] '
    "of its configuration, and restart it"
)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Listener:
    """Serves the API while it runs. Implements :class:`obatchd.control.programs.KeyListener`,
    :class:`obatchd.control.operations.Door` and :class:`obatchd.doors.reception.Told`.

    Nothing that goes wrong here ends the daemon: what is in the way of the port is told in the status.
    """

    def __init__(
        self, programs: Programs, settings: Current[Settings], path: Path, access: Access, more: Sequence[Route] = (),
        calls: Counter[tuple[str, str, int]] | None = None,
    ) -> None:  # fmt: skip
        """``path``: of the socket; ``more``: routes of others; ``calls``: counted by method, route and status."""
        self._calls = Counter[tuple[str, str, int]]() if calls is None else calls
        self._settings, self._path, self._access = settings, path, access
        self._guard = Guard(programs.keys, programs.sessions, settings, access)
        self._table = Table()
        for route in (
            *FileRoutes(programs.files).routes(), *BatchRoutes(programs.batches).routes(),
            *ModelRoutes(programs.models).routes(), *NativeModelRoutes(programs.native).routes(),
            *NativeRoutes(programs.asking, programs.native).routes(),
            *InferenceRoutes(programs.asking, programs.native).routes(), *PageRoutes(programs.sessions).routes(), *more,
        ):  # fmt: skip
            self._table.add(route)
        programs.keys.listen(self)
        programs.sessions.listen(self)
        http = settings.value.http
        self._address = http.address(service=settings.value.access.mode == "service")
        self._certificate = Certificate(http.tls_certificate, http.tls_key) if http.tls_certificate else None
        self._problem = ""  # why nothing listens at the address
        self._stopping = False
        server = web.Server(self._around, request_factory=call_of, handler_cancellation=True)
        self._reception = Reception(self, server, Calls)

    def task_failed(self, name: str, error: BaseException) -> None:
        """A defect of one connection, or of a door: it is in the log, and the daemon goes on."""
        if name == _TCP:
            self._problem = "programs cannot reach the API over HTTP because of a defect of obatchd; restart it"

    def state(self) -> HttpDoor | None:
        if self._address is None:
            return None
        of_certificate = self._certificate.problem if self._certificate is not None else ""
        return HttpDoor(str(self._address), self._certificate is not None, self._problem or of_certificate)

    def page_url(self) -> str:
        if (door := self.state()) is None or self._address is None:
            raise ControlError(_NO_PAGE, code="no_http")
        if door.problem:
            raise ControlError(f"{door.problem}. The page is there, too", code="no_http")
        place, names = self._address, self._settings.value.http.names
        if ipaddress.ip_address(place.host).is_unspecified:
            place = place._replace(host="::1" if ":" in place.host else "127.0.0.1")
        # A certificate is for a name, as a rule.
        where = f"{names[0]}:{place.port}" if names and door.tls else str(place)
        return f"http{'s' if door.tls else ''}://{where}/"

    def revoked(self, key: str) -> None:
        self._guard.cut_off(key)

    # Life.

    async def start(self) -> None:
        """Listen on the socket, and at the address as soon as it is free; raises SpoolError where the socket fails."""
        unix = listen(self._path, shared=self._access.is_shared)
        self._reception.open(unix, Crowd(_user_of), "http-unix")
        if self._address is not None:
            if self._certificate is not None:
                await asyncio.to_thread(self._certificate.context)
            self._reception.open_at(self._address, self, self._certificate, _TCP)

    def only_looks(self) -> None:
        """From now on change nothing: the daemon is stopping."""
        self._stopping = True

    async def stop(self) -> None:
        """End all connections; what a call has begun to change is whole or is not there."""
        await self._reception.stop()
        self._path.unlink(missing_ok=True)

    def opened(self, address: Address) -> None:
        self._problem = ""
        _log.info("http_listening", address=str(address), tls=self._certificate is not None)

    def not_opened(self, address: Address, reason: str) -> None:
        """Once in the log; the status has it until it is over."""
        problem = f"programs cannot reach the API over HTTP: {address} {reason}"
        if problem != self._problem:
            self._problem = problem
            _log.warning("http_not_listening", address=str(address), reason=reason)

    # Calls.

    async def _around(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every call, also one to no route."""
        assert isinstance(request, Call)
        route = await self._table.find(request)
        self._reception.spoke(request.transport)
        status = _GONE
        try:
            answer = await self._answered(request, route)
            status = answer.status
            return answer
        except ConnectionError:  # the client has gone
            return web.Response(status=_GONE)
        except Exception as error:  # noqa: BLE001 - one faulty call must not close the API; the traceback is in the log
            response = as_refusal(error, request)
            status = response.status
            # Nobody reads what else comes, and whoever is not let in holds no place.
            if CALLER not in request or not request.content.is_eof():
                response.force_close()
            return response
        finally:
            self._count(request, status)

    def _count(self, request: Call, status: int) -> None:
        known = request.match_info.route.resource is not None  # else anything may stand in the place of the method
        self._calls[request.method if known else "other", route_of(request), status] += 1

    async def _answered(self, request: Call, route: Route | None) -> web.StreamResponse:
        self._guard.check_origin(request)
        handler = request.match_info.handler
        if route is not None and route.scopes is None:
            return await handler(request)
        # Who has no key is not told which routes there are.
        await self._guard.identify(request, route)
        if route is None:
            return await handler(request)
        if self._stopping and request.method != "GET":
            words = "obatchd is stopping; try again when it has started"
            raise ApiError(words, status=503, code="stopping", final=False)
        if route.body_limit_bytes is not None and (request.content_length or 0) > route.body_limit_bytes:
            raise too_large(route.body_limit_bytes)
        self._guard.enter(request, route)
        try:
            await _invite(request)
            return await _sent(request, await handler(request))
        finally:
            self._guard.leave(request, route)


async def _invite(request: web.Request) -> None:
    """Ask for the body of a client that waits for that; who was refused before has sent none of it."""
    if (expected := request.headers.get("Expect")) is None:
        return
    if expected.lower() != "100-continue":
        raise ApiError("of Expect, 100-continue alone is known", status=417, code="expectation_failed")
    if request.version >= HttpVersion11:
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0  # the answer has not begun


async def _sent(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """All of an answer, also of a file: a key that is removed ends it, and whatever goes wrong ends it visibly."""
    transport = request.transport
    try:
        await response.prepare(request)
        await response.write_eof()
    except Exception:
        if transport is not None:  # a second answer would pass for the rest of the first one
            transport.abort()
        raise
    return response


def _user_of(connection: socket.socket) -> str:
    return f"uid {auth.peer_of(connection.fileno()).uid}"
