"""The composition root: builds the parts of the daemon. :mod:`obatchd.daemon.life` runs them.

:func:`host` makes the parts of one machine, :func:`head` those that there are once for all.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from obatchd.burnin.run.manager import Burnin
from obatchd.client import runtime
from obatchd.control.auth import Access
from obatchd.control.operations import Operations, Reads
from obatchd.control.programs import Programs
from obatchd.control.sockets import ControlServer
from obatchd.control.submit import SubmitServer
from obatchd.daemon.burnin import BurninHost, DispatchedWork, StressFiles
from obatchd.daemon.machine import Host, machine
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.events import CrashListener
from obatchd.dispatch.recovery import Watchdog
from obatchd.documents import excerpt
from obatchd.documents.alarms import ServerFailed
from obatchd.documents.answers import Reloaded
from obatchd.documents.jobs import ModelFacts
from obatchd.engine.engine import Engine
from obatchd.engine.housekeeping import Housekeeping
from obatchd.front.jobs import RemoteRoutes
from obatchd.front.listener import Listener
from obatchd.front.metrics import MetricRoutes
from obatchd.front.page.sessions import WebSessions
from obatchd.front.reads import LookRoutes
from obatchd.gpucare.cards import GpuCards
from obatchd.gpucare.past import Past
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpus.energy import EnergyMeters
from obatchd.jobs.store import Facts
from obatchd.live.models import EnergyReading
from obatchd.live.work import Work
from obatchd.metrics.exposition import Exposition, TextFile
from obatchd.metrics.sources import Sources, XidCounts
from obatchd.operations.asking import Questions
from obatchd.operations.audit import AuditQuestions, PagesOpened, QuarantinesByRules
from obatchd.operations.batches import Batches
from obatchd.operations.files import Files
from obatchd.operations.gpus import GpuService
from obatchd.operations.host import HostCommands
from obatchd.operations.jobs import JobCommands
from obatchd.operations.keys import Keys
from obatchd.operations.native import FleetModels
from obatchd.operations.outputs import JobFiles
from obatchd.operations.reads.answers import JobAnswerPages
from obatchd.operations.reads.history import Histories, WorkLooks
from obatchd.operations.reads.overview import HostOverviews
from obatchd.operations.servers import ModelCommands, ServerCommands
from obatchd.servers.fleet import Fleet
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState
from obatchd.settings.settings import Settings
from obatchd.telling.alarms import Alarms


@dataclass(frozen=True)
class Desk:
    """What programs ask over HTTP."""

    keys: Keys
    files: Files
    batches: Batches

    async def start(self) -> None:
        self.keys.start()
        await self.files.start()

    async def stop(self) -> None:
        await self.batches.stop()
        await self.files.stop()
        await self.keys.stop()


@dataclass(frozen=True)
class Head:
    """The parts that there are once: the path of a request, care of the GPUs, tests, and the doors for operators."""

    engine: Engine
    policy: GpuPolicy
    watchdog: Watchdog
    housekeeping: Housekeeping
    burnin: Burnin
    operations: Operations
    control: ControlServer
    submit: SubmitServer
    desk: Desk
    http: Listener
    metrics_file: TextFile
    looks: WorkLooks
    runtime_dir: Path


async def host(work: Work) -> Host:
    """The parts of this machine."""
    return await machine(work.settings, work.layout.work, work.layout.uuid, Facts(work.store.state), work.owner)


def head(
    work: Work, here: Host, alarms: Alarms, reload: Callable[[], Awaitable[Reloaded]], config: Path | None
) -> Head:
    """All other parts; none of them runs yet."""
    settings, layout, owner = work.settings, work.layout, work.owner
    served = ServedModels(here.models, here.fleet, here.watch.energy)
    engine = Engine(work, served)
    tuner = engine.dispatcher.tune(Facts(work.store.state), served, engine.dispatcher.desk)
    policy = GpuPolicy(settings, here.watch, here.fleet, DispatchMover(engine.dispatcher), alarms, owner)
    policy.monitor.listen(QuarantinesByRules(work.audit))
    here.fleet.listen(ServerNews(engine.dispatcher, alarms))
    watchdog = Watchdog(engine.dispatcher, settings, here.watch, owner)
    runs = _burnin(work, here, engine, policy, alarms)
    servers = ServerCommands(engine, here.fleet, here.probe, tuner)
    models, access, files = ModelCommands(here.models), Access(settings.value.access), Files(work)
    runtime_dir = runtime.create(layout.root, layout.uuid, shared=access.is_shared, config=config)
    desk = Desk(Keys(work), files, Batches(work, engine, files))
    native = FleetModels(here.models, here.fleet)
    sessions = WebSessions(access, PagesOpened(work.audit))
    programs = Programs(desk.keys, files, desk.batches, models, native, Questions(engine.dispatcher.desk), sessions)
    jobs = JobCommands(engine)
    host = HostCommands(engine, here.fleet, servers, here.models, here.watch, alarms, reload)
    xids, calls = XidCounts(), Counter[tuple[str, str, int]]()
    policy.monitor.listen(xids)
    metrics = Exposition(Sources(engine, policy, runs, host, xids, calls))
    cards, audit = GpuCards(policy, here.probe), AuditQuestions(work.audit)
    gpus = GpuService(cards, work.audit)
    histories = Histories(Past(policy, cards), gpus)
    reads = Reads(HostOverviews(engine, host, gpus, runs), JobAnswerPages(engine, jobs), histories)
    routes = [
        *RemoteRoutes(jobs, models, host, files, JobFiles(work), reads.answers).routes(),
        *LookRoutes(reads, gpus, runs, audit).routes(), *MetricRoutes(metrics).routes(),
    ]  # fmt: skip
    http = Listener(programs, settings, runtime_dir / runtime.HTTP_SOCKET, access, routes, calls)
    operations = Operations(jobs, servers, models, gpus, runs, host, desk.keys, http, audit, metrics, reads, sessions)
    return Head(
        engine, policy, watchdog, Housekeeping(engine), runs, operations,
        ControlServer(operations, runtime_dir, access, owner),
        SubmitServer(operations.jobs, runtime_dir, access, owner), desk, http,
        TextFile(metrics, settings), WorkLooks(engine, here.watch.history, owner), runtime_dir,
    )  # fmt: skip


def _burnin(work: Work, here: Host, engine: Engine, policy: GpuPolicy, alarms: Alarms) -> Burnin:
    settings, directory = work.settings, work.layout.work
    files = _stress_files(directory, settings.value)
    tested = BurninHost(here.fleet, policy, here.models, DispatchedWork(engine.dispatcher), settings, alarms, files)
    return Burnin(directory / "burnin", tested)


def _stress_files(work: Path, settings: Settings) -> StressFiles:
    ollama = shutil.which(settings.servers.ollama)
    libraries = [str(Path(ollama).resolve().parent.parent / "lib" / "ollama")] if ollama else []
    return StressFiles(work.absolute() / "simulator", libraries)


class DispatchMover:
    """Moves work by the dispatcher of this process. Implements :class:`obatchd.gpucare.moving.WorkMover`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def vacate(self, server_id: str, patience_s: float, reason: str) -> None:
        if (link := self._dispatcher.links.get(server_id)) is not None:
            await self._dispatcher.vacate(link, patience_s, reason)

    def hold(self, reason: str) -> None:
        self._dispatcher.holds.hold(reason)

    def release(self, reason: str) -> None:
        self._dispatcher.holds.release(reason)

    def listen_to_crashes(self, listener: CrashListener) -> None:
        self._dispatcher.listen_to_crashes(listener)


class ServerNews:
    """Tells dispatch and the alarms of the servers. Implements :class:`obatchd.servers.server.ServerListener`.

    A server that is tried again and again raises one alarm, until it has been ready.
    """

    def __init__(self, dispatcher: Dispatcher, alarms: Alarms) -> None:
        self._dispatcher = dispatcher
        self._alarms = alarms
        self._failed: set[str] = set()  # ids of the servers that an alarm was raised for

    def server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        self._dispatcher.server_changed(server)
        if new is ServerState.READY:
            self._failed.discard(server.id)
        if new is ServerState.FAILED and server.id not in self._failed:
            self._failed.add(server.id)
            self._alarms.announce(ServerFailed(server.id, server.gpu_label, reason))


class ServedModels:
    """The engine's questions about models, answered by the servers. Implements :class:`obatchd.live.models.Models`."""

    def __init__(self, keeper: ModelKeeper, fleet: Fleet, meters: EnergyMeters) -> None:
        self._keeper = keeper
        self._fleet = fleet
        self._meters = meters

    async def ensure(self, server_id: str, model: str) -> list[str]:
        return (await self._keeper.ensure_on(self._fleet.servers[server_id], model)).capabilities

    def forget(self, model: str) -> None:
        self._keeper.forget(model)

    def facts(self, model: str, servers: Sequence[str]) -> ModelFacts:
        there = {name: self._fleet.servers[name] for name in servers if name in self._fleet.servers}
        infos = {name: info for name, server in there.items() if (info := self._keeper.info(model, server))}
        if (info := next(iter(infos.values()), None) or self._keeper.info(model)) is None:
            return ModelFacts()
        digests = {name: info.digest for name, info in infos.items() if info.digest}
        return excerpt(ModelFacts, info, digests=digests if len(set(digests.values())) > 1 else UNSET)

    def digest_on(self, server_id: str, model: str) -> str:
        info = self._keeper.info(model, self._fleet.servers[server_id])
        return info.digest if info else ""

    def server_version(self, server_id: str) -> str | None:
        server = self._fleet.servers.get(server_id)
        return server.version or None if server else None

    def gpus_per_slot(self, server_id: str) -> float:
        server = self._fleet.servers.get(server_id)
        return len(server.gpus) / max(server.slots, 1) if server else 0.0

    def energy(self, server_id: str) -> EnergyReading | None:
        server = self._fleet.servers.get(server_id)
        if server is None or self._beside(server):
            return None
        metered = self._meters.of([gpu.uuid for gpu in server.gpus])
        return EnergyReading(*metered) if metered else None

    def why_no_energy(self, server_id: str) -> str:
        server = self._fleet.servers.get(server_id)
        if server is None:
            return "the server is not there any more"
        if not server.gpus:
            return "it computes on the CPU" if server.kind == "managed" else "its GPU is not known here"
        if any(gpu.parent_uuid for gpu in server.gpus):
            return "no driver tells the energy of a slice of a GPU"
        if others := self._beside(server):
            return f"it shares its GPU with {', '.join(others)}, and the energy is counted for the whole GPU"
        untold = [str(gpu.index) for gpu in server.gpus if not self._meters.tells(gpu.uuid)]
        return f"GPU {', '.join(untold)} does not tell its energy" if untold else ""

    def _beside(self, server: Server) -> list[str]:
        """Other servers on its GPUs, as ``ollama_instances`` may have them: nobody tells which of them took what."""
        cards = {gpu.card for gpu in server.gpus}
        return [
            other.id
            for other in self._fleet.servers.values()
            if cards and other is not server and any(gpu.card in cards for gpu in other.gpus)
        ]

    async def digest(self, model: str) -> str | None:
        info = self._keeper.info(model)
        return (info.digest if info else await self._keeper.digest(model)) or None
