"""The control API: HTTP and JSON over ``<runtime>/control.sock``, under ``/v1``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from obatchd import __version__, errors, log
from obatchd.client.runtime import CONTROL_SOCKET
from obatchd.control import auth
from obatchd.control.answer import CALLER, answer, answer_line, count_asked, time_asked
from obatchd.control.auth import Access, Origin
from obatchd.control.gpu_routes import GpuRoutes
from obatchd.control.operations import NewKeyAsked, Operations
from obatchd.documents.answers import Alive, Error, ErrorDocument, LogLine, MetricsText, Ping, Readiness
from obatchd.documents.audit import CONTROL, AuditAsked
from obatchd.documents.jobs import Jobs, Usage
from obatchd.documents.models import Models
from obatchd.documents.programs import Keys
from obatchd.documents.status import Servers
from obatchd.naming import JobFilter
from obatchd.tasks import TaskOwner, TaskSet
from obatchd.words import misfit

_log = log.get(__name__)
_BODY_LIMIT_BYTES = 1024**2
_SHUTDOWN_S = 1.0
_ACCEPT_AGAIN_S = 1.0
_CONNECTIONS_OF_ONE_USER = 64
_JOBS_LIMIT = 10_000
_LOG_LINES_LIMIT = 10_000
_MOST_ENTRIES = 100_000  # of the audit log

_BUSY_BODY = json.dumps(
    {"error": {"code": "busy", "message": f"this user has {_CONNECTIONS_OF_ONE_USER} connections open; close some"}}
)
_BUSY = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    f"Content-Length: {len(_BUSY_BODY)}\r\n\r\n{_BUSY_BODY}"
).encode()

# The first match counts, so the leaves of the error tree come first.
_HTTP_STATUS: tuple[tuple[type[errors.ObatchError], int], ...] = (
    (errors.NotFoundError, 404),
    (errors.ForbiddenError, 403),
    (errors.DropRefused, 422),
    (errors.ConfigError, 400),
    (errors.ControlError, 409),
    (errors.ServerError, 502),
    (errors.SpoolError, 507),
)

INTERNAL = ErrorDocument(Error("internal", "internal error; the daemon's log has it"))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def listen(path: Path, *, shared: bool) -> socket.socket:
    """A listening Unix socket, for everybody or for the daemon's user alone; replaces a stale one of an earlier run.

    The identity of the peer decides whether it is answered, never the socket's mode alone.

    Raises:
        SpoolError: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        os.chmod(path, 0o666 if shared else 0o600)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise errors.SpoolError(f"{path}: cannot listen: {error.strerror}") from error
    return listener


class ControlServer:
    """Serves the API while it runs.

    Args:
        runtime_dir: directory of the socket; see :mod:`obatchd.client.runtime`.
        access: the peers that are answered.
        owner: told when nobody is admitted any more: a daemon that cannot be asked cannot be stopped in good order.
    """

    def __init__(self, operations: Operations, runtime_dir: Path, access: Access, owner: TaskOwner) -> None:
        self._path = runtime_dir / CONTROL_SOCKET
        self._shared = access.is_shared
        self._tasks = TaskSet(owner)
        self._api = _Api(operations, access)
        self._runner = web.AppRunner(
            self._api.application(), access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_S
        )

    async def start(self) -> None:
        """Listen; raises SpoolError where the socket cannot be made."""
        listener = listen(self._path, shared=self._shared)
        await self._runner.setup()
        self._tasks.start(self._accept(listener), "control-accept")
        _log.info("control_listening", path=self._path)

    async def _accept(self, listener: socket.socket) -> None:
        """Serve connections. A user who opens many and says nothing keeps no file from the others."""
        loop = asyncio.get_running_loop()
        open_of: dict[int, list[asyncio.Transport]] = {}
        with listener:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                    await self._admit(connection, open_of)
                except OSError as error:  # no file is left, say; or it has gone already
                    _log.error("connection_not_accepted", reason=log.reason(error))
                    await asyncio.sleep(_ACCEPT_AGAIN_S)

    async def _admit(self, connection: socket.socket, open_of: dict[int, list[asyncio.Transport]]) -> None:
        """Serve a connection, or close it where its user has too many in ``open_of``."""
        assert self._runner.server is not None
        try:
            uid = auth.peer_of(connection.fileno()).uid
            connections = open_of[uid] = [one for one in open_of.get(uid, ()) if not one.is_closing()]
            if len(connections) < _CONNECTIONS_OF_ONE_USER:
                loop = asyncio.get_running_loop()
                transport, _ = await loop.connect_accepted_socket(self._runner.server, connection)
                connections.append(transport)
                return
            connection.send(_BUSY)
        except OSError:
            connection.close()
            raise
        connection.close()

    def only_looks(self) -> None:
        """From now on answer questions and refuse to change anything: the daemon is stopping."""
        self._api.stopping = True

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        await self._tasks.stop()
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


def error_document(error: errors.ObatchError) -> ErrorDocument:
    return ErrorDocument(Error(error.code, error.message))


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.ObatchError as error:
        status = next((status for kind, status in _HTTP_STATUS if isinstance(error, kind)), 500)
        return answer(error_document(error), status)
    except web.HTTPException as error:
        reason = f"{request.method} {request.path}: {error.reason}"
        return answer(ErrorDocument(Error("http", reason)), error.status)
    except Exception:  # noqa: BLE001 - one faulty request must not close the API; the traceback is in the log
        _log.exception("control_request_failed", method=request.method, path=request.path)
        return answer(INTERNAL, 500)


async def _object_sent(request: web.Request) -> dict[str, Any]:
    """The JSON object in the body of a request; an empty one where there is no body."""
    try:
        sent = await request.json() if request.can_read_body else {}
    except (ValueError, RecursionError):
        sent = None
    if not isinstance(sent, dict):
        raise errors.ConfigError("the body must be a JSON object", code="bad_request")
    return sent


class _Removal(msgspec.Struct):
    """The body of ``POST /v1/jobs/remove``."""

    jobs: list[str]  # ids


class _Api:
    """The routes, and who may use them."""

    def __init__(self, operations: Operations, access: Access) -> None:
        self._operations = operations
        self._access = access
        self._gpus = GpuRoutes(operations.gpus, operations.burnin)
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
            web.get("/v1/jobs", self._jobs),
            web.get("/v1/jobs/{job}", self._job),
            web.delete("/v1/jobs/{job}", self._remove_job),
            web.post("/v1/jobs/remove", self._remove_jobs),
            web.post("/v1/jobs/{job}/retry", self._retry),
            web.post(r"/v1/jobs/{job}/{action:cancel|pause|resume}", self._job_action),
            web.get("/v1/usage", self._usage),
            web.get("/v1/models", self._models),
            web.get("/v1/keys", self._keys),
            web.post("/v1/keys", self._add_key),
            web.delete("/v1/keys/{key}", self._remove_key),
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

    async def _jobs(self, request: web.Request) -> web.Response:
        limit = count_asked(request, "limit", 100, _JOBS_LIMIT)
        caller, owner = request[CALLER], request.query.get("owner")
        if owner == "all" and not caller.is_administrator:
            raise errors.ForbiddenError("only administrators see the jobs of others; obatchctl jobs --mine lists yours")
        if owner not in (None, "all", "mine"):
            raise errors.ConfigError("owner must be mine or all", code="bad_request")
        given = (time_asked(request, name) for name in ("since", "ended_before"))
        only = JobFilter(request.query.get("label"), *given)
        jobs = self._operations.jobs.all(caller, request.query.get("state"), limit, mine=owner == "mine", only=only)
        return answer(Jobs(jobs))

    async def _usage(self, request: web.Request) -> web.Response:
        month, owner = request.query.get("month"), request.query.get("owner")
        if month is not None and not re.fullmatch("[0-9]{4}-(0[1-9]|1[0-2])", month):
            raise errors.ConfigError("month must be written as 2026-11", code="bad_request")
        if owner not in (None, "mine"):
            raise errors.ConfigError("owner must be mine", code="bad_request")
        return answer(Usage(await self._operations.jobs.usage(request[CALLER], month, mine=owner == "mine")))

    async def _job(self, request: web.Request) -> web.Response:
        return answer(self._operations.jobs.one(request[CALLER], request.match_info["job"]))

    async def _job_action(self, request: web.Request) -> web.Response:
        jobs = self._operations.jobs
        actions = {"cancel": jobs.cancel, "pause": jobs.pause, "resume": jobs.resume}
        return answer(await actions[request.match_info["action"]](request[CALLER], request.match_info["job"]))

    async def _retry(self, request: web.Request) -> web.Response:
        asked = await _object_sent(request)
        changes, only = asked.get("settings", {}), str(asked.get("only", "failed"))
        if not isinstance(changes, dict):
            raise errors.ConfigError('the body must be {"settings": {…}}', code="bad_request")
        return answer(await self._operations.jobs.retry(request[CALLER], request.match_info["job"], changes, only))

    async def _remove_job(self, request: web.Request) -> web.Response:
        return answer(await self._operations.jobs.remove(request[CALLER], request.match_info["job"]))

    async def _remove_jobs(self, request: web.Request) -> web.Response:
        try:
            jobs = msgspec.json.decode(await request.read(), type=_Removal).jobs
        except msgspec.DecodeError:
            raise errors.ConfigError('the body must be {"jobs": ["id", …]}', code="bad_request") from None
        return answer(await self._operations.jobs.remove_all(request[CALLER], jobs))

    async def _host_action(self, request: web.Request) -> web.Response:
        host = self._operations.host
        changes = {"pause": host.pause, "resume": host.resume, "drain": host.drain, "undrain": host.undrain}
        if (action := request.match_info["action"]) in changes:
            return answer(await changes[action](request[CALLER]))
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
        return answer(await self._operations.models.remove(request.match_info["model"]))

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        """One JSON document per line while the pull goes on; an error is the last line."""
        name = (await _object_sent(request)).get("model")
        if not isinstance(name, str) or not name:
            raise errors.ConfigError('the body must be {"model": "name"}', code="bad_request")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            async for progress in self._operations.models.pull(name):
                await response.write(answer_line(progress))
        except errors.ObatchError as error:
            await response.write(answer_line(error_document(error)))
        except ConnectionError:
            pass  # the client has gone; whether the pull goes on is the daemon's business
        return response

    async def _keys(self, request: web.Request) -> web.Response:
        return answer(Keys(self._operations.keys.all(request[CALLER])))

    async def _add_key(self, request: web.Request) -> web.Response:
        try:
            asked = msgspec.convert(await _object_sent(request), NewKeyAsked)
        except msgspec.ValidationError as error:
            raise errors.ConfigError(f"the body: {misfit(error)}", code="bad_request") from None
        return answer(await self._operations.keys.add(request[CALLER], asked))

    async def _remove_key(self, request: web.Request) -> web.Response:
        return answer(await self._operations.keys.remove(request[CALLER], request.match_info["key"]))

    async def _healthz(self, request: web.Request) -> web.Response:
        return answer(Alive(True))

    async def _readyz(self, request: web.Request) -> web.Response:
        status = self._operations.host.status(request[CALLER])
        up = any(server.state == "ready" for server in status.servers)
        ready = up and not status.disk.low and status.state != "stopping"
        return answer(Readiness(ready), 200 if ready else 503)
