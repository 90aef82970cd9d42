"""A street with managed servers on two cards, the care of them, and the service for operators; no process anywhere."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dispatch_support import FakeWorker
from engine_support import NoProcess, Street
from test_gpu_monitor import Bench, DictFacts

from obatchd.cluster.head.joined import JoinedHost
from obatchd.control.auth import Caller
from obatchd.control.operations import Operations, Reads
from obatchd.daemon.compose import DispatchMover
from obatchd.delivery import responses as responses_module
from obatchd.documents.answers import Reloaded
from obatchd.documents.jobs import JobDocument
from obatchd.documents.models import PullProgress
from obatchd.gpucare.cards import GpuCards
from obatchd.gpucare.past import Past
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpucare.watch import GpuWatch
from obatchd.gpus.model import Gpu, Reading
from obatchd.jobs.model import Profile
from obatchd.live.job import LiveJob
from obatchd.metrics.exposition import Exposition
from obatchd.metrics.sources import Sources, XidCounts
from obatchd.operations.audit import AuditQuestions
from obatchd.operations.gpus import GpuService
from obatchd.operations.host import HostCommands
from obatchd.operations.jobs import JobCommands
from obatchd.operations.reads.answers import JobAnswerPages
from obatchd.operations.reads.history import Histories
from obatchd.operations.reads.overview import HostOverviews
from obatchd.operations.servers import ModelCommands, ServerCommands
from obatchd.servers.managed import Host, ManagedServer
from obatchd.servers.models import ModelInfo
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState

ADMIN = Caller(0, True)


class Played(ManagedServer):
    """A managed server without a process: it is there as soon as it is asked for."""

    def __init__(self, server_id: str, gpus: list[Gpu], host: Host, log: list[str]) -> None:
        super().__init__(server_id, gpus, 20000, host)
        self.log = log  # what was done to it

    async def _open(self) -> None:
        self.pid = 4711

    async def _close(self) -> None:
        self.pid = None

    async def _check_health(self) -> None:
        pass

    async def _load(self, profile: Profile) -> None:
        self.log.append(f"{self.id} loads {profile.model}")

    async def unload(self) -> None:
        self.log.append(f"{self.id} unloads")
        self.loaded = None


class Store:
    """The models in the servers' stores, as :class:`obatchd.servers.models.ModelKeeper` tells and changes them."""

    def __init__(self) -> None:
        self.pulls: dict[str, PullProgress] = {}
        self.removed: list[str] = []
        self.given_up = 0
        self.notices: list[str] = []

    async def list_models(self) -> list[ModelInfo]:
        return []

    async def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        try:
            for done in (1, 2, 3):
                yield PullProgress(name, "gpu0", "pulling", done, 3)
        finally:
            self.given_up += 1

    async def remove(self, name: str) -> None:
        self.removed.append(name)


class Desk(Street):
    """The street as operators see it."""

    cards = 2
    joined: tuple[str, ...] = ()  # names of hosts

    def __init__(self, directory: Path, **tables: Any) -> None:
        super().__init__(directory, **tables)
        self.did: list[str] = []
        self.gpus = Bench(count=self.cards).gpus
        program: Any = SimpleNamespace()
        host = Host(self.work.settings, directory, "uuid", DictFacts(), self, {}, program, 0, directory)
        servers = [Played(f"gpu{number}", [gpu], host, self.did) for number, gpu in enumerate(self.gpus)]
        self.ports = tuple(servers)
        by_id: dict[str, Any] = {server.id: server for server in servers}
        self.fleet: Any = SimpleNamespace(servers=by_id, all=by_id, guests={}, notices=[], swept_s=[])
        self.probe: Any = SimpleNamespace(
            gpus=self.gpus, state="ok", message="", host_trouble=("", ""), readings={}, pid=17, listen=lambda it: None
        )
        self.store = Store()
        work = self.work.layout.work
        (work / "kernel.log").touch()
        self.watch = GpuWatch(
            self.work.settings, self.probe, self.fleet, DictFacts(), work, work / "kernel.log", self.failures
        )
        alarms: Any = self.alarms
        self.policy = GpuPolicy(
            self.work.settings, self.watch, self.fleet, DispatchMover(self.engine.dispatcher), alarms, self.failures
        )
        self.reloads = 0
        attached: Any = None  # what they do to servers is tried elsewhere
        self.hosts = {name: JoinedHost(name, attached) for name in self.joined}
        hosts = self.hosts
        models: Any = self.store
        unused: Any = None
        tuner = self.engine.dispatcher.tune(DictFacts(), self, self.engine.dispatcher.desk)
        commands = ServerCommands(self.engine, self.fleet, self.probe, tuner, hosts)
        host_commands = HostCommands(self.engine, self.fleet, commands, models, self.watch, alarms, self._reload)
        self.burnin: Any = SimpleNamespace(brief=lambda: None, ended=None)
        self.calls, xids = Counter[tuple[str, str, int]](), XidCounts()
        self.policy.monitor.listen(xids)
        self.sources = Sources(self.engine, self.policy, self.burnin, host_commands, xids, self.calls, self.hosts)
        self.metrics = Exposition(self.sources)
        jobs, cards = JobCommands(self.engine), GpuCards(self.policy, self.probe)
        gpus = GpuService(cards, self.work.audit, hosts)
        overviews = HostOverviews(self.engine, host_commands, gpus, self.burnin)
        reads = Reads(overviews, JobAnswerPages(self.engine, jobs), Histories(Past(self.policy, cards), gpus, hosts))
        self.operations = Operations(
            jobs=jobs,
            servers=commands,
            models=ModelCommands(models),
            gpus=gpus,
            burnin=unused,
            host=host_commands,
            keys=unused,
            http=unused,
            audit=AuditQuestions(self.work.audit),
            metrics=self.metrics,
            reads=reads,
            web=unused,
            hosts=unused,
        )

    def digest_on(self, server_id: str, model: str) -> str:
        """Implements :class:`obatchd.dispatch.tuning.ports.Digests`."""
        return ""

    def live(self, document: JobDocument) -> LiveJob:
        """The job of a document, in work."""
        [live] = [live for live in self.work.jobs.values() if live.row.job == document.job]
        return live

    async def _reload(self) -> Reloaded:
        self.reloads += 1
        return Reloaded([], [], [])

    def server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        """Implements :class:`obatchd.servers.server.ServerListener`."""
        self.engine.dispatcher.server_changed(server)

    def server(self, server_id: str) -> Played:
        found: Played = self.fleet.servers[server_id]
        return found

    async def start(self) -> Street:
        self.policy.start()
        await super().start()
        for server in self.fleet.servers.values():
            server.begin()
            if server.state is not ServerState.QUARANTINED:
                await server.until({ServerState.READY, ServerState.DRAINING, ServerState.QUARANTINED})
        return self

    async def stop(self, drain_s: float = 0.0) -> None:
        await self.policy.stop()
        for server in self.fleet.servers.values():
            await server.stop()
        await super().stop(drain_s)

    def read(self, **changes: Any) -> None:
        """One reading of each card; ``gpu0={"temp_c": 99}`` changes one."""
        usual = {"utilisation_percent": 90, "temp_c": 60}
        told = [(gpu.uuid, usual | changes.get(f"gpu{gpu.index}", {})) for gpu in self.gpus]
        readings = [Reading(uuid, time.time(), **values) for uuid, values in told]
        self.probe.readings = {reading.uuid: reading for reading in readings}
        self.policy.monitor.readings(readings)


@contextlib.asynccontextmanager
async def desk(monkeypatch: pytest.MonkeyPatch, directory: Path, **tables: Any) -> AsyncIterator[Desk]:
    """A desk that is staffed while the block runs."""
    monkeypatch.setattr(responses_module, "Keeper", NoProcess)
    FakeWorker.unstartable = 0
    made = Desk(directory, **tables)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
