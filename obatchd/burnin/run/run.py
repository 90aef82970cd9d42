"""One burn-in run in the daemon: takes its servers, prepares and loads them, records, and gives them back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from obatchd import log
from obatchd.burnin.journal import journal
from obatchd.burnin.journal.recorder import Seen
from obatchd.burnin.journal.records import Bucket, Ended, Loading, Record
from obatchd.burnin.report import report
from obatchd.burnin.run.checker import Checker
from obatchd.burnin.run.events import EventRecorder
from obatchd.burnin.run.load import Load
from obatchd.burnin.run.ports import RunHost, RunServer
from obatchd.burnin.run.preparing import Preparer, take, up, up_soon
from obatchd.burnin.run.recording import Recording
from obatchd.burnin.run.watch import latest_tracks
from obatchd.burnin.run.workload import Shape
from obatchd.burnin.run.writing import RecordWriter
from obatchd.burnin.verdict import canary, verdict
from obatchd.documents.burnin import BurninGpu, Plan
from obatchd.errors import ObatchError
from obatchd.jobs.model import Profile
from obatchd.tasks import TaskSet

_log = log.get(__name__)
LOOK_S = 1.0
RETEST_S = 1800.0  # load of the shortest run that ends a quarantine
_RETRY_S = 2.0
_LOAD_PER_CHECK = 9.0  # time under load for each second of an output check: they are a tenth of a run at most


class Run:
    """Carries out a plan.

    Args:
        records: of the run so far; its beginning at least.
        file: takes new records.
        host: the daemon.
    """

    def __init__(self, records: list[Record], file: journal.Journal, host: RunHost) -> None:
        begun = journal.begun(records)
        self.plan: Plan = begun.plan
        self._writer = RecordWriter(records, file)
        self.leaving = False  # the daemon ends: the servers are not to get other work in its last moments
        self._units = begun.units
        self._host = host
        self._stop = asyncio.Event()
        self._stop_text = ""
        self._tasks = TaskSet(self)  # of the load and the output checks
        self._defect: BaseException | None = None
        self._before_s = sum(record.span_s for record in records if isinstance(record, Bucket))
        gpus = {gpu.uuid: gpu for found in host.gpus_of.values() for gpu in found}
        self._cards = {gpu.uuid: gpu.card for gpu in gpus.values()}
        identities = {
            unit.uuid: host.identity(gpus[unit.uuid]) for unit in self._units if unit.uuid in gpus
        }  # fmt: skip
        self._recording = Recording(self.plan, identities, host.health_limits(), time.time(), latest_tracks(records))
        self._gpus_of = {
            server: [unit.uuid for unit in self._units if unit.server == server and unit.uuid in identities]
            for server in dict.fromkeys(unit.server for unit in self._units)
        }
        self._servers = {name: host.servers[name] for name in self._gpus_of if name in host.servers}
        # GPUs of one kind get the same context, so that their speeds can be compared.
        self._kinds = {
            server: "+".join(unit.name for unit in self._units if unit.server == server) for server in self._gpus_of
        }
        self._loads: dict[str, Load] = {}
        self._checkers: dict[str, Checker] = {}
        self._events = EventRecorder(host, self._recording, self._servers, self._gpus_of, self._cards)
        for unit in self._units:
            if unit.uuid not in identities:
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

    def stop(self, text: str) -> None:
        """End the run before its time; the verdict is about the time until then."""
        self._stop_text = text
        self._stop.set()

    @property
    def servers(self) -> frozenset[str]:
        """Ids of the servers that are tested."""
        return frozenset(self._servers)

    async def carry_out(self) -> None:
        """From taking the servers to giving them back. Cancelled, the run stays unfinished and a later daemon goes on.

        Returns when the last record is written.
        """
        plan = self.plan
        reason = f"burn-in {plan.run}"
        if plan.exclusive:
            self._host.keep_batch_away(True)
        ended: Ended | None = None
        try:
            if not plan.with_jobs:
                ended = await self._or_stopped(self._make_ready(reason))
            if ended is None:
                if not self.loading:
                    await self._writer.write([Loading(time.time())])
                self._begin_recording()
                self._start_loading()
                ended = await self._record()
        finally:
            await self._tasks.stop()
            await asyncio.shield(self._close(ended))
            if not self.leaving:
                self._give_back()

    def _give_back(self) -> None:
        """Let the servers have batch work again."""
        if not self.plan.with_jobs:
            for server in self._servers.values():
                server.end_test()
        if self.plan.exclusive:
            self._host.keep_batch_away(False)

    async def _close(self, ended: Ended | None) -> None:
        """Write down the last records, and at the end of the run its verdict."""
        await self._writer.write(self._recording.finish(time.time()))
        if ended is None:
            return
        document = await asyncio.to_thread(report.build, [*self.records, ended])
        verdicts = {gpu.uuid: gpu.verdict for gpu in document.gpus}
        await self._writer.write([msgspec.structs.replace(ended, verdict=document.verdict, verdicts=verdicts)])
        _log.info("burnin_ended", run=self.plan.run, reason=ended.reason, verdict=document.verdict)
        self._host.finished(self.plan.run, document.verdict)
        self._condemn(document.gpus)
        await self._end_retests(verdicts if ended.reason == "completed" else {})

    def _condemn(self, gpus: Sequence[BurninGpu]) -> None:
        """Wrong output is seen by a burn-in alone, so it alone can keep the GPU from answering prompts."""
        known = {gpu.uuid: gpu for found in self._host.gpus_of.values() for gpu in found}
        for gpu in gpus:
            for reason in gpu.reasons:
                if reason.signal == verdict.CORRUPTION and gpu.uuid in known:
                    self._host.quarantine(known[gpu.uuid], reason.text, gpu.action)

    def _is_retest(self, server: str) -> bool:
        return any(gpu in self.plan.retest for gpu in self._gpus_of[server])

    async def _end_retests(self, verdicts: dict[str, str]) -> None:
        """A GPU that passed a long enough run leaves its quarantine, any other goes back."""
        for name, server in self._servers.items():
            if not self._is_retest(name):
                continue
            passed = all(verdicts.get(gpu, "").startswith(verdict.Result.PASS) for gpu in self._gpus_of[name])
            if passed and self.plan.duration_s >= RETEST_S:
                for gpu in self._host.gpus_of[name]:
                    self._host.release(gpu)
            else:
                short = f"; only a run of {RETEST_S / 60:g} minutes or more ends a quarantine" if passed else ""
                await server.quarantine(f"in quarantine; burn-in {self.plan.run} did not release it{short}")

    # --- getting ready ----------------------------------------------------------------------------------------------

    async def _or_stopped(self, work: Coroutine[Any, Any, None]) -> Ended | None:
        """Do ``work`` unless the run is stopped meanwhile."""
        task, stopped = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                usable = [p for p in journal.prepared(self.records).values() if not p.problem]
                return None if usable else Ended(time.time(), "failed", "no server could be made ready")
            return Ended(time.time(), "stopped", self._stop_text)
        finally:
            for waiting in (task, stopped):
                waiting.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)

    async def _make_ready(self, reason: str) -> None:
        _log.info("burnin_preparing", run=self.plan.run, servers=",".join(self._servers))
        await asyncio.gather(
            *(take(server, reason, retest=self._is_retest(name)) for name, server in self._servers.items())
        )
        if not self._servers.keys() <= journal.prepared(self.records).keys():  # else an earlier part of the run chose
            preparer = Preparer(self.plan, self._host, self._gpus_of, self._kinds, self._writer)
            await preparer.prepare(list(self._servers.values()))
        self._make_loads()
        if self.plan.canary_s:
            await asyncio.gather(*(self._calibrate(name) for name in self._checkers))
            self._find_outsiders()

    def _make_loads(self) -> None:
        shapes: dict[tuple[str, int], Shape] = {}
        for name, ready in journal.prepared(self.records).items():
            server = self._servers.get(name)
            if server is None or ready.problem or not self._gpus_of[name]:
                continue
            profile = Profile(ready.model, ready.context_length)
            shape = shapes.setdefault(
                (self._kinds[name], profile.context_length), Shape(profile.context_length, self.plan.duration_s)
            )
            load = self._loads[name] = Load(server, profile, shape, self._events)
            self._checkers[name] = Checker(load, self._gpus_of[name], self._recording)

    async def _calibrate(self, name: str) -> None:
        """Learn the answers of its output check; a server that is not up now goes without."""
        server = self._servers[name]
        try:
            await up_soon(server)
            await server.load(self._loads[name].profile)
        except ObatchError as error:
            _log.warning("burnin_not_calibrated", server=name, code=error.code, reason=error.message)
            return
        await self._checkers[name].calibrate(self.plan.canary_runs)

    # --- loading ----------------------------------------------------------------------------------------------------

    def _begin_recording(self) -> None:
        for load in self._loads.values():
            load.occupied()  # getting ready is no part of the run
        self._events.strangers()
        self._recording.recorder.begin(time.time())
        _log.info("burnin_loading", run=self.plan.run, duration_s=self.plan.duration_s)

    def _start_loading(self) -> None:
        for name, load in self._loads.items():
            self._tasks.start(self._keep_loaded(load), f"burnin-load-{name}")
        for place, name in enumerate(self._checkers if self.plan.canary_s else ()):
            self._tasks.start(self._check_regularly(place, name), f"burnin-check-{name}")

    def task_failed(self, name: str, error: BaseException) -> None:
        """A server is not loaded or not checked any more: the run ends, because its verdict would be about less."""
        self._defect = error
        self._stop.set()

    async def _keep_loaded(self, load: Load) -> None:
        """Load the server whenever it is up, over its restarts."""
        server: RunServer = self._servers[load.server.id]
        while not self._urgent(server.id):
            await up(server)
            try:
                await server.load(load.profile)
            except ObatchError as error:
                _log.warning("burnin_load_failed", server=server.id, code=error.code, reason=error.message)
                await asyncio.sleep(_RETRY_S)
                continue
            running = asyncio.create_task(load.run())
            try:
                while (
                    server.ready_for_test
                    and server.loaded == load.profile
                    and not running.done()
                    and not self._urgent(server.id)
                ):
                    await asyncio.sleep(LOOK_S / 4)
                if running.done():
                    running.result()  # it never ends but by a defect
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    def _urgent(self, server: str) -> bool:
        """Whether the load of a server must end at once: it could hurt the hardware, or no answer can be trusted."""
        return any(gpu in self._recording.watch.urgent for gpu in self._gpus_of[server])

    def _siblings(self, name: str) -> list[str]:
        ready = journal.prepared(self.records)
        mine = ready[name]
        return [
            other
            for other in self._checkers
            if self._kinds[other] == self._kinds[name]
            and (ready[other].context_length, self._servers[other].slots)
            == (mine.context_length, self._servers[name].slots)
        ]

    def _find_outsiders(self) -> None:
        for names in {tuple(self._siblings(name)) for name in self._checkers}:
            references = {
                name: reference for name in names if (reference := self._checkers[name].reference) is not None
            }
            if (different := canary.outsider(references)) is not None:
                self._checkers[different].differs_from_all(len(references) - 1)

    async def _check_regularly(self, place: int, name: str) -> None:
        # Not all at once: the others are to stay under load meanwhile.
        await asyncio.sleep(self.plan.canary_s * (place + 1) / (len(self._checkers) + 1))
        while True:
            siblings = [self._checkers[other] for other in self._siblings(name) if other != name]
            begun_s = time.monotonic()
            await self._checkers[name].check(siblings)
            took_s = time.monotonic() - begun_s
            await asyncio.sleep(max(self.plan.canary_s, _LOAD_PER_CHECK * took_s))

    # --- recording --------------------------------------------------------------------------------------------------

    async def _record(self) -> Ended:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stop.wait()
            self._events.look()
            seen = {gpu: self._see(name, gpu) for name, gpus in self._gpus_of.items() for gpu in gpus}
            self._count_load()
            await self._writer.write(self._recording.look(time.time(), seen))
            if self._defect is not None:  # looked at last: it may have come while this was written
                raise self._defect
            if self._stop.is_set():
                return Ended(time.time(), "stopped", self._stop_text)
            if self.elapsed_s >= self.plan.duration_s:
                return Ended(time.time(), "completed")

    def _see(self, name: str, gpu: str) -> Seen:
        slots = self._servers[name].slots if name in self._servers else 0
        return Seen(self._host.reading(gpu), self._host.slow_reading(self._cards[gpu]), slots)

    def _count_load(self) -> None:
        recorder = self._recording.recorder
        for name, load in self._loads.items():
            occupied = load.occupied()
            for gpu in self._gpus_of[name]:
                recorder.loaded(gpu, occupied)
        if self.plan.with_jobs:
            for name in self._servers:
                self._events.count_batch(name, LOOK_S)
