"""A web server of the tests' own, with pages of every kind, and a resolver that says what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from aiohttp.abc import AbstractResolver, ResolveResult

ARTICLE = """<!doctype html><html><head><title>{title}</title></head><body><nav><a href="/">Home</a> Menu</nav>
<article><h1>{title}</h1><p>{text} This paragraph has enough words in it to be the main text of a page about rivers.</p>
<p>A second paragraph follows, so that nobody takes the navigation for the content of the page, which it is not.</p>
</article><footer>Imprint, cookies and adverts</footer></body></html>"""


def article(text: str, title: str = "Rivers") -> bytes:
    """A page whose main text begins with ``text``."""
    return ARTICLE.format(title=title, text=text).encode()


class Web:
    """Serves on one loopback address and port; counts requests by path."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.port = 0
        self.hits: Counter[str] = Counter()
        self.seen: list[dict[str, str]] = []  # headers of each request, names in lower case
        self.pages: dict[str, bytes] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, path: str, host: str = "") -> str:
        return f"http://{host or self.address}:{self.port}{path}"

    def page(
        self, path: str, body: bytes, kind: str = "text/html; charset=utf-8", status: str = "200 OK", **headers: str
    ) -> str:
        """Serve ``body`` at ``path``; underscores in names of headers are hyphens. Returns its URL."""
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.pages[path] = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        return self.url(path)

    def redirect(self, path: str, to: str, status: int = 302) -> str:
        return self.page(path, b"", status=f"{status} Found", Location=to)

    def packed(self, path: str, size_bytes: int) -> str:
        """A page of zeros, packed a thousand times smaller."""
        return self.page(path, gzip.compress(bytes(size_bytes)), "text/plain", Content_Encoding="gzip")

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, self.address, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted connections are closed in the next turn of the loop

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._page(reader, writer)
        finally:
            writer.transport.abort()

    async def _page(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            self.hits[path] += 1
            self.seen.append({k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)})
            match path:
                case "/silent":
                    await asyncio.sleep(60)
                case "/endless":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
                    while True:
                        writer.write(b"more and more " * 1000)
                        await writer.drain()
                case "/trickle":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n")
                    while True:
                        writer.write(b".")
                        await writer.drain()
                        await asyncio.sleep(0.05)
                case "/headers":
                    writer.write(b"HTTP/1.1 200 OK\r\n")
                    while True:
                        writer.write(b"X-More: and more\r\n" * 100)
                        await writer.drain()
                case "/garbage":
                    writer.write(b"\x00\xff not http at all\r\n\r\n")
                case "/cut":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
                case _:
                    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
                    writer.write(self.pages.get(path, missing))
            await writer.drain()
            writer.close()
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(*addresses: str) -> AsyncIterator[list[Web]]:
    """A web server on each of these loopback addresses."""
    webs = [Web(address) for address in addresses]
    for web in webs:
        await web.start()
    try:
        yield webs
    finally:
        for web in webs:
            await web.stop()


class Names(AbstractResolver):
    """Resolves from a table; where a name has several answers, each question takes the next one."""

    def __init__(self, **table: list[list[str]]) -> None:
        self.table = {name.replace("_", "."): iter(answers) for name, answers in table.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        answers: Iterator[list[str]] = self.table.get(host, iter(()))
        addresses = next(answers, None)
        if addresses is None:
            raise OSError(f"no such name: {host}")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=_family(address), proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing to close."""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
