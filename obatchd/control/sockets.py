"""The control API on its Unix socket, ``<runtime>/control.sock``: who gets a connection."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

from aiohttp import web

from obatchd import errors, log
from obatchd.client.runtime import CONTROL_SOCKET
from obatchd.control import auth
from obatchd.control.api import Api
from obatchd.control.auth import Access
from obatchd.control.operations import Operations
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_SHUTDOWN_S = 1.0
_ACCEPT_AGAIN_S = 1.0
_CONNECTIONS_OF_ONE_USER = 64

_BUSY_BODY = json.dumps(
    {"error": {"code": "busy", "message": f"this user has {_CONNECTIONS_OF_ONE_USER} connections open; close some"}}
)
_BUSY = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    f"Content-Length: {len(_BUSY_BODY)}\r\n\r\n{_BUSY_BODY}"
).encode()


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
        self._api = Api(operations, access)
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
