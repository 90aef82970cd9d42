"""Accepts the connections of a door and gives each to aiohttp.

They are accepted here, and not by aiohttp, so that their number is bounded, one that says nothing is closed, and a new
certificate holds for the next one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from typing import Any, Protocol

from aiohttp import web
from aiohttp.http import HttpProcessingError

from obatchd import log
from obatchd.doors.connections import Crowd, address_of
from obatchd.settings.addresses import Address
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_HEAD_S = 10.0  # longest time until a connection has made its first call
_HANDSHAKE_S = 10.0
_IDLE_S = 75.0  # a connection without a call is closed then
_SHUTDOWN_S = 1.0
_AGAIN_S = 10.0  # between two tries to listen on a port that is in use
_ACCEPT_AGAIN_S = 1.0
_LINGERING_S = 2.0  # for what else comes of a call that was refused
_BACKLOG = 1024


class Calls(web.RequestHandler):
    """The protocol of one connection."""

    __slots__ = ("ended",)

    def __init__(self, server: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self.ended: asyncio.Future[None] = loop.create_future()  # the connection has

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if not self.ended.done():
            self.ended.set_result(None)


class Security(Protocol):
    """The TLS of a door."""

    def context(self) -> ssl.SSLContext | None:
        """For a connection that begins now, None: it is closed. Called in a thread: it may read files."""


class Told(Protocol):
    """Is told whether a door could be opened at its address."""

    def opened(self, address: Address) -> None:
        """It listens."""

    def not_opened(self, address: Address, reason: str) -> None:
        """It does not, and tries again; said at each try."""


class Reception:
    """The connections of one door, which may listen at several places."""

    def __init__(self, owner: TaskOwner, server: web.Server, protocol: type[Calls] = Calls) -> None:
        """``owner`` is told of defects: of the task that a door was opened with, or of a connection."""
        self._server, self._protocol = server, protocol
        self._doors, self._connections = TaskSet(owner), TaskSet(owner)
        self._inside: dict[asyncio.Transport, tuple[Crowd, socket.socket]] = {}

    def open(self, listener: socket.socket, crowd: Crowd, task: str) -> None:
        """Let in who comes to ``listener``, which is closed at the end."""
        self._doors.start(self._accept(listener, crowd, None), task)

    def open_at(self, address: Address, told: Told, security: Security | None, task: str) -> None:
        """Listen at an address as soon as it is free; without ``security`` there is no TLS."""
        self._doors.start(self._listen_at(address, told, security), task)

    def spoke(self, transport: asyncio.Transport | None) -> None:
        """A call has come: the connection is none that says nothing."""
        if transport is not None and (inside := self._inside.get(transport)) is not None:
            crowd, connection = inside
            crowd.spoke(connection)

    async def stop(self) -> None:
        """Let in nobody more, and end all connections."""
        await self._doors.stop()
        self._server.pre_shutdown()
        await self._server.shutdown(_SHUTDOWN_S)
        await self._connections.stop()

    async def _listen_at(self, address: Address, told: Told, security: Security | None) -> None:
        while True:
            try:
                listener = _bound(address)
            except OSError as error:
                in_use = error.errno == errno.EADDRINUSE
                told.not_opened(address, "is in use by another program" if in_use else log.reason(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            told.opened(address)
            await self._accept(listener, Crowd(address_of), security)

    async def _accept(self, listener: socket.socket, crowd: Crowd, security: Security | None) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:  # no file is left, say
                    _log.error("http_connection_not_accepted", reason=log.reason(error))
                    await asyncio.sleep(_ACCEPT_AGAIN_S)
                    continue
                try:
                    who = crowd.enter(connection)
                except OSError:  # it has gone already
                    who = None
                if who is None:
                    connection.close()
                else:
                    self._connections.start(self._serve(connection, crowd, who, security), "http-connection")

    async def _serve(self, connection: socket.socket, crowd: Crowd, who: str, security: Security | None) -> None:
        """Hand a connection to aiohttp, and wait for its end."""
        loop = asyncio.get_running_loop()
        transport: asyncio.Transport | None = None
        options: dict[str, Any] = {"keepalive_timeout": _IDLE_S, "lingering_time": _LINGERING_S, "access_log": None}
        calls = self._protocol(self._server, loop=loop, logger=_defects(), **options)
        try:
            tls: dict[str, Any] = {}
            if security is not None:
                if (context := await asyncio.to_thread(security.context)) is None:
                    return
                tls = {"ssl": context, "ssl_handshake_timeout": _HANDSHAKE_S}
            transport, _ = await loop.connect_accepted_socket(lambda: calls, connection, **tls)
            self._inside[transport] = crowd, connection
            loop.call_later(_HEAD_S, crowd.close_if_silent, connection)
            await calls.ended
        except OSError:  # it has gone, or speaks no TLS (ssl.SSLError is an OSError)
            pass
        finally:
            crowd.leave(who, connection)
            if transport is None:
                connection.close()
            else:
                self._inside.pop(transport, None)
                transport.close()


class _NoFaultOfOurs(logging.Filter):
    """Leaves out what is wrong with a call: whoever sends rubbish fills no log, and reads nothing of it there."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | ConnectionError))


def _defects() -> logging.Logger:
    """What aiohttp tells of defects of ours."""
    logger = logging.getLogger(f"{__name__}.calls")
    if not logger.filters:
        logger.addFilter(_NoFaultOfOurs())
    return logger


def _bound(address: Address) -> socket.socket:
    """A listening socket; raises OSError where there can be none."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
