"""The process that stands for Ollama's runner: the child of ``serve`` that holds a model.

As the real one it lives in the session and process group of ``serve``, survives its SIGKILL, ignores SIGTERM, and
takes everything in flight with it when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio import Future, TimerHandle
from collections.abc import Callable

_ORPHAN_LIMIT_S = 600
# Unlike the real one, an orphan ends by itself after ten minutes, so that a forgotten test leaves nothing behind. The
# real one inherits that SIGUSR1 is blocked; uvloop unblocks all signals in what it starts.
_BODY = (
    "import os, signal, time; "
    "[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]; "
    "parent = os.getppid(); any(time.sleep(5) for _ in iter(lambda: os.getppid() == parent, False)); "
    f"time.sleep({_ORPHAN_LIMIT_S})"
)


class RunnerGone(Exception):
    """The runner died under a request."""


class RunnerProcess:
    """A runner child and the requests that sleep on it."""

    def __init__(self, process: asyncio.subprocess.Process, on_death: Callable[[RunnerProcess], None]) -> None:
        self.pid = process.pid
        self.dead = False
        self.wedged = False
        self._process = process
        self._on_death = on_death
        self._sleepers: set[Future[None]] = set()
        self._watch = asyncio.create_task(self._wait())

    @classmethod
    async def start(cls, model: str, digest: str, on_death: Callable[[RunnerProcess], None]) -> RunnerProcess:
        arguments = ["obatchd.simulator.ollama", "runner", "--model", f"sha256-{digest}", "--name", model]
        # No pipe: an orphan would keep the log of a dead server open.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _BODY, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return cls(process, on_death)

    async def pause(self, seconds: float | None) -> None:
        """Sleep on the runner; for ever with ``None`` or when it is wedged.

        Raises:
            RunnerGone: it died before or meanwhile.
        """
        if seconds is not None:
            await self._sleep(seconds)
        if seconds is None or self.wedged:
            await self._sleep(None)

    async def _sleep(self, seconds: float | None) -> None:
        if self.dead:
            raise RunnerGone
        if seconds is not None and seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        future: Future[None] = loop.create_future()
        timer: TimerHandle | None = None if seconds is None else loop.call_later(seconds, _wake, future)
        self._sleepers.add(future)
        try:
            await future
        finally:
            self._sleepers.discard(future)
            if timer is not None:
                timer.cancel()
        if self.dead:
            raise RunnerGone

    def kill(self) -> None:
        """SIGKILL, as Ollama ends its runners; requests that sleep on it fail when the death is noticed."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> None:
        await asyncio.shield(self._watch)

    async def _wait(self) -> None:
        await self._process.wait()
        self.dead = True
        for future in self._sleepers:
            _wake(future)
        self._on_death(self)


def _wake(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)
