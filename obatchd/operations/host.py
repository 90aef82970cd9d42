"""The state of the whole daemon in one document, as ``obatchctl status`` shows it, and commands to all of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import islice
from typing import TYPE_CHECKING

from attrs import define, field
from msgspec import UNSET

from obatchd import __version__
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.standing import brief, notices_of, reasons_of
from obatchd.control.auth import Caller, daemon_itself
from obatchd.delivery.documents import job_document
from obatchd.dispatch.holds import DRAINING, PAUSED, STOPPING
from obatchd.documents import status as documents
from obatchd.documents.answers import AlarmsTested, HostState, Paused, Reloaded
from obatchd.documents.audit import HOST_DRAINED, HOST_PAUSED, HOST_RESUMED, HOST_UNDRAINED
from obatchd.documents.models import Pull
from obatchd.engine.engine import Engine
from obatchd.gpucare.policy import QUARANTINE
from obatchd.gpucare.watch import GpuWatch
from obatchd.live.job import LiveJob
from obatchd.operations.audit import entry_of, recorded
from obatchd.operations.jobs import disk_faults_told
from obatchd.operations.servers import ServerCommands
from obatchd.servers.fleet import Fleet
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import ServerFace
from obatchd.telling.alarms import Alarms
from obatchd.times import instant

if TYPE_CHECKING:
    from obatchd.cluster.head.launcher import Launcher

_STATUS_JOBS = 50


@define(eq=False)
class HostCommands:
    """Implements :class:`obatchd.control.operations.HostOperations`, which says what each method does."""

    _engine: Engine
    _fleet: Fleet
    _servers: ServerCommands
    _models: ModelKeeper
    _watch: GpuWatch
    _alarms: Alarms
    reload: Callable[[], Awaitable[Reloaded]]
    started_s: float = field(factory=time.time, init=False)
    launcher: Launcher | None = field(default=None, init=False)  # None: no engine starts hosts

    @property
    def _hosts(self) -> Mapping[str, JoinedHost]:
        return self._servers.hosts

    def status(self, caller: Caller, jobs: int | None = None) -> documents.Status:
        engine = self._engine
        in_flight = engine.dispatcher.in_flight()
        seen = [live for live in engine.jobs.values() if caller.may_see(live.row.owner)]
        servers = self._servers.all()
        state, reasons = self._state(caller, [*_held_up(seen), *_lacking(servers)])
        free_bytes, free_inodes, _ = engine.conditions.free
        report, probe = engine.intake.report, self._watch.probe
        return documents.Status(
            version=__version__,
            spool=str(engine.layout.root),
            pid=os.getpid(),
            started_at=instant(self.started_s),
            state=state,
            reasons=reasons,
            servers=servers,
            gpus=documents.ProbeState(probe.state, self._watch.blind or probe.message, probe.pid),
            notices=self._notices(caller),
            queue=self._queue(),
            inbox=documents.InboxState(
                report.settling,
                [documents.BlockedDrop(b.name, b.reason) for b in report.blocked if caller.may_see(b.owner)],
                engine.intake.refused,
                report.problem,
                engine.intake.held_back or UNSET,
            ),
            disk=documents.DiskState(free_bytes, free_inodes, engine.conditions.disk_low),
            pulls=[Pull(name, p.status, p.completed_bytes, p.total_bytes) for name, p in self._models.pulls.items()],
            jobs=[
                job_document(live, in_flight.get(live.key, 0), engine.dispatcher.held_up)
                for live in islice(seen, _STATUS_JOBS if jobs is None else jobs)
            ],
            interactive=engine.dispatcher.desk.state(),
            waiting_for_restart=engine.settings.waiting or UNSET,
            hosts=list(map(brief, self._servers.sorted_hosts())) or UNSET,
            engine=(self.launcher.state() if self.launcher is not None else None) or UNSET,
        )

    def state(self, *, held_up: bool) -> str:
        """The word of the status alone, as an administrator sees it, in much less time; ``held_up``: jobs are."""
        lacking = any(link.refused for link in self._engine.dispatcher.links.values())
        return self._state(daemon_itself(), ["work waits"] if held_up or lacking else [])[0]

    async def pause(self, caller: Caller) -> Paused:
        async with self._recorded(caller, HOST_PAUSED):
            return await self._set_paused(True)

    async def resume(self, caller: Caller) -> Paused:
        async with self._recorded(caller, HOST_RESUMED):
            return await self._set_paused(False)

    @disk_faults_told()
    async def _set_paused(self, paused: bool) -> Paused:
        holds = self._engine.dispatcher.holds
        await asyncio.to_thread(self._engine.store.state.set, "paused", "1" if paused else "")
        (holds.hold if paused else holds.release)(PAUSED)
        return Paused(paused, UNSET if paused else self._engine.dispatcher.held_up or UNSET)

    async def drain(self, caller: Caller) -> HostState:
        async with self._recorded(caller, HOST_DRAINED):
            self._engine.dispatcher.holds.hold(DRAINING)
        return HostState(self._state(daemon_itself())[0])

    async def undrain(self, caller: Caller) -> HostState:
        async with self._recorded(caller, HOST_UNDRAINED):
            self._engine.dispatcher.holds.release(DRAINING)
        return HostState(self._state(daemon_itself())[0])

    def _recorded(self, caller: Caller, kind: str) -> AbstractAsyncContextManager[None]:
        return recorded(self._engine.work.audit, entry_of(caller, kind))

    def _notices(self, caller: Caller) -> list[str]:
        audit = self._engine.work.audit.problem
        alarms = [*self._alarms.troubles(), *([audit] if audit else [])] if caller.is_administrator else []
        hosts = [notice for host in self._servers.sorted_hosts() for notice in notices_of(host)]
        nodes = self.launcher.notices() if self.launcher is not None else []
        return [*self._fleet.notices, *self._models.notices, *self._servers.open_ports(), *hosts, *nodes, *alarms]

    async def test_alarms(self) -> AlarmsTested:
        return AlarmsTested(await self._alarms.test())

    def _queue(self) -> documents.QueueCounts:
        jobs = self._engine.jobs.values()
        return documents.QueueCounts(
            requests=self._engine.queue.total(),
            jobs=len(jobs),
            finished=sum(live.finished for live in jobs),
            total=sum(live.requests for live in jobs),
            requests_per_s=round(sum(live.requests_per_s() for live in jobs), 2),
        )

    def _state(self, caller: Caller, held_up: Sequence[str] = ()) -> tuple[str, list[str]]:
        """The state of the daemon and its faults, as far as they concern the caller, with ``held_up`` among them."""
        holds = self._engine.dispatcher.holds.reasons
        conditions, jobs = self._engine.conditions, self._engine.jobs
        reasons = list(conditions.of_all.values())
        for key, reason in conditions.of_jobs.items():
            if key in jobs and caller.may_see(jobs[key].row.owner):
                reasons.append(reason)
        reasons += held_up
        servers = list(self._fleet.all.values())
        for host in self._servers.sorted_hosts():
            reasons += reasons_of(host)
        reasons += self._engine_troubles()
        reasons += [f"server {server.in_words}" for server in servers if server.down and not self._is_away(server)]
        if self._engine.intake.report.problem:
            reasons.append(self._engine.intake.report.problem)
        if blind := self._watch.blind:
            reasons.append(blind)
        if self._watch.probe.host_trouble[0]:
            reasons.append(self._watch.probe.host_trouble[1])
        reasons += [f"server {server.id} waits: {why}" for server in servers if (why := server.holds.get("shared"))]
        if not servers:
            reasons.append(self._no_server())
        if STOPPING in holds:
            return "stopping", reasons
        if DRAINING in holds:
            return ("draining" if self._engine.dispatcher.busy() else "drained"), reasons
        if QUARANTINE in holds:
            reasons.insert(0, "every GPU is in quarantine: requests wait (obatchctl gpus says what to do)")
        if PAUSED in holds or QUARANTINE in holds:
            return "paused", reasons
        return ("degraded" if reasons else "running"), reasons

    def _engine_troubles(self) -> list[str]:
        return [self.launcher.trouble] if self.launcher is not None and self.launcher.trouble else []

    def _is_away(self, server: ServerFace) -> bool:
        """Whether it is down with its whole host."""
        host = self._hosts.get(server.host) if server.host else None
        return host is not None and host.session is None

    def _no_server(self) -> str:
        if self._engine.settings.value.cluster.door is None or self._hosts:
            return "there is no server"
        return "there is no server, and no host has joined yet: obatchctl hosts code prints what to type on one"


def _lacking(servers: Iterable[documents.ServerEntry]) -> list[str]:
    """Models that servers cannot serve: others do their work meanwhile, if any can."""
    lacking = (
        f"server {server.id} cannot serve {refused.model}: {refused.reason}"
        for server in servers
        for refused in server.cannot_have or ()
    )
    return list(dict.fromkeys(lacking))  # one model may be asked for with several lengths of the context


def _held_up(jobs: Iterable[LiveJob]) -> list[str]:
    """Bad answers of servers, each with the jobs that had no result since."""
    held_up: dict[str, list[str]] = {}
    for live in jobs:
        if live.hindrance:
            held_up.setdefault(live.hindrance, []).append(live.row.job)
    return [
        f"job {found[0]} {f'and {len(found) - 1} more wait' if found[1:] else 'waits'}: {reason}"
        for reason, found in held_up.items()
    ]
