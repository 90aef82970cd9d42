"""The phases of a run: which loads are on its GPUs, from one exchange of loads to the next.

The phase follows from the time under load alone, so that a later daemon goes on with the same one. An exchange takes
time, in which nothing is asked of a GPU; that is recorded, and counts neither as load nor as time of the run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import attrs

from obatchd import log
from obatchd.burnin.journal.journal import RecordWriter
from obatchd.burnin.journal.records import PhaseBegun
from obatchd.burnin.run.checker import Checks
from obatchd.burnin.run.plan import JOBS, MODEL, STRESS, phase_at
from obatchd.burnin.run.ports import Load, RunServer
from obatchd.burnin.run.recording import Recording
from obatchd.burnin.run.stressing import StressLoad
from obatchd.documents.burnin.plan import Phase, Plan
from obatchd.errors import ObatchError

_log = log.get(__name__)


@attrs.define(eq=False)
class Phases:
    """Exchanges the loads of a run."""

    _plan: Plan
    _recording: Recording
    _writer: RecordWriter
    _servers: Sequence[RunServer]
    _loads: Sequence[Load]  # models before what takes the memory that they leave
    _checks: Checks
    changing: bool = attrs.field(default=False, init=False)
    present: list[str] = attrs.field(factory=list, init=False)  # the loads of the present phase
    _number: int | None = attrs.field(default=None, init=False)

    @property
    def _phases(self) -> list[Phase]:
        """A plan of an earlier version has none: the model is the load."""
        return self._plan.phases or [Phase([JOBS if self._plan.with_jobs else MODEL], 1.0)]

    def is_due(self, elapsed_s: float) -> bool:
        """Whether it is time for the next phase."""
        return not self.changing and phase_at(self._phases, elapsed_s / self._plan.duration_s) != self._number

    async def change(self, elapsed_s: float) -> None:
        """Exchange the loads for those of the phase at this time under load."""
        number = phase_at(self._phases, elapsed_s / self._plan.duration_s)
        wanted, before = self._phases[number].loads, self.present
        await self._leave(before)
        if MODEL not in wanted and JOBS not in wanted:
            await self._unload()
        self.present, self._number = wanted, number
        if not _is_pure(before) and _is_pure(wanted):
            await self._measure_links()
        for names in ((MODEL,), STRESS):  # the second takes nearly all memory that the first leaves
            await self._begin([load for load in self._loads if set(names) & set(load.carries) & set(wanted)], wanted)
        await self._begin([load for load in self._loads if not {MODEL, *STRESS} & set(load.carries)], wanted)
        if wanted == [MODEL]:
            self._checks.begin()
        await self._count_from_now(between=False)
        if self._plan.phases:
            await self._writer.write(PhaseBegun(time.time(), number, wanted))
        _log.info("burnin_phase", run=self._plan.run, number=number, loads=",".join(wanted))

    def look(self) -> None:
        """See Load.look."""
        for load in self._loads:
            load.look()

    async def finish(self) -> None:
        """After the last phase: take the loads away."""
        await self._leave(self.present)

    async def close(self) -> None:
        """End all loads for good, however far an exchange is."""
        await self._checks.stop()
        await asyncio.gather(*(load.close() for load in self._loads))

    async def _leave(self, loads: Sequence[str]) -> None:
        self.changing = True
        await self._count_from_now(between=True)
        await self._checks.stop()
        await asyncio.gather(*(load.rest() for load in self._loads))
        if _is_pure(loads):
            await self._measure_links()

    async def _begin(self, loads: Sequence[Load], wanted: Sequence[str]) -> None:
        await asyncio.gather(*(load.begin(wanted) for load in loads if set(load.carries) & set(wanted)))

    async def _unload(self) -> None:
        """Free the memory of the GPUs, as far as that can be done."""
        for server in self._servers:
            try:
                await server.unload()
            except ObatchError as error:
                _log.warning("burnin_not_unloaded", server=server.id, code=error.code, reason=error.message)

    async def _measure_links(self) -> None:
        """One GPU after the other: they share what their links end in."""
        stressed = [load for load in self._loads if isinstance(load, StressLoad) and load.usable]
        for load in stressed:
            # Slices of a GPU have no peers.
            others = [other.gpu for other in stressed if other is not load]
            await load.measure_links([gpu for gpu in others if _is_whole(gpu) and _is_whole(load.gpu)])

    async def _count_from_now(self, *, between: bool) -> None:
        self.changing = between
        if (bucket := self._recording.recorder.exchange(between)) is not None:
            await self._writer.write(bucket)


def _is_whole(gpu: str) -> bool:
    return not gpu.startswith("MIG-")


def _is_pure(loads: Sequence[str]) -> bool:
    """Whether products or patterns have the GPUs for themselves."""
    return MODEL not in loads and any(load in STRESS for load in loads)
