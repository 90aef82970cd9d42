"""Keeps every slot of one server busy, and can empty it for an output check."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

from obatchd import log
from obatchd.burnin.journal.recorder import Occupied
from obatchd.burnin.run.workload import Shape, Work
from obatchd.errors import ServerError
from obatchd.jobs.model import Profile
from obatchd.ollama.api import Generated, OllamaApi
from obatchd.ollama.faults import Cause

_log = log.get(__name__)
_TIMEOUT_S = 300.0  # far above the time that a request is meant to take
_PAUSE_S = 1.0  # after a failure
_NANO = 1e-9


class LoadedServer(Protocol):
    """The part of a server that a load needs."""

    id: str
    slots: int

    @property
    def api(self) -> OllamaApi: ...
    def load_options(self, profile: Profile) -> dict[str, Any]: ...
    def progress(self) -> None: ...
    def fault(self, reason: str) -> None: ...


class LoadListener(Protocol):
    """Hears of the requests of a load; :class:`obatchd.burnin.run.events.EventRecorder`."""

    def answered(self, server: str, answer: Generated) -> None:
        """The server with this id answered a request."""

    def request_failed(self, server: str) -> None:
        """The server with this id failed at a request."""


class Load:
    """The load of one server.

    Args:
        shape: shared by the servers that are compared.
    """

    def __init__(
        self,
        server: LoadedServer,
        profile: Profile,
        shape: Shape,
        listener: LoadListener,
    ) -> None:
        self.server = server
        self.profile = profile
        self.in_flight = 0
        self.exclusive = False  # emptied, or being emptied, for an output check
        self._shape = shape
        self._listener = listener
        self._numbers = itertools.count()
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._lock = asyncio.Lock()
        self._occupied = Occupied(0.0, 0.0, 0.0)
        self._counted_s = time.monotonic()

    async def run(self) -> None:
        """Load the server until cancelled. One request more than it has slots, so that no slot waits for the next."""
        tasks = [asyncio.create_task(self._work()) for _ in range(self.server.slots + 1)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Nothing else is in flight on the server inside of this."""
        async with self._lock:
            self._open.clear()
            self._count()
            self.exclusive = True
            try:
                await self._idle.wait()
                yield
            finally:
                self._count()
                self.exclusive = False
                self._open.set()

    def occupied(self) -> Occupied:
        """How the time since the last call was spent."""
        self._count()
        taken, self._occupied = self._occupied, Occupied(0.0, 0.0, 0.0)
        return taken

    async def _work(self) -> None:
        while True:
            await self._open.wait()
            self._enter(1)
            try:
                failed = await self._one(self._shape.work(next(self._numbers)))
            finally:
                self._enter(-1)
            if failed:
                await asyncio.sleep(_PAUSE_S)

    async def _one(self, work: Work) -> bool:
        """Whether it failed. A prompt that was too long is our own mistake and no failure."""
        options = {**self.server.load_options(self.profile), "num_predict": work.answer_tokens, "temperature": 0.8}
        try:
            answer = await self.server.api.generate(self.profile.model, work.prompt, options, _TIMEOUT_S)
        except ServerError as error:
            if error.code == Cause.CONTEXT_EXCEEDED.code:
                self._shape.too_long()
                return False
            _log.warning("burnin_request_failed", server=self.server.id, code=error.code, reason=error.message)
            self._listener.request_failed(self.server.id)
            self.server.fault(f"burn-in: {error.message}")
            return True
        self.server.progress()
        self._shape.learn(
            work, answer.prompt_eval_count, answer.prompt_eval_duration * _NANO,
            answer.eval_count, answer.eval_duration * _NANO,
        )  # fmt: skip
        self._listener.answered(self.server.id, answer)
        return False

    def _enter(self, change: int) -> None:
        self._count()
        self.in_flight += change
        if self.in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    def _count(self) -> None:
        now_s = time.monotonic()
        span_s, self._counted_s = now_s - self._counted_s, now_s
        slot_s, loaded_s, canary_s = self._occupied
        if self.exclusive:
            self._occupied = Occupied(slot_s, loaded_s, canary_s + span_s)
        elif self.in_flight:
            busy = min(self.in_flight, self.server.slots)
            self._occupied = Occupied(slot_s + busy * span_s, loaded_s + span_s, canary_s)
