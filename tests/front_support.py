"""A proxy in front of an Ollama server, with real sockets: it passes on what it is not told to answer itself."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import aiohttp
from aiohttp import web


class Page(NamedTuple):
    """An answer of the proxy's own."""

    status: int
    body: bytes = b"<html><head><title>not Ollama</title></head></html>"
    headers: tuple[tuple[str, str], ...] = ()


class Front:
    """Runs in a thread. ``pages`` by path may be changed at any time; ``asked`` counts requests by path."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.pages: dict[str, Page] = {}
        self.asked: Counter[str] = Counter()
        self.url = ""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        body = await request.read()
        if (page := self.pages.get(request.path)) is not None:
            return web.Response(status=page.status, body=page.body, headers=dict(page.headers))
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, self.upstream + request.path_qs, data=body) as answer,
        ):
            response = web.StreamResponse(status=answer.status)
            with contextlib.suppress(ConnectionResetError):  # the client is gone, as clients of daemons that die are
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            return response

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application(client_max_size=1024**3)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()


@contextlib.contextmanager
def front_of(upstream: str) -> Iterator[Front]:
    """A proxy in front of ``upstream``."""
    front, ready, loop = Front(upstream), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(front.serve(ready, stop)), daemon=True)
    thread.start()
    try:
        assert ready.wait(10)
        yield front
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
