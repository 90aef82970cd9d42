"""Programs of other people as loads: gpu-burn on one GPU, DCGM's diagnostics on all of them at once.

They run as long as they run, one time after the other: a phase of theirs is over when its time is over and the
latest has ended. What is to be
believed of their output: :mod:`obatchd.burnin.stress.outside`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from obatchd import log
from obatchd.burnin.journal.records import OutsideEnded
from obatchd.burnin.run.ports import RunServer
from obatchd.burnin.run.recording import Recording
from obatchd.burnin.stress.outside import dcgm, gpu_burn
from obatchd.burnin.stress.outside.outcome import Outcome
from obatchd.documents.burnin.plan import Plan
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_AWAY = Outcome("not_done", "was ended early, because the GPU is in danger or was wanted for something else")


class Tester(Protocol):
    """One program."""

    name: str

    async def test(self, gpus: Sequence[str], seconds: float) -> Mapping[str, Outcome]:
        """What it finds about each GPU; ``seconds`` where the program takes as long as it is told."""


class GpuBurn:
    """gpu-burn."""

    name = "gpu-burn"

    async def test(self, gpus: Sequence[str], seconds: float) -> Mapping[str, Outcome]:
        return {gpu: await gpu_burn.burn(gpu_burn.find(), gpu, seconds) for gpu in gpus}


class Dcgm:
    """dcgmi diag."""

    name = "dcgm"

    async def test(self, gpus: Sequence[str], seconds: float) -> Mapping[str, Outcome]:
        return await dcgm.diagnose(dcgm.find(), gpus)


class ProgramLoad:
    """One program on some GPUs; ``servers`` are theirs."""

    def __init__(
        self,
        tester: Tester,
        gpus: Sequence[str],
        servers: Sequence[RunServer],
        plan: Plan,
        recording: Recording,
        owner: TaskOwner,
    ) -> None:
        self.carries = (tester.name,)
        self._tester = tester
        self._gpus = gpus
        self._servers = servers
        self._plan = plan
        self._recording = recording
        self._tasks = TaskSet(owner)
        self._counted_s = time.monotonic()
        self._running: asyncio.Future[Mapping[str, Outcome]] | None = None
        self._done = asyncio.Event()
        self._done.set()
        self._resting = False

    async def begin(self, loads: Sequence[str]) -> None:
        self._counted_s = time.monotonic()
        self._resting = False
        self._done.clear()
        self._tasks.start(self._test(), f"burnin-{self._tester.name}-{self._gpus[0]}")

    async def rest(self) -> None:
        """Returns when the program has ended: broken off it would have tested nothing."""
        self._resting = True
        await self._done.wait()

    async def close(self) -> None:
        await self._tasks.stop()

    def look(self) -> None:
        now_s = time.monotonic()
        span_s, self._counted_s = now_s - self._counted_s, now_s
        if self._done.is_set():
            return
        for gpu in self._gpus:
            self._recording.recorder.stressed(gpu, span_s)
        danger = any(gpu in self._recording.watch.urgent for gpu in self._gpus)
        if danger or not all(server.ready_for_test for server in self._servers):
            self._done.set()
            self._tell(dict.fromkeys(self._gpus, _AWAY))
            self._tasks.start(self._break_off(), f"burnin-{self._tester.name}-end")

    async def _break_off(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _test(self) -> None:
        """Again and again while there is time, unless it tests nothing."""
        while not self._done.is_set():
            outcomes = await self._once()
            if self._done.is_set():  # broken off
                return
            self._tell(outcomes)
            if self._resting or all(outcome.code == "not_done" for outcome in outcomes.values()):
                self._done.set()

    async def _once(self) -> Mapping[str, Outcome]:
        part = sum(phase.part for phase in self._plan.phases if self._tester.name in phase.loads)
        work = self._tester.test(self._gpus, self._plan.duration_s * part)
        running = self._running = asyncio.ensure_future(work)
        try:
            await asyncio.wait([running])
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return {} if running.cancelled() else running.result()

    def _tell(self, outcomes: Mapping[str, Outcome]) -> None:
        for gpu, outcome in outcomes.items():
            name = self._tester.name
            self._recording.note(OutsideEnded(time.time(), gpu, name, outcome.code, outcome.words))
            _log.info("burnin_program_ended", program=name, gpu=gpu, outcome=outcome.code, reason=outcome.words)
