"""Servers that cost next to nothing: slots, service times and the few routes a remote server is asked, in one process.

    python bench/slot_servers.py SLOTS MEAN_S SIGMA PORT…

A real server computes on its GPU. Eight stand-ins of ``obatchd/simulator`` take more processor time a prompt than all
of obatchd, on the same cores as what is measured; this program takes a fraction of it. Each port is one server: an
answer takes a log-normal time drawn from the prompt, at most SLOTS at a time, the others wait in order of arrival.
``GET /simulator/requests`` tells when each prompt got its slot.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from functools import partial
from typing import cast

import httptools
import uvloop
from harness import CANNED

from obatchd.simulator.answers import digest
from obatchd.simulator.config import Distribution

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_CANNED = {path: json.dumps(body).encode() for path, body in CANNED.items()}
_MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Slots:
    """One server's slots."""

    def __init__(self, count: int, service: Distribution) -> None:
        self.records: list[dict[str, object]] = []
        self._free = count
        self._service = service
        self._queue: deque[tuple[Connection, str]] = deque()
        self._loop = asyncio.get_running_loop()

    def ask(self, connection: Connection, prompt: str) -> None:
        self._queue.append((connection, prompt))
        self._next()

    def _next(self) -> None:
        while self._free and self._queue:
            connection, prompt = self._queue.popleft()
            self._free -= 1
            mark = digest(prompt)
            self.records.append({"at_s": time.time(), "digest": mark})
            self._loop.call_later(self._service.draw(mark), self._end, connection)

    def _end(self, connection: Connection) -> None:
        self._free += 1
        connection.answer(_CANNED["/api/chat"])
        self._next()


class Connection(asyncio.Protocol):
    """One kept connection to one server."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = b""
        self._body = b""

    def answer(self, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(_HEAD % (len(body), body))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path, self._body = url, b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._path.decode()
        if path == "/api/chat":
            self._slots.ask(self, json.loads(self._body)["messages"][-1]["content"])
        elif path == "/simulator/requests":
            self.answer(json.dumps({"requests": self._slots.records}).encode())
        elif path in _CANNED:
            self.answer(_CANNED[path])
        elif self._transport is not None:
            self._transport.write(_MISSING)


async def serve(slots: int, service: Distribution, ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(partial(Connection, Slots(slots, service)), "127.0.0.1", port)
    await asyncio.Event().wait()


def main() -> None:
    slots, mean_s, sigma, *ports = sys.argv[1:]
    service = Distribution("lognormal", mean=float(mean_s), sigma=float(sigma))
    uvloop.run(serve(int(slots), service, [int(port) for port in ports]))


if __name__ == "__main__":
    main()
