"""A chat service with incoming webhooks, on this host."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


class Chat:
    """Keeps what it gets, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []  # path and message
        self.answers: list[tuple[int, str]] = []  # the next ones; then 200
        self.port = 0

    def url(self, secret: str) -> str:
        return f"http://127.0.0.1:{self.port}/{secret}"

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((request.path, await request.json()))
        status, text = self.answers.pop(0) if self.answers else (200, "ok")
        return web.Response(status=status, text=text)


@contextlib.asynccontextmanager
async def chat() -> AsyncIterator[Chat]:
    """One that is there while the block runs."""
    service = Chat()
    application = web.Application()
    application.router.add_post("/{secret:.*}", service.take)
    server = TestServer(application)
    await server.start_server(access_log=None)  # the logs of a test hold what obatchd logs
    assert server.port is not None
    service.port = server.port
    try:
        yield service
    finally:
        await server.close()
