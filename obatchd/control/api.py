"""The routes of the control API: HTTP and JSON, under ``/v1``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from obatchd import __version__, errors, log
from obatchd.control import auth
from obatchd.control.answer import CALLER, answer, answer_line, count_asked, object_sent, status_of, time_asked
from obatchd.control.auth import Access, Origin
from obatchd.control.gpu_routes import GpuRoutes
from obatchd.control.hosts import HostRoutes
from obatchd.control.job_routes import JobRoutes
from obatchd.control.operations import NewKeyAsked, Operations
from obatchd.control.read_routes import ReadRoutes
from obatchd.documents.answers import Alive, Error, ErrorDocument, LogLine, MetricsText, Ping, Readiness
from obatchd.documents.audit import CONTROL, HOST_RELOADED, MODEL_PULLED, MODEL_REMOVED, AuditAsked
from obatchd.documents.models import Models
from obatchd.documents.programs import Keys
from obatchd.documents.status import Servers
from obatchd.documents.web import PageLink
from obatchd.words import misfit

_log = log.get(__name__)
_BODY_LIMIT_BYTES = 1024**2
_LOG_LINES_LIMIT = 10_000
_MOST_ENTRIES = 100_000  # of the audit log

INTERNAL = ErrorDocument(Error("internal", "internal error; the daemon's log has it"))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_document(error: errors.ObatchError) -> ErrorDocument:
    return ErrorDocument(Error(error.code, error.message))


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.ObatchError as error:
        status = status_of(error)
        return answer(error_document(error), status)
    except web.HTTPException as error:
        reason = f"{request.method} {request.path}: {error.reason}"
        return answer(ErrorDocument(Error("http", reason)), error.status)
    except Exception:  # noqa: BLE001 - one faulty request must not close the API; the traceback is in the log
        _log.exception("control_request_failed", method=request.method, path=request.path)
        return answer(INTERNAL, 500)


class Api:
    """The routes, and who may use them."""

    def __init__(self, operations: Operations, access: Access) -> None:
        self._operations = operations
        self._access = access
        self._jobs = JobRoutes(operations.jobs, operations.reads.answers)
        self._reads = ReadRoutes(operations.reads)
        self._hosts = HostRoutes(operations.hosts)
        self._gpus = GpuRoutes(operations.gpus, operations.burnin, operations.audit)
        self.stopping = False
        self._for_every_caller = frozenset(route.handler for route in self._routes_for_every_caller())

    def application(self) -> web.Application:
        """The API as an aiohttp application."""
        app = web.Application(middlewares=[_errors_as_json, self._identify], client_max_size=_BODY_LIMIT_BYTES)
        app.add_routes(self._routes_for_every_caller())
        app.add_routes(self._routes_for_administrators())
        return app

    def _routes_for_every_caller(self) -> list[web.RouteDef]:
        """The daemon shows and changes only their own jobs."""
        return [
            web.get("/v1/ping", self._ping),
            web.get("/v1/status", self._status),
            web.get("/v1/servers", self._servers),
            web.get("/v1/servers/tuning", self._tuning),
            *self._jobs.routes(),
            *self._reads.routes(),
            web.get("/v1/models", self._models),
            web.get("/v1/keys", self._keys),
            web.post("/v1/keys", self._add_key),
            web.delete("/v1/keys/{key}", self._remove_key),
            web.post("/v1/web/codes", self._page_code),
            web.delete("/v1/web/sessions", self._end_sessions),
            *self._gpus.for_every_caller(),
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
        ]

    def _routes_for_administrators(self) -> list[web.RouteDef]:
        return [
            web.post(r"/v1/servers/{server}/{action:drain|resume|restart}", self._server_action),
            web.get("/v1/servers/{server}/log", self._server_log),
            web.post(r"/v1/{action:pause|resume|drain|undrain|reload}", self._host_action),
            web.post("/v1/alarms/test", self._test_alarms),
            web.get("/v1/audit", self._audit),
            web.get("/v1/metrics", self._metrics),
            web.post("/v1/models/pull", self._pull),
            web.delete("/v1/models/{model:.+}", self._remove_model),
            *self._gpus.for_administrators(),
            *self._hosts.for_administrators(),
        ]

    @web.middleware
    async def _identify(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Only known callers are answered, and only administrators where nothing says that the others may."""
        connection = request.get_extra_info("socket")
        if connection is None:  # the client has gone already
            raise errors.ForbiddenError("the caller cannot be identified")
        peer = auth.peer_of(connection.fileno())
        caller = await self._access.caller(peer)
        if not caller.is_administrator and request.match_info.handler not in self._for_every_caller:
            group = self._access.admin_group
            words = f"only administrators of obatchd may do this: root, and the members of the group {group}"
            raise errors.ForbiddenError(words)
        if self.stopping and request.method != "GET":
            words = "obatchd is stopping and takes no commands; start it again first"
            raise errors.ControlError(words, code="stopping")
        request[CALLER] = caller._replace(origin=Origin(CONTROL, pid=peer.pid))
        return await handler(request)

    async def _ping(self, request: web.Request) -> web.Response:
        return answer(Ping(__version__, os.getpid()))

    async def _status(self, request: web.Request) -> web.Response:
        status = self._operations.host.status(request[CALLER])
        status.burnin = self._operations.burnin.brief()
        if (door := self._operations.http.state()) is not None:
            status.http = door
            status.notices += [door.problem] if door.problem else []
        if (for_hosts := self._operations.hosts.door()) is not None and for_hosts.problem:
            status.notices.append(for_hosts.problem)
        return answer(status)

    async def _metrics(self, request: web.Request) -> web.Response:
        return answer(MetricsText(self._operations.metrics.text().decode()))

    async def _servers(self, request: web.Request) -> web.Response:
        return answer(Servers(self._operations.servers.all()))

    async def _tuning(self, request: web.Request) -> web.Response:
        return answer(self._operations.servers.tuning())

    async def _server_action(self, request: web.Request) -> web.Response:
        asked = request.match_info
        return answer(await self._operations.servers.act(request[CALLER], asked["server"], asked["action"]))

    async def _server_log(self, request: web.Request) -> web.StreamResponse:
        """One JSON document per line; with ``follow=1`` it goes on until the client leaves or the daemon stops."""
        lines = count_asked(request, "lines", 200, _LOG_LINES_LIMIT)
        follow = request.query.get("follow") == "1"
        log_lines = self._operations.servers.log(request.match_info["server"], lines, follow)
        async with contextlib.aclosing(log_lines) as found:
            line = await anext(found, None)  # an unknown server is an answer of its own
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # the client has gone
                while line is not None:
                    await response.write(answer_line(LogLine(line)))
                    line = await anext(found, None)
        return response

    async def _host_action(self, request: web.Request) -> web.Response:
        host = self._operations.host
        changes = {"pause": host.pause, "resume": host.resume, "drain": host.drain, "undrain": host.undrain}
        if (action := request.match_info["action"]) in changes:
            return answer(await changes[action](request[CALLER]))
        async with self._operations.audit.recorded(request[CALLER], HOST_RELOADED):
            return answer(await host.reload())

    async def _test_alarms(self, request: web.Request) -> web.Response:
        return answer(await self._operations.host.test_alarms())

    async def _audit(self, request: web.Request) -> web.Response:
        since_s, until_s = (time_asked(request, name) for name in ("since", "until"))
        kinds = tuple(filter(None, request.query.get("kind", "").split(",")))
        asked = AuditAsked(count_asked(request, "limit", 100, _MOST_ENTRIES), since_s, until_s, kinds)
        return answer(await self._operations.audit.entries(asked))

    async def _models(self, request: web.Request) -> web.Response:
        return answer(Models(await self._operations.models.all()))

    async def _remove_model(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        async with self._operations.audit.recorded(request[CALLER], MODEL_REMOVED, model):
            return answer(await self._operations.models.remove(model))

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        """One JSON document per line while the pull goes on; an error is the last line."""
        name = (await object_sent(request)).get("model")
        if not isinstance(name, str) or not name:
            raise errors.ConfigError('the body must be {"model": "name"}', code="bad_request")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            async with self._operations.audit.recorded(request[CALLER], MODEL_PULLED, name):
                # Where the client has gone, it is the daemon's business whether the pull goes on.
                with contextlib.suppress(ConnectionError):
                    async for progress in self._operations.models.pull(name):
                        await response.write(answer_line(progress))
        except errors.ObatchError as error:
            await response.write(answer_line(error_document(error)))
        return response

    async def _keys(self, request: web.Request) -> web.Response:
        return answer(Keys(self._operations.keys.all(request[CALLER])))

    async def _add_key(self, request: web.Request) -> web.Response:
        try:
            asked = msgspec.convert(await object_sent(request), NewKeyAsked)
        except msgspec.ValidationError as error:
            raise errors.ConfigError(f"the body: {misfit(error)}", code="bad_request") from None
        return answer(await self._operations.keys.add(request[CALLER], asked))

    async def _remove_key(self, request: web.Request) -> web.Response:
        return answer(await self._operations.keys.remove(request[CALLER], request.match_info["key"]))

    async def _page_code(self, request: web.Request) -> web.Response:
        url, problem = None, ""
        try:
            url = self._operations.http.page_url()
        except errors.ControlError as error:  # a tunnel to the socket of HTTP may lead there all the same
            problem = error.message
        code, good_for_s = self._operations.web.code(request[CALLER])
        return answer(PageLink(code=code, good_for_s=good_for_s, url=url, problem=problem))

    async def _end_sessions(self, request: web.Request) -> web.Response:
        return answer(self._operations.web.end_all(request[CALLER]))

    async def _healthz(self, request: web.Request) -> web.Response:
        return answer(Alive(True))

    async def _readyz(self, request: web.Request) -> web.Response:
        status = self._operations.host.status(request[CALLER])
        up = any(server.state == "ready" for server in status.servers)
        ready = up and not status.disk.low and status.state != "stopping"
        return answer(Readiness(ready), 200 if ready else 503)
