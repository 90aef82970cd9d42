"""The load ``model``: keeps every slot of one server busy, and can empty it for an output check."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from obatchd import log
from obatchd.burnin.journal.recorder import Occupied
from obatchd.burnin.journal.records import Prepared
from obatchd.burnin.run.plan import MODEL
from obatchd.burnin.run.ports import Tested
from obatchd.burnin.run.recording import Recording
from obatchd.burnin.run.workload import Shape, Work
from obatchd.errors import ObatchError, ServerError
from obatchd.jobs.model import Profile
from obatchd.ollama.faults import Cause
from obatchd.tasks import TaskOwner, TaskSet, set_within

_log = log.get(__name__)
_TIMEOUT_S = 300.0  # far above the time that a request is meant to take
_PAUSE_S = 1.0  # after a failure
_RETRY_S = 2.0  # after a load that failed
_BEGIN_S = 300.0  # until nobody waits for it any more; it goes on trying
LOOK_S = 1.0
_NANO = 1e-9


class ModelLoad:
    """Requests to one server.

    Args:
        shape: shared by the servers that are compared.
        recording: counts the answers, and knows which GPUs are in danger.
    """

    carries = (MODEL,)

    def __init__(self, tested: Tested, profile: Profile, shape: Shape, recording: Recording, owner: TaskOwner) -> None:
        self.server, self.gpus, self.kind = tested
        self.profile = profile
        self._in_flight = 0
        self._exclusive = False  # emptied, or being emptied, for an output check
        self._shape = shape
        self._recording = recording
        self._numbers = itertools.count()
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._at_work = asyncio.Event()
        self._lock = asyncio.Lock()
        self._counted_s = time.monotonic()
        self._tasks = TaskSet(owner)

    @property
    def comparable(self) -> tuple[str, int, int]:
        """Equal for servers that do the same work on GPUs of one kind."""
        return self.kind, self.profile.context_length, self.server.slots

    async def begin(self, loads: Sequence[str]) -> None:
        if not len(self._tasks):
            self._at_work.clear()
            self.look()  # getting ready is no load
            self._tasks.start(self._keep(), f"burnin-load-{self.server.id}")
        await set_within(_BEGIN_S, self._at_work)

    async def rest(self) -> None:
        await self._tasks.stop()
        self.look()

    async def close(self) -> None:
        await self.rest()

    async def _keep(self) -> None:
        """Load the server whenever it is up, over its restarts."""
        server = self.server
        while not self._urgent:
            while not server.ready_for_test:
                await asyncio.sleep(LOOK_S / 4)
            try:
                await server.load(self.profile)
            except ObatchError as error:
                _log.warning("burnin_load_failed", server=server.id, code=error.code, reason=error.message)
                await asyncio.sleep(_RETRY_S)
                continue
            running = asyncio.create_task(self._run())
            self._at_work.set()
            try:
                while self._can_go_on and not running.done():
                    await asyncio.sleep(LOOK_S / 4)
                if running.done():
                    running.result()  # it never ends but by a defect
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        self._at_work.set()

    @property
    def _can_go_on(self) -> bool:
        return self.server.ready_for_test and self.server.loaded == self.profile and not self._urgent

    @property
    def _urgent(self) -> bool:
        """Whether the load must end at once: it could hurt the hardware, or no answer can be trusted."""
        return any(gpu in self._recording.watch.urgent for gpu in self.gpus)

    async def _run(self) -> None:
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
            self.look()
            self._exclusive = True
            try:
                await self._idle.wait()
                yield
            finally:
                self.look()
                self._exclusive = False
                self._open.set()

    def look(self) -> None:
        now_s = time.monotonic()
        span_s, self._counted_s = now_s - self._counted_s, now_s
        busy = min(self._in_flight, self.server.slots)
        occupied = Occupied(busy * span_s, span_s if self._in_flight else 0.0, 0.0)
        if self._exclusive:
            occupied = Occupied(0.0, 0.0, span_s)
        for gpu in self.gpus:
            self._recording.recorder.loaded(gpu, occupied)

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
                self._recording.recorder.failed(gpu)
            self.server.fault(f"burn-in: {error.message}")
            return True
        self.server.progress()
        self._shape.learn(
            work, answer.prompt_eval_count, answer.prompt_eval_duration * _NANO,
            answer.eval_count, answer.eval_duration * _NANO,
        )  # fmt: skip
        for gpu in self.gpus:
            self._recording.recorder.answered(gpu, tokens=answer.eval_count, prompt_tokens=answer.prompt_eval_count)
        return False

    def _enter(self, change: int) -> None:
        self.look()
        self._in_flight += change
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()


def loads(
    tested: Iterable[Tested],
    prepared: Mapping[str, Prepared],
    duration_s: float,
    recording: Recording,
    owner: TaskOwner,
) -> list[ModelLoad]:
    """A load for each server that is ready, and has a GPU."""
    made: list[ModelLoad] = []
    shapes: dict[tuple[str, int], Shape] = {}
    for one in tested:
        ready = prepared.get(one.server.id)
        if ready is not None and not ready.problem and one.gpus:
            context = ready.context_length
            shape = shapes.setdefault((one.kind, context), Shape(context, duration_s))
            made.append(ModelLoad(one, Profile(ready.model, context), shape, recording, owner))
    return made
