"""A line between two programs that can be cut, made slow, and healed: a TCP forwarder in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import attrs

_CHUNK_BYTES = 64 * 1024
_WAITING_CHUNKS = 64  # of one direction of one connection; then its sender has to wait


@attrs.define(eq=False)
class Line:
    """Forwards ``127.0.0.1:port`` to ``127.0.0.1:target``. Its methods are called from the thread of the test.

    A line that is *cut* behaves as a network does whose cable was pulled: connections stay, nothing arrives, and what
    was sent arrives after it *healed*. One that is *broken* ends its connections, and each new one at once.
    """

    port: int
    target: int
    delay_s: float = 0.0  # of what is sent from now on, in each direction
    bytes_per_s: float = float("inf")  # of each direction of each connection
    carried_bytes: int = 0  # both directions
    connections: int = 0  # made so far
    _loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.new_event_loop, init=False)
    _open: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)  # cleared while it is cut
    _is_broken: bool = attrs.field(default=False, init=False)
    _writers: set[asyncio.StreamWriter] = attrs.field(factory=set, init=False)
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)

    def cut(self) -> None:
        """Carry nothing until it is healed; new connections are made and hear nothing."""
        self._call(self._set_open(value=False))

    def break_(self) -> None:
        """End all connections, and each new one at once, until it is healed."""
        self._call(self._break())

    def heal(self) -> None:
        """As at first, and with what was held back."""
        self.delay_s, self.bytes_per_s, self._is_broken = 0.0, float("inf"), False
        self._call(self._set_open(value=True))

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _set_open(self, *, value: bool) -> None:
        if value:
            self._open.set()
        else:
            self._open.clear()

    async def _break(self) -> None:
        self._is_broken = True
        for writer in list(self._writers):
            writer.transport.abort()

    def run(self, ready: threading.Event) -> None:
        """Forward until ``stop``; the body of its thread."""
        asyncio.set_event_loop(self._loop)
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serve(ready))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._open.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in list(self._writers):
                writer.transport.abort()

    def stop(self) -> None:
        """End the thread."""

        def cancel() -> None:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(cancel)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with self._both(reader, writer) as pairs, asyncio.TaskGroup() as group:
                for source, sink in pairs:
                    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING_CHUNKS)
                    group.create_task(self._take(source, waiting))
                    group.create_task(self._deliver(waiting, sink))
        except* OSError:
            pass
        except* asyncio.CancelledError:  # the line ends; asyncio would log it as a defect of the callback
            pass
        finally:
            self._tasks.discard(task)

    @contextlib.asynccontextmanager
    async def _both(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
        """The two directions of a connection, once it got through; closed at the end."""
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            if self._is_broken:
                raise ConnectionResetError
            far, other = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(other)
            self.connections += 1
            yield [(reader, other), (far, writer)]
        finally:
            for end in (writer, other):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _take(self, source: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"first"
        while data:
            data = await source.read(_CHUNK_BYTES)
            await self._open.wait()
            await waiting.put((time.monotonic() + self.delay_s, data))

    async def _deliver(self, waiting: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        while True:
            due_s, data = await waiting.get()
            if (left_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(left_s)
            await self._open.wait()
            if not data:
                sink.close()
                return
            sink.write(data)
            await sink.drain()
            self.carried_bytes += len(data)
            if self.bytes_per_s != float("inf"):
                await asyncio.sleep(len(data) / self.bytes_per_s)


@contextlib.contextmanager
def line_to(target: int, port: int) -> Iterator[Line]:
    """A line to the port ``target`` of this machine, until the end of the block."""
    line = Line(port, target)
    ready = threading.Event()
    thread = threading.Thread(target=line.run, args=(ready,), name=f"line-{port}")
    thread.start()
    try:
        assert ready.wait(5), "the forwarder did not start"
        yield line
    finally:
        line.stop()
        thread.join(10)
        assert not thread.is_alive(), "the forwarder did not end"
