"""The composition root: builds the parts of the daemon. :mod:`obatchd.daemon.life` runs them.

:func:`host` makes the parts of one machine, :func:`head` those that there are once for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from obatchd.burnin.run.manager import Burnin
from obatchd.client import runtime
from obatchd.cluster.head.burnin.runs import HostsBurnin
from obatchd.cluster.head.server import HostedServer
from obatchd.control.auth import Access
from obatchd.control.operations import Operations, Reads
from obatchd.control.programs import Programs
from obatchd.control.sockets import ControlServer
from obatchd.control.submit import SubmitServer
from obatchd.daemon.burnin import BurninHost, DispatchedWork, stress_files
from obatchd.daemon.hosts import JoinedHosts, joined_hosts
from obatchd.daemon.machine import Host, machine
from obatchd.daemon.ray import ray_launcher
from obatchd.daemon.served import GpuLoads, ServedModels
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.recovery import Watchdog
from obatchd.documents.alarms import ServerFailed
from obatchd.documents.answers import Reloaded
from obatchd.engine.engine import Engine
from obatchd.engine.housekeeping import Housekeeping
from obatchd.front.jobs import RemoteRoutes
from obatchd.front.listener import Listener
from obatchd.front.metrics import MetricRoutes
from obatchd.front.page.sessions import WebSessions
from obatchd.front.reads import LookRoutes
from obatchd.gpucare.cards import GpuCards
from obatchd.gpucare.moving import CrashesHere
from obatchd.gpucare.past import Past
from obatchd.gpucare.policy import GpuPolicy
from obatchd.jobs.store import Facts
from obatchd.live.work import Work
from obatchd.metrics.exposition import Exposition, TextFile
from obatchd.metrics.sources import Sources, XidCounts
from obatchd.operations.asking import Questions
from obatchd.operations.audit import AuditQuestions, PagesOpened, QuarantinesByRules
from obatchd.operations.batches.batches import Batches
from obatchd.operations.files import Files
from obatchd.operations.gpus import GpuService
from obatchd.operations.host import HostCommands
from obatchd.operations.hosts import Joined, JoinedHostCommands
from obatchd.operations.jobs import JobCommands
from obatchd.operations.keys import Keys
from obatchd.operations.native import FleetModels
from obatchd.operations.outputs import JobFiles
from obatchd.operations.reads.answers import JobAnswerPages
from obatchd.operations.reads.history import Histories, WorkLooks
from obatchd.operations.reads.overview import HostOverviews
from obatchd.operations.servers import ModelCommands, ServerCommands
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState
from obatchd.telling.alarms import Alarms

if TYPE_CHECKING:
    from obatchd.cluster.head.launcher import Launcher


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
    burnin: Burnin | HostsBurnin
    operations: Operations
    control: ControlServer
    submit: SubmitServer
    desk: Desk
    http: Listener
    metrics_file: TextFile
    looks: WorkLooks
    runtime_dir: Path
    joined: JoinedHosts | None  # None where hosts cannot join
    launcher: Launcher | None  # None where there is nothing to do in Ray


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
    news = ServerNews(engine.dispatcher, alarms)
    here.fleet.listen(news)
    joined = joined_hosts(work, here, engine.dispatcher, news, alarms)
    hosts = joined.hosts.hosts if joined is not None else {}
    members = JoinedHostCommands(work.audit, _parts(joined))
    policy = GpuPolicy(settings, here.watch, here.fleet, DispatchMover(engine.dispatcher, joined), alarms, owner)
    policy.monitor.listen(QuarantinesByRules(work.audit))
    watchdog = Watchdog(engine.dispatcher, settings, GpuLoads(here.watch, here.fleet), owner)
    runs = _burnin(work, here, engine, policy, alarms, joined)
    servers = ServerCommands(engine, here.fleet, here.probe, tuner, hosts)
    models, access, files = ModelCommands(here.models), Access(settings.value.access), Files(work)
    runtime_dir = runtime.create(layout.root, layout.uuid, shared=access.is_shared, config=config)
    desk = Desk(Keys(work), files, Batches(work, engine, files))
    native = FleetModels(here.models, here.fleet)
    sessions = WebSessions(access, PagesOpened(work.audit))
    programs = Programs(desk.keys, files, desk.batches, models, native, Questions(engine.dispatcher.desk), sessions)
    jobs = JobCommands(engine)
    host = HostCommands(engine, here.fleet, servers, here.models, here.watch, alarms, reload)
    host.launcher = members.launcher = launcher = ray_launcher(work, joined)
    xids, calls = XidCounts(), Counter[tuple[str, str, int]]()
    policy.monitor.listen(xids)
    metrics = Exposition(Sources(engine, policy, runs, host, xids, calls, hosts))
    cards, audit = GpuCards(policy, here.probe), AuditQuestions(work.audit)
    gpus = GpuService(cards, work.audit, hosts)
    histories = Histories(Past(policy, cards), gpus, hosts)
    reads = Reads(HostOverviews(engine, host, gpus, runs), JobAnswerPages(engine, jobs), histories)
    routes = [
        *RemoteRoutes(jobs, models, host, files, JobFiles(work), reads.answers).routes(),
        *LookRoutes(reads, gpus, runs, audit).routes(), *MetricRoutes(metrics).routes(),
    ]  # fmt: skip
    http = Listener(programs, settings, runtime_dir / runtime.HTTP_SOCKET, access, routes, calls)
    operations = Operations(
        jobs, servers, models, gpus, runs, host, desk.keys, http, audit, metrics, reads, sessions, members
    )
    return Head(
        engine, policy, watchdog, Housekeeping(engine), runs, operations,
        ControlServer(operations, runtime_dir, access, owner),
        SubmitServer(operations.jobs, runtime_dir, access, owner), desk, http,
        TextFile(metrics, settings), WorkLooks(engine, here.watch.history, owner), runtime_dir, joined,
        launcher,
    )  # fmt: skip


def _parts(joined: JoinedHosts | None) -> Joined | None:
    return Joined(joined.roster, joined.hosts, joined.door) if joined is not None else None


def _burnin(
    work: Work, here: Host, engine: Engine, policy: GpuPolicy, alarms: Alarms, joined: JoinedHosts | None
) -> Burnin | HostsBurnin:
    settings, directory = work.settings, work.layout.work
    files = stress_files(directory, settings.value)
    tested = BurninHost(here.fleet, policy, here.models, DispatchedWork(engine.dispatcher), settings, alarms, files)
    own = Burnin(directory / "burnin", tested)
    return own if joined is None else HostsBurnin(directory / "burnin", own, joined.hosts.hosts, settings, alarms)


class DispatchMover:
    """Moves work by the dispatcher of this process. Implements :class:`obatchd.gpucare.moving.WorkMover`."""

    def __init__(self, dispatcher: Dispatcher, joined: JoinedHosts | None = None) -> None:
        self._dispatcher = dispatcher
        self._joined = joined

    async def vacate(self, server_id: str, patience_s: float, reason: str) -> None:
        if (link := self._dispatcher.links.get(server_id)) is not None:
            await self._dispatcher.vacate(link, patience_s, reason)

    def hold(self, reason: str) -> None:
        self._dispatcher.holds.hold(reason)

    def release(self, reason: str) -> None:
        self._dispatcher.holds.release(reason)

    def listen_to_crashes(self, listener: CrashesHere) -> None:
        self._dispatcher.listen_to_crashes(self._joined.crashes(listener) if self._joined is not None else listener)


class ServerNews:
    """Tells dispatch and the alarms of the servers. Implements :class:`obatchd.servers.server.ServerListener`, and
    :class:`obatchd.cluster.head.server.HostedListener`.

    A server that is tried again and again raises one alarm, until it has been ready.
    """

    def __init__(self, dispatcher: Dispatcher, alarms: Alarms) -> None:
        self._dispatcher = dispatcher
        self._alarms = alarms
        self._failed: set[str] = set()  # ids of the servers that an alarm was raised for

    def server_changed(self, server: Server | HostedServer, old: ServerState, new: ServerState, reason: str) -> None:
        self._dispatcher.server_changed(server)
        if new is ServerState.READY:
            self._failed.discard(server.id)
        if new is ServerState.FAILED and server.id not in self._failed:
            self._failed.add(server.id)
            self._alarms.announce(ServerFailed(server.id, server.gpu_label, reason))
