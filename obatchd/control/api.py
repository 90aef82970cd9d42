"""The control API: HTTP and JSON over ``<runtime>/control.sock``, under ``/v1``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from aiohttp import web

from obatchd import __version__, errors, log
from obatchd.client.runtime import CONTROL_SOCKET
from obatchd.control import auth, burnin, gpu_routes
from obatchd.control.answer import answer, answer_line
from obatchd.control.auth import Access, Caller
from obatchd.control.burnin import BURNIN, Burnin
from obatchd.control.operations import Operations, ServerAction
from obatchd.control.query import count_asked
from obatchd.documents.answers import Alive, Error, ErrorDocument, LogLine, Ping, Readiness
from obatchd.documents.jobs import Jobs
from obatchd.documents.models import Models
from obatchd.documents.status import Servers
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_OPERATIONS = web.AppKey("operations", Operations)
_ACCESS = web.AppKey("access", Access)
_STOPPING = web.AppKey("stopping", asyncio.Event)
_CALLER = web.RequestKey("caller", Caller)
_BODY_LIMIT_BYTES = 1024**2
_SHUTDOWN_S = 1.0
_ACCEPT_AGAIN_S = 1.0
_CONNECTIONS_OF_ONE_USER = 64
_JOBS_LIMIT = 10_000
_LOG_LINES_LIMIT = 10_000

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
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o666 if shared else 0o600)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


class ControlServer:
    """Serves the API while it runs.

    Args:
        operations: takes the requests.
        runtime_dir: directory of the socket; see :mod:`obatchd.client.runtime`.
        access: the peers that are answered.
        burnin_runs: takes requests about burn-in runs.
        owner: told when nobody is admitted any more: a daemon that cannot be asked cannot be stopped in good order.
    """

    def __init__(
        self, operations: Operations, runtime_dir: Path, access: Access, burnin_runs: Burnin, owner: TaskOwner
    ) -> None:
        self._path = runtime_dir / CONTROL_SOCKET
        self._shared = access.is_shared
        self._tasks = TaskSet(owner)
        self._runner = web.AppRunner(
            application(operations, access, burnin_runs),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_S,
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            SpoolError: the socket cannot be made.
        """
        await self._runner.setup()
        try:
            listener = listen(self._path, shared=self._shared)
        except OSError as error:
            await self._runner.cleanup()
            raise errors.SpoolError(f"{self._path}: cannot listen: {error.strerror}") from error
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
        self._runner.app[_STOPPING].set()

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        await self._tasks.stop()
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


def application(operations: Operations, access: Access, burnin_runs: Burnin) -> web.Application:
    """The API as an aiohttp application."""
    app = web.Application(middlewares=[_errors_as_json, _identify], client_max_size=_BODY_LIMIT_BYTES)
    app[_OPERATIONS] = operations
    app[gpu_routes.GPUS] = operations.gpus
    app[_ACCESS] = access
    app[_STOPPING] = asyncio.Event()
    app[BURNIN] = burnin_runs
    app.add_routes(
        [
            web.get("/v1/ping", _ping),
            web.get("/v1/status", _status),
            web.get("/v1/servers", _servers),
            web.post(r"/v1/servers/{server}/{action:drain|resume|restart}", _server_action),
            web.get("/v1/servers/{server}/log", _server_log),
            web.get("/v1/jobs", _jobs),
            web.get("/v1/jobs/{job}", _job),
            web.delete("/v1/jobs/{job}", _remove_job),
            web.post(r"/v1/jobs/{job}/{action:cancel|retry|pause|resume}", _job_action),
            web.post(r"/v1/{action:pause|resume|drain|undrain|reload}", _host_action),
            web.get("/v1/models", _models),
            web.post("/v1/models/pull", _pull),
            web.delete("/v1/models/{model:.+}", _remove_model),
            *gpu_routes.routes(),
            web.get("/healthz", _healthz),
            web.get("/readyz", _readyz),
            *burnin.routes(),
        ]
    )
    return app


def error_document(error: errors.ObatchError) -> ErrorDocument:
    """How an error looks in JSON."""
    return ErrorDocument(Error(error.code, error.message))


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.ObatchError as error:
        return answer(error_document(error), _status_of(error))
    except web.HTTPException as error:
        reason = f"{request.method} {request.path}: {error.reason}"
        return answer(ErrorDocument(Error("http", reason)), error.status)
    except Exception:  # noqa: BLE001 - one faulty request must not close the API; the traceback is in the log
        _log.exception("control_request_failed", method=request.method, path=request.path)
        return answer(INTERNAL, 500)


def _status_of(error: errors.ObatchError) -> int:
    return next((status for kind, status in _HTTP_STATUS if isinstance(error, kind)), 500)


@web.middleware
async def _identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Only known callers are answered, and only administrators where nothing says that the others may."""
    connection = request.get_extra_info("socket")
    if connection is None:  # the client has gone already
        raise errors.ForbiddenError("the caller cannot be identified")
    caller = await request.app[_ACCESS].caller(auth.peer_of(connection.fileno()))
    if not caller.is_administrator and request.match_info.handler not in _FOR_EVERY_CALLER:
        raise errors.ForbiddenError("only administrators of obatchd may do this (root, and the administrators' group)")
    if request.app[_STOPPING].is_set() and request.method != "GET":
        raise errors.ControlError("obatchd is stopping and takes no commands; start it again first", code="stopping")
    request[_CALLER] = caller
    return await handler(request)


def _caller(request: web.Request) -> Caller:
    return request[_CALLER]


async def _ping(request: web.Request) -> web.Response:
    return answer(Ping(__version__, os.getpid()))


async def _status(request: web.Request) -> web.Response:
    status = request.app[_OPERATIONS].status(_caller(request))
    status.burnin = request.app[BURNIN].brief()
    return answer(status)


async def _servers(request: web.Request) -> web.Response:
    return answer(Servers(request.app[_OPERATIONS].status(_caller(request)).servers))


async def _server_action(request: web.Request) -> web.Response:
    action = cast(ServerAction, request.match_info["action"])
    return answer(await request.app[_OPERATIONS].server_action(request.match_info["server"], action))


async def _server_log(request: web.Request) -> web.StreamResponse:
    """One JSON document per line; with ``follow=1`` it goes on until the client leaves or the daemon stops."""
    lines = count_asked(request, "lines", 200, _LOG_LINES_LIMIT)
    follow = request.query.get("follow") == "1"
    async with contextlib.aclosing(
        request.app[_OPERATIONS].server_log(request.match_info["server"], lines, follow)
    ) as found:
        line = await anext(found, None)  # an unknown server is an answer of its own
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the client has gone
            while line is not None:
                await response.write(answer_line(LogLine(line)))
                line = await anext(found, None)
    return response


async def _jobs(request: web.Request) -> web.Response:
    limit = count_asked(request, "limit", 100, _JOBS_LIMIT)
    caller, owner = _caller(request), request.query.get("owner")
    if owner == "all" and not caller.is_administrator:
        raise errors.ForbiddenError("only administrators see the jobs of others; obatchctl jobs --mine lists yours")
    if owner not in (None, "all", "mine"):
        raise errors.ConfigError("owner must be mine or all", code="bad_request")
    jobs = request.app[_OPERATIONS].jobs(caller, request.query.get("state"), limit, mine=owner == "mine")
    return answer(Jobs(jobs))


async def _job(request: web.Request) -> web.Response:
    return answer(request.app[_OPERATIONS].job(_caller(request), request.match_info["job"]))


async def _job_action(request: web.Request) -> web.Response:
    ask = request.app[_OPERATIONS]
    actions = {"cancel": ask.cancel, "retry": ask.retry, "pause": ask.pause, "resume": ask.resume}
    return answer(await actions[request.match_info["action"]](_caller(request), request.match_info["job"]))


async def _remove_job(request: web.Request) -> web.Response:
    return answer(await request.app[_OPERATIONS].remove_job(_caller(request), request.match_info["job"]))


async def _host_action(request: web.Request) -> web.Response:
    operations = request.app[_OPERATIONS]
    match request.match_info["action"]:
        case "pause":
            return answer(await operations.pause(_caller(request), None))
        case "resume":
            return answer(await operations.resume(_caller(request), None))
        case "drain":
            return answer(await operations.drain())
        case "undrain":
            return answer(await operations.undrain())
        case _:
            return answer(await operations.reload())


async def _models(request: web.Request) -> web.Response:
    return answer(Models(await request.app[_OPERATIONS].models()))


async def _remove_model(request: web.Request) -> web.Response:
    return answer(await request.app[_OPERATIONS].remove_model(request.match_info["model"]))


async def _pull(request: web.Request) -> web.StreamResponse:
    """One JSON document per line while the pull goes on; an error is the last line."""
    try:
        body = await request.json()
        name = body["model"]
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        raise errors.ConfigError('the body must be {"model": "name"}', code="bad_request")
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    try:
        async for progress in request.app[_OPERATIONS].pull_model(name):
            await response.write(answer_line(progress))
    except errors.ObatchError as error:
        await response.write(answer_line(error_document(error)))
    except ConnectionError:
        pass  # the client has gone; whether the pull goes on is the daemon's business
    return response


async def _healthz(request: web.Request) -> web.Response:
    return answer(Alive(True))


async def _readyz(request: web.Request) -> web.Response:
    status = request.app[_OPERATIONS].status(_caller(request))
    up = any(server.state == "ready" for server in status.servers)
    ready = up and not status.disk.low and status.state != "stopping"
    return answer(Readiness(ready), 200 if ready else 503)


# Routes for callers who are no administrators. The daemon shows and changes only their own jobs.
_FOR_EVERY_CALLER = frozenset(
    {_ping, _status, _servers, _jobs, _job, _remove_job, _job_action, _models, _healthz, _readyz}
    | {gpu_routes.gpus, gpu_routes.gpu, gpu_routes.events}
)
