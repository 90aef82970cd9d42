"""Our own small process pool: one worker per server, started through multiprocessing's forkserver.

``concurrent.futures.ProcessPoolExecutor`` breaks as a whole when one process dies; here a dead worker takes only its
own server's requests with it, and its replacement is back in some 10 ms because the forkserver has its imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

from obatchd import log
from obatchd.dispatch import protocol
from obatchd.dispatch.worker import worker

_log = log.get(__name__)
_JOIN_S = 2.0
# Imported once by the forkserver.
PRELOADED = ("obatchd.dispatch.worker.worker", "obatchd.gpus.probe_child", "obatchd.spool.response_process")


def forkserver_context() -> ForkServerContext:
    """The one forkserver of the daemon, with everything its children import preloaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


class WorkerHandle:
    """The main process's end of one worker.

    Args:
        name: the server's id, for logs.
        on_message: called for each message of the worker.
        on_exit: called once when the worker is gone, with a reason, unless it was closed on purpose.
    """

    def __init__(
        self,
        context: ForkServerContext,
        name: str,
        on_message: Callable[[protocol.ToMain], None],
        on_exit: Callable[[str], None],
    ) -> None:
        self._context = context
        self._name = name
        self._on_message = on_message
        self._on_exit = on_exit
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._closing = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process and listen to it."""
        ours, theirs = socket.socketpair()
        process = self._context.Process(target=worker.main, args=(theirs,), name=f"worker-{self._name}", daemon=True)
        try:
            await asyncio.to_thread(process.start)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process = process
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=2**20)
        self._task = asyncio.create_task(self._listen(reader), name=f"worker-{self._name}")
        _log.info("worker_started", server=self._name, pid=process.pid)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        reason = "its socket closed"
        try:
            async for message in protocol.from_worker(reader):
                self._on_message(message)
        except Exception as error:  # noqa: BLE001 - whatever one worker sends must not end the daemon
            reason = f"{type(error).__name__}: {error}"
            _log.exception("worker_failed", server=self._name)
        if self._writer is not None:
            self._writer.transport.abort()  # asyncio keeps its own end open after the other one has closed
        await asyncio.to_thread(self._reap)
        if not self._closing:
            code = self._process.exitcode if self._process else None
            _log.warning("worker_lost", server=self._name, reason=reason, exit_code=code)
            self._on_exit(reason)

    def _reap(self) -> None:
        process = self._process
        if process is None or process.pid is None:
            return
        process.join(0.5 if not self._closing else _JOIN_S)
        if process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join(_JOIN_S)

    def send(self, message: protocol.ToWorker) -> None:
        """Queue ``message``; a dead worker is noticed by its closed socket, not here."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(protocol.frame(message))

    def kill(self) -> None:
        """End a worker that hangs; it is then lost like one that died."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Close the socket, which ends the worker, and wait for it."""
        self._closing = True
        if self._writer is not None:
            self._writer.transport.abort()  # close() would wait until a worker that hangs has read what is buffered
        if self._task is not None:
            await self._task
