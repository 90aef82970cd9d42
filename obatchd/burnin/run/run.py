"""One burn-in run in the daemon: takes its servers, prepares and loads them, records, and gives them back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import msgspec

from obatchd import log
from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Bucket, Ended, Loading, Record, StressEnded
from obatchd.burnin.report import report
from obatchd.burnin.run.checker import Checks
from obatchd.burnin.run.events import EventRecorder
from obatchd.burnin.run.load import ModelLoad, loads
from obatchd.burnin.run.phases import Phases
from obatchd.burnin.run.plan import MODEL, STRESS
from obatchd.burnin.run.ports import Load, RunHost, Tested
from obatchd.burnin.run.preparing import Preparer, take
from obatchd.burnin.run.programs import Dcgm, GpuBurn, ProgramLoad
from obatchd.burnin.run.recording import Recording
from obatchd.burnin.run.stressing import StressLoad
from obatchd.burnin.verdict import verdict
from obatchd.burnin.verdict.reasons import WRONG
from obatchd.documents.burnin.report import BurninGpu
from obatchd.tasks import TaskSet

_log = log.get(__name__)
LOOK_S = 1.0
RETEST_S = 1800.0  # load of the shortest run that ends a quarantine


class Run:
    """Carries out a plan; ``records`` are those of the run so far, its beginning at least."""

    def __init__(self, records: list[Record], file: journal.Journal, host: RunHost) -> None:
        begun = journal.begun(records)
        self.plan = begun.plan
        self.leaving = False  # the daemon ends: the servers are not to get other work in its last moments
        self._writer = journal.RecordWriter(records, file)
        self._host = host
        self._stop = asyncio.Event()
        self._stop_text = ""
        self._tasks = TaskSet(self)  # exchanges of loads
        self._defect: BaseException | None = None
        self._before_s = sum(record.span_s for record in records if isinstance(record, Bucket) and not record.between)
        known = {gpu.uuid: gpu for found in host.gpus_of.values() for gpu in found}
        gpus = {unit.uuid: known[unit.uuid] for unit in begun.units if unit.uuid in known}
        identities = {uuid: host.identity(gpu) for uuid, gpu in gpus.items()}
        limits = host.settings().gpu_health
        self._recording = Recording(self.plan, identities, limits, time.time(), journal.tracks(records))
        self._servers: dict[str, Tested] = {}
        for name in dict.fromkeys(unit.server for unit in begun.units if unit.server in host.servers):
            units = [unit for unit in begun.units if unit.server == name]
            present = [unit.uuid for unit in units if unit.uuid in gpus]
            self._servers[name] = Tested(host.servers[name], present, "+".join(unit.name for unit in units))
        self._checks = Checks(self.plan, self._recording, self)
        self._stress = self._stress_loads()
        self._phases = self._phases_of([])
        cards = {uuid: gpu.card for uuid, gpu in gpus.items()}
        self._events = EventRecorder(host, self._recording, self._servers, cards)
        for unit in begun.units:
            if unit.uuid not in gpus:
                self._events.gone(unit.uuid)

    @property
    def records(self) -> list[Record]:
        """Everything that is recorded of the run so far."""
        return self._writer.records

    @property
    def elapsed_s(self) -> float:
        """Seconds of load recorded, gaps left out."""
        return self._before_s + self._recording.recorder.elapsed_s if self.loading else 0.0

    @property
    def loading(self) -> bool:
        """Whether the load has begun."""
        return journal.loading_s(self.records) is not None

    @property
    def present_loads(self) -> list[str]:
        """Those of the present phase."""
        return self._phases.present

    def stop(self, text: str) -> None:
        """End the run before its time; the verdict is about the time until then."""
        self._stop_text = text
        self._stop.set()

    async def carry_out(self) -> None:
        """From taking the servers to giving them back. Cancelled, the run stays unfinished and a later daemon goes on.

        Returns when the last record is written.
        """
        plan = self.plan
        if plan.exclusive:
            self._host.keep_batch_away(True)
        ended: Ended | None = None
        try:
            if not plan.with_jobs:
                ended = await self._ready_or_stopped()
            if ended is None:
                if not self.loading:
                    await self._writer.write(Loading(time.time()))
                self._start_loading()
                ended = await self._record()
        finally:
            await self._tasks.stop()
            await asyncio.shield(self._phases.close())
            try:
                await asyncio.shield(self._close(ended))
            finally:  # also after a defect in the verdict
                for tested in self._servers.values() if not self.leaving and not plan.with_jobs else ():
                    tested.server.end_test()
                if plan.exclusive and not self.leaving:
                    self._host.keep_batch_away(False)

    async def _close(self, ended: Ended | None) -> None:
        """Write down the last records, and at the end of the run its verdict."""
        await self._writer.write(*self._recording.finish(time.time()))
        if ended is None:
            return
        document = await asyncio.to_thread(report.build, [*self.records, ended])
        verdicts = {gpu.uuid: gpu.verdict for gpu in document.gpus}
        await self._writer.write(msgspec.structs.replace(ended, verdict=document.verdict, verdicts=verdicts))
        _log.info("burnin_ended", run=self.plan.run, reason=ended.reason, verdict=document.verdict)
        if not self.plan.over_hosts:  # else the head tells it of all hosts at once
            self._host.finished(self.plan.run, document.verdict)
        self._condemn(document.gpus)
        await self._end_retests(verdicts if ended.reason == "completed" else {})

    def _condemn(self, gpus: Sequence[BurninGpu]) -> None:
        """Wrong results are seen by a burn-in alone, so it alone can keep the GPU from answering prompts."""
        known = {gpu.uuid: gpu for found in self._host.gpus_of.values() for gpu in found}
        for gpu in gpus:
            for reason in gpu.reasons:
                if reason.signal in WRONG and gpu.uuid in known:
                    self._host.quarantine(known[gpu.uuid], reason.text, gpu.action)

    def _is_retest(self, tested: Tested) -> bool:
        return any(gpu in self.plan.retest for gpu in tested.gpus)

    async def _end_retests(self, verdicts: dict[str, str]) -> None:
        """A GPU that passed a long enough run leaves its quarantine, any other goes back."""
        for name, tested in self._servers.items():
            if not self._is_retest(tested):
                continue
            passed = all(verdicts.get(gpu, "").startswith(verdict.Result.PASS) for gpu in tested.gpus)
            if passed and self.plan.duration_s >= RETEST_S:
                for gpu in self._host.gpus_of[name]:
                    self._host.release(gpu)
            else:
                short = f"; only a run of {RETEST_S / 60:g} minutes or more ends a quarantine" if passed else ""
                await tested.server.quarantine(f"in quarantine; burn-in {self.plan.run} did not release it{short}")

    # --- getting ready ----------------------------------------------------------------------------------------------

    async def _ready_or_stopped(self) -> Ended | None:
        task, stopped = asyncio.create_task(self._make_ready()), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                ready = journal.prepared(self.records).values()
                return (
                    None
                    if not ready or any(not each.problem for each in ready)
                    else Ended(time.time(), "failed", "no server could be made ready")
                )
            return Ended(time.time(), "stopped", self._stop_text)
        finally:
            for waiting in (task, stopped):
                waiting.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)

    async def _make_ready(self) -> None:
        _log.info("burnin_preparing", run=self.plan.run, servers=",".join(self._servers))
        tested, reason = list(self._servers.values()), f"burn-in {self.plan.run}"
        await asyncio.gather(*(take(one.server, reason, retest=self._is_retest(one)) for one in tested))
        if self.plan.phases and MODEL not in self.plan.loads:
            return
        if not self._servers.keys() <= journal.prepared(self.records).keys():  # else an earlier part of the run chose
            await Preparer(self.plan, self._host, self._writer).prepare(tested)
        ready = journal.prepared(self.records)
        models = loads(tested, ready, self.plan.duration_s, self._recording, self)
        self._phases = self._phases_of(models)
        if self.plan.canary_s:
            await self._checks.calibrate(models)

    def _stress_loads(self) -> list[StressLoad]:
        """Products and patterns, for each GPU on which they did not end in an earlier part of the run."""
        if not set(STRESS) & set(self.plan.loads):
            return []
        over = {record.gpu for record in self.records if isinstance(record, StressEnded)}
        return [
            StressLoad(gpu, server, self._host, self.plan, self._recording, self)
            for server, gpus, _ in self._servers.values()
            for gpu in gpus
            if gpu not in over
        ]

    def _programs(self) -> list[ProgramLoad]:
        """Programs of others: one process for all GPUs, or one for each."""
        found = []
        tested = [one for one in self._servers.values() if one.gpus]
        common = (self.plan, self._recording, self)
        if "dcgm" in self.plan.loads:
            gpus = [gpu for one in tested for gpu in one.gpus]
            found.append(ProgramLoad(Dcgm(), gpus, [one.server for one in tested], *common))
        if "gpu-burn" in self.plan.loads:
            found += [ProgramLoad(GpuBurn(), [gpu], [one.server], *common) for one in tested for gpu in one.gpus]
        return found

    def _phases_of(self, models: list[ModelLoad]) -> Phases:
        servers = [tested.server for tested in self._servers.values()]
        every: list[Load] = [*models, *self._stress, *self._programs()]
        return Phases(self.plan, self._recording, self._writer, servers, every, self._checks)

    # --- loading ----------------------------------------------------------------------------------------------------

    def _start_loading(self) -> None:
        self._events.strangers()
        self._recording.recorder.begin(time.time())
        _log.info("burnin_loading", run=self.plan.run, duration_s=self.plan.duration_s)
        for load in self._stress:
            load.start()

    def task_failed(self, name: str, error: BaseException) -> None:
        """A server is not loaded or not checked any more: the run ends, because its verdict would be about less."""
        self._defect = error
        self._stop.set()

    # --- recording --------------------------------------------------------------------------------------------------

    async def _record(self) -> Ended:
        while True:
            if self._phases.is_due(self.elapsed_s):
                self._tasks.start(self._phases.change(self.elapsed_s), "burnin-phase")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stop.wait()
            await self._look()
            if self._defect is not None:  # looked at last: it may have come while this was written
                raise self._defect
            if self._stop.is_set():
                return Ended(time.time(), "stopped", self._stop_text)
            if self.elapsed_s >= self.plan.duration_s:
                await self._phases.finish()
                return Ended(time.time(), "completed")

    async def _look(self) -> None:
        """Write down how it is now."""
        self._events.look()
        seen = self._events.seen()
        self._phases.look()
        if self.plan.with_jobs:
            self._events.count_batch(LOOK_S)
        await self._writer.write(*self._recording.look(time.time(), seen))
