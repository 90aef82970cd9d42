"""HTTP/1.1 to one server over connections that are kept: the costs of a prompt on its way out and back.

The parser is httptools (llhttp, the one of Node.js). The rest of a general client - sessions, cookies,
redirects, a timer for each request - would be half of a worker's time for a prompt (bench/README.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import ssl
import time
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

# Ollama keeps idle connections for ever, but a proxy in front of a remote one may close them after a few seconds
# (75 s in nginx, 5 s in uvicorn), and a request sent at that moment would look like one that crashed its server.
_KEPT_S = 4.0
# One that was closed while it was idle says so as soon as the request comes there. What ends later has been worked on:
# the server died of it, perhaps, or a proxy waited no longer.
_STALE_S = 2.0


class Unreachable(Exception):
    """No connection could be made; nothing was sent."""


class Broken(Exception):
    """The connection ended before the response did, or the response is not HTTP."""


class Sink(Protocol):
    """Where a response goes: its status first, then its body piece by piece as it arrives.

    ``location`` is the address that a redirect names, else empty.
    """

    def begin(self, status: int, location: str) -> None: ...
    def data(self, data: bytes) -> None: ...


class _Connection(asyncio.Protocol):
    """One connection; at most one request at a time."""

    def __init__(self, pool: Connections) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()  # which asks the system for the process's number, each time
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._sink: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self._began = self._sized = False
        self._location = b""
        self.heard = False  # any byte since the latest request
        self.free_since_s = 0.0  # monotonic

    def ask(self, request: bytes, sink: Sink) -> asyncio.Future[None]:
        """Send ``request``; the future ends with the response."""
        assert self._transport is not None
        self._sink = sink
        self._began = self._sized = self.heard = False
        self._location = b""
        self._done = self._loop.create_future()
        self._transport.write(request)
        return self._done

    def abort(self) -> None:
        """Close at once. Ollama ends a generation whose connection closes."""
        if self._transport is not None:
            self._transport.abort()

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        if self._done is None:  # nobody asked: a proxy that takes its leave with an answer (408), say
            self.abort()
            return
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(Broken(f"not HTTP: {error}"))
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        with contextlib.suppress(ValueError):
            self._pool.kept.remove(self)
        if self._began and not self._sized and error is None:
            self._finish()  # without a length, the end of the connection is the end of the body (RFC 9112 §6.3)
        else:
            self._finish(Broken(str(error) if error else "no error is told"))

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._sized = True
        elif name == b"location":
            self._location = value

    def on_headers_complete(self) -> None:
        self._began = True
        if self._sink is not None:
            self._sink.begin(self._parser.get_status_code(), self._location.decode("latin-1"))

    def on_body(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.data(data)

    def on_message_complete(self) -> None:
        if self._done is not None and self._parser.should_keep_alive():
            self.free_since_s = time.monotonic()
            self._pool.kept.append(self)
        else:
            self.abort()
        self._finish()

    def _finish(self, error: Broken | None = None) -> None:
        done, self._done, self._sink = self._done, None, None
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


class Connections:
    """The connections to one server. Proxies of the environment are never used, redirects are not followed.

    ``base_url`` is e.g. ``http://127.0.0.1:11500``, with or without a path, ``token`` a bearer token or empty.
    ``connect_timeout_s`` limits making a connection, None for no limit; limits after that are the caller's.
    """

    def __init__(self, base_url: str, token: str, connect_timeout_s: float | None) -> None:
        url = urlsplit(base_url)
        self._tls = _tls() if url.scheme == "https" else None
        self._host = url.hostname or ""
        self._port = url.port or (443 if self._tls else 80)
        self._prefix = url.path.rstrip("/")
        self._connect_timeout_s = connect_timeout_s
        authorisation = f"Authorization: Bearer {token}\r\n" if token else ""
        self._headers = f"Host: {url.netloc}\r\nContent-Type: application/json\r\n{authorisation}"
        self._heads: dict[tuple[str, str], bytes] = {}  # by method and path
        self.kept: list[_Connection] = []  # free for another request
        self._busy = 0
        self._unused: asyncio.Event | None = None

    async def request(self, method: str, path: str, body: bytes, sink: Sink) -> None:
        """Send ``body`` to ``path`` and give ``sink`` the response. Cancelled, it closes the connection.

        Raises Unreachable where no connection could be made, Broken where the connection ended in the middle of the
        response.
        """
        self._busy += 1
        try:
            if (head := self._heads.get((method, path))) is None:
                head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}Content-Length: ".encode()
                self._heads[method, path] = head
            request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
            asked_s = time.monotonic()
            kept = self._take(asked_s)
            try:
                await self._ask(kept or await self._connect(), request, sink)
            except Broken as error:
                took_s = time.monotonic() - asked_s
                if kept is None or kept.heard or took_s >= _STALE_S:
                    raise
                # The other end may have closed it before the request came, as it may close any that is idle. Where
                # nobody listens now, the server died: of what it was doing, perhaps.
                try:
                    again = await self._connect()
                except Unreachable:
                    raise error from None
                await self._ask(again, request, sink)
        finally:
            self._busy -= 1
            if self._unused is not None and not self._busy:
                self._unused.set()

    async def _ask(self, connection: _Connection, request: bytes, sink: Sink) -> None:
        try:
            await connection.ask(request, sink)
        except asyncio.CancelledError:
            if connection in self.kept:  # its response has come in this very moment
                self.kept.remove(connection)
            connection.abort()
            raise

    async def close(self) -> None:
        """Close every connection when the last request has ended."""
        if self._busy:
            self._unused = asyncio.Event()
            await self._unused.wait()
        for connection in self.kept:
            connection.abort()
        self.kept.clear()

    def _take(self, now_s: float) -> _Connection | None:
        """The connection that was used last, unless it has been idle for so long that its end may be on the way."""
        if not self.kept:
            return None
        connection = self.kept.pop()
        if now_s - connection.free_since_s < _KEPT_S:
            return connection
        for old in (connection, *self.kept):
            old.abort()
        self.kept.clear()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                make = functools.partial(_Connection, self)
                return (await loop.create_connection(make, self._host, self._port, ssl=self._tls))[1]
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no server can have
            if isinstance(error, TimeoutError) and not error.errno:  # with a number it is the kernel that gave up
                raise Unreachable(f"no connection within {self._connect_timeout_s:g} s") from error
            raise Unreachable(_reason(error)) from error


_UNKNOWN_CA = (18, 19, 20, 21)  # X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT and its neighbours in OpenSSL's x509_vfy.h
_TRUST = (
    "to trust it, name the file of the certificate or its CA in the environment of obatchd "
    "(SSL_CERT_FILE=/path/to/ca.pem) and restart obatchd"
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all: making it takes 18 ms of CPU time."""
    return ssl.create_default_context()


def _reason(error: Exception) -> str:
    """Why a connection failed, in the words of the operating system, e.g. "Connection refused"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = _TRUST if error.verify_code in _UNKNOWN_CA else "whoever keeps that server has to put that right"
        return f"its certificate is not accepted ({error.verify_message.rstrip('.')}): {remedy}"
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return "it does not speak https; write http:// in front of its address"
    if not isinstance(error, OSError) or isinstance(error, ssl.SSLError) or not error.errno:
        return str(error)
    return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)  # negative: a name is not known
