"""The preparer process: fetches the sources that requests name, many at a time, and has them parsed.

A child (:mod:`obatchd.child`) of the daemon; with it end the processes that parse. Nothing it knows is lost with it:
wishes that it had not answered are told again to its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import traceback
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Never

import msgspec
from aiohttp.abc import AbstractResolver
from yarl import URL

from obatchd.context import compose
from obatchd.context.cache import SourceCache
from obatchd.context.compose import Source
from obatchd.context.fetch import Fetcher
from obatchd.context.model import Alive, Context, Prepared, Rules, ToPreparer, Wish, asked_text, to_preparer
from obatchd.context.parsing import Document, Parsed, Text, fork_parser, parsed
from obatchd.errors import SourceError
from obatchd.frames import Channel
from obatchd.jobs.formats.request import parse_request
from obatchd.settings.tables.context import ContextSettings

_PARSERS = 2
_AT_A_TIME = 32  # requests of one owner in preparation: slow sources of one hold up no other
_ALIVE_S = 1.0
_Having = Coroutine[Any, Any, tuple[Text, dict[str, Any]]]  # the text, and what is recorded of its origin
_FILE_TYPES = {".pdf": "application/pdf", ".html": "text/html", ".htm": "text/html", ".md": "text/markdown",
               ".txt": "text/plain", ".csv": "text/csv", ".json": "application/json"}  # fmt: skip


class ParserPool:
    """The processes that parse, each given one document at a time."""

    def __init__(self, channels: Iterable[Channel[Parsed]]) -> None:
        self._free: asyncio.Queue[Channel[Parsed]] = asyncio.Queue()
        for channel in channels:
            self._free.put_nowait(channel)

    async def parse(self, document: Document) -> Text:
        """The document's text; raises SourceError where there is none, or its parser did not end well."""
        channel = await self._free.get()
        try:
            channel.send(document)
            answer = await channel.receive()
        except ConnectionError:
            # Not a child but their parent is gone, which only somebody outside can have killed: begin anew.
            os._exit(1)
        self._free.put_nowait(channel)
        if answer.code:
            raise SourceError(answer.message, code=answer.code)
        return Text(answer.title, answer.text)


class Preparer:
    """Wishes in, prepared requests out."""

    def __init__(
        self,
        channel: Channel[ToPreparer],
        rules: ContextSettings,
        cache_dir: Path,
        parsers: ParserPool,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._channel = channel
        self._rules = rules
        self._parsers = parsers
        self._fetcher = Fetcher(rules, SourceCache(cache_dir, rules.cache_bytes), self._parse, resolver)
        self._turns: dict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_AT_A_TIME))
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the socket closes."""
        alive = asyncio.create_task(self._say_alive())
        with contextlib.suppress(ConnectionError):
            while True:
                message = await self._channel.receive()
                if isinstance(message, Rules):
                    self._rules = ContextSettings.model_validate(message.settings)
                    self._fetcher.apply(self._rules)
                else:
                    task = asyncio.create_task(self._fulfil(message))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        alive.cancel()

    async def _say_alive(self) -> None:
        while True:
            self._channel.send(Alive())
            await asyncio.sleep(_ALIVE_S)

    async def _fulfil(self, wish: Wish) -> None:
        try:
            async with self._turns[wish.owner]:
                context = await self._context(wish)
            answer = Prepared(wish.job, wish.line, msgspec.msgpack.encode(context))
        except SourceError as error:
            answer = Prepared(wish.job, wish.line, code=error.code, message=error.message)
        except Exception as error:  # noqa: BLE001 - a defect must cost one request, and be seen
            traceback.print_exc()
            answer = Prepared(wish.job, wish.line, code="preparer_defect", message=f"{type(error).__name__}: {error}")
        self._channel.send(answer)

    async def _context(self, wish: Wish) -> Context:
        rules = self._rules
        request = parse_request(wish.raw)
        urls = compose.named_urls(request, from_links=rules.from_links) if request.embed is None else []
        count = len(urls) + len(request.files)
        if not count or request.embed is not None:
            return Context(None, [], False)
        if count > rules.max_sources:
            raise SourceError(
                f"it names {count} sources, more than {rules.max_sources} (max_sources)", code="too_many_sources"
            )
        work = [self._source("url", str(url), self._page(wish.owner, url)) for url in urls]
        work += [self._source("file", name, self._file(wish.folder, name)) for name in request.files]
        found = await asyncio.gather(*work)
        text = compose.full_prompt(asked_text(request), [source for source, _ in found])
        return Context(text, [about for _, about in found], rules.keep_full_prompt or wish.keep_full_prompt)

    async def _source(self, kind: str, name: str, having: _Having) -> tuple[Source, dict[str, Any]]:
        """A source and its record; one that cannot be had is a note, or fails the request: as the rules say."""
        about: dict[str, Any] = {kind: name}
        try:
            text, found = await having
        except SourceError as error:
            if self._rules.on_error == "fail":
                raise SourceError(f"{name}: {error.message}", code=error.code) from None
            return Source(name, "", "", False, error.message), about | {"code": error.code, "message": error.message}
        limit = self._rules.max_characters
        cut = len(text.text) > limit
        about |= found | {"title": text.title, "characters": min(len(text.text), limit), "truncated": cut}
        return Source(name, text.title, text.text[:limit], cut), about

    async def _page(self, owner: int, url: URL) -> tuple[Text, dict[str, Any]]:
        fetched = await self._fetcher.fetch(owner, url)
        moved = {"fetched_from": fetched.url} if fetched.url != str(url) else {}
        return fetched.text, moved | {"cached": fetched.cached}

    async def _file(self, folder: str, name: str) -> tuple[Text, dict[str, Any]]:
        content = await asyncio.to_thread(self._read, folder, name)
        return await self._parse(content, _FILE_TYPES.get(Path(name).suffix.lower(), ""), ""), {}

    def _read(self, folder: str, name: str) -> bytes:
        if not folder:
            raise SourceError("a file can be a source only in a dropped folder that holds it", code="file_forbidden")
        if not name or "/" in name or "\0" in name or name.startswith("."):
            raise SourceError(f"{name!r} is no file directly in the folder", code="file_forbidden")
        try:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{name} cannot be read: {error.strerror}", code="file_unreadable") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)  # open() would refuse a folder, and leave it open
            raise SourceError(f"{name} is no regular file", code="file_forbidden")
        with open(descriptor, "rb") as file:
            content = file.read(self._rules.max_bytes + 1)
        if len(content) > self._rules.max_bytes:
            raise SourceError(f"it has more than {self._rules.max_bytes} bytes (max_bytes)", code="source_too_large")
        return content

    async def _parse(self, content: bytes, media_type: str, charset: str) -> Text:
        rules = self._rules
        limits = rules.max_characters, rules.parse_timeout_s, rules.parse_memory_bytes
        return await self._parsers.parse(Document(content, media_type, charset, *limits))


def main(connection: socket.socket, cache_dir: Path) -> None:
    """The work of the process."""
    sockets: list[socket.socket] = []
    for _ in range(_PARSERS):  # before the loop, which may start threads
        sockets.append(fork_parser([connection, *sockets]))
    asyncio.run(_serve(connection, cache_dir, sockets))


async def _serve(connection: socket.socket, cache_dir: Path, sockets: list[socket.socket]) -> Never:
    parsers = ParserPool([await Channel.open(one, parsed) for one in sockets])
    channel = await Channel.open(connection, to_preparer)
    first = await channel.receive()
    assert isinstance(first, Rules)
    await Preparer(channel, ContextSettings.model_validate(first.settings), cache_dir, parsers).run()
    # Here and not after the loop is closed, which would wait for files that are being read.
    os._exit(0)
