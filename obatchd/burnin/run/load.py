"""Keeps every slot of one server busy, and can empty it for an output check."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Mapping

from obatchd import log
from obatchd.burnin.journal.recorder import Occupied, Recorder
from obatchd.burnin.journal.records import Prepared
from obatchd.burnin.run.ports import Tested
from obatchd.burnin.run.workload import Shape, Work
from obatchd.errors import ServerError
from obatchd.jobs.model import Profile
from obatchd.ollama.faults import Cause

_log = log.get(__name__)
_TIMEOUT_S = 300.0  # far above the time that a request is meant to take
_PAUSE_S = 1.0  # after a failure
_NANO = 1e-9


class Load:
    """The load of one server.

    Args:
        shape: shared by the servers that are compared.
        recorder: counts the answers.
    """

    def __init__(self, tested: Tested, profile: Profile, shape: Shape, recorder: Recorder) -> None:
        self.server, self.gpus, self.kind = tested
        self.profile = profile
        self._in_flight = 0
        self._exclusive = False  # emptied, or being emptied, for an output check
        self._shape = shape
        self._recorder = recorder
        self._numbers = itertools.count()
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._lock = asyncio.Lock()
        self._counted_s = time.monotonic()

    @property
    def comparable(self) -> tuple[str, int, int]:
        """Equal for servers that do the same work on GPUs of one kind."""
        return self.kind, self.profile.context_length, self.server.slots

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
            self.count()
            self._exclusive = True
            try:
                await self._idle.wait()
                yield
            finally:
                self.count()
                self._exclusive = False
                self._open.set()

    def count(self) -> None:
        """Tell the recorder how the time since the last call was spent."""
        now_s = time.monotonic()
        span_s, self._counted_s = now_s - self._counted_s, now_s
        busy = min(self._in_flight, self.server.slots)
        occupied = Occupied(busy * span_s, span_s if self._in_flight else 0.0, 0.0)
        if self._exclusive:
            occupied = Occupied(0.0, 0.0, span_s)
        for gpu in self.gpus:
            self._recorder.loaded(gpu, occupied)

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
            for gpu in self.gpus:
                self._recorder.failed(gpu)
            self.server.fault(f"burn-in: {error.message}")
            return True
        self.server.progress()
        self._shape.learn(
            work, answer.prompt_eval_count, answer.prompt_eval_duration * _NANO,
            answer.eval_count, answer.eval_duration * _NANO,
        )  # fmt: skip
        for gpu in self.gpus:
            self._recorder.answered(gpu, tokens=answer.eval_count, prompt_tokens=answer.prompt_eval_count)
        return False

    def _enter(self, change: int) -> None:
        self.count()
        self._in_flight += change
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()


def loads(
    tested: Iterable[Tested], prepared: Mapping[str, Prepared], duration_s: float, recorder: Recorder
) -> list[Load]:
    """A load for each server that is ready, and has a GPU."""
    made: list[Load] = []
    shapes: dict[tuple[str, int], Shape] = {}
    for one in tested:
        ready = prepared.get(one.server.id)
        if ready is not None and not ready.problem and one.gpus:
            context = ready.context_length
            shape = shapes.setdefault((one.kind, context), Shape(context, duration_s))
            made.append(Load(one, Profile(ready.model, context), shape, recorder))
    return made
