"""The state of the whole daemon in one document, as ``obatchctl status`` shows it."""

from __future__ import annotations

import os
import time
from itertools import islice

from attrs import define, field

from obatchd import __version__
from obatchd.client.runtime import guarded_ports
from obatchd.control.auth import Caller
from obatchd.documents import excerpt
from obatchd.documents import status as documents
from obatchd.documents.models import Pull
from obatchd.gpucare.policy import QUARANTINE
from obatchd.gpus.model import Gpu, Reading
from obatchd.gpus.probe import Probe
from obatchd.operations.jobs import OPERATOR, JobCommands
from obatchd.servers.fleet import Fleet
from obatchd.servers.managed import ManagedServer
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState
from obatchd.times import instant

DRAIN = "draining"  # a reason of operators that holds dispatch, as OPERATOR
_STOPPING = "stopping"
_STATUS_JOBS = 50


@define(eq=False, slots=False)
class Overview(JobCommands):
    """Documents about the daemon and its servers; the Protocol says what each shows."""

    _fleet: Fleet
    _models: ModelKeeper
    _probe: Probe
    _started_s: float = field(factory=time.time, init=False)

    def status(self, caller: Caller) -> documents.Status:
        engine = self._engine
        in_flight = engine.dispatcher.in_flight()
        state, reasons = self.state(caller)
        free_bytes, free_inodes, _ = engine.conditions.free
        report = engine.intake.report
        seen = (live for live in engine.jobs.values() if caller.may_see(live.row.owner))
        return documents.Status(
            version=__version__,
            spool=str(engine.layout.root),
            pid=os.getpid(),
            started_at=instant(self._started_s),
            state=state,
            reasons=reasons,
            servers=[self.server(server) for server in self._fleet.servers.values()],
            gpus=documents.ProbeState(self._probe.state, self._probe.message, self._probe.pid),
            notices=[*self._fleet.notices, *self._open_ports()],
            queue=self._queue(),
            inbox=documents.InboxState(
                report.settling,
                [documents.BlockedDrop(b.name, b.reason) for b in report.blocked if caller.may_see(b.owner)],
                engine.intake.refused,
                report.problem,
            ),
            disk=documents.DiskState(free_bytes, free_inodes, engine.conditions.disk_low),
            pulls=[Pull(name, p.status, p.completed_bytes, p.total_bytes) for name, p in self._models.pulls.items()],
            jobs=[self._live_document(live, in_flight) for live in islice(seen, _STATUS_JOBS)],
        )

    def _queue(self) -> documents.QueueCounts:
        jobs = self._engine.jobs.values()
        return documents.QueueCounts(
            requests=self._engine.queue.total(),
            jobs=len(jobs),
            finished=sum(live.finished for live in jobs),
            total=sum(live.requests for live in jobs),
            requests_per_s=round(sum(live.requests_per_s() for live in jobs), 2),
        )

    def state(self, caller: Caller) -> tuple[str, list[str]]:
        """The state of the daemon and its faults, as far as they concern the caller."""
        holds = self._engine.dispatcher.holds.reasons
        conditions, jobs = self._engine.conditions, self._engine.jobs
        reasons = list(conditions.of_all.values())
        for key, reason in conditions.of_jobs.items():
            if key in jobs and caller.may_see(jobs[key].row.owner):
                reasons.append(reason)
        servers = list(self._fleet.servers.values())
        down = [s for s in servers if s.state in (ServerState.FAILED, ServerState.BACKOFF, ServerState.QUARANTINED)]
        reasons += [f"server {s.id} is {s.state.value.lower()}: {s.reason}" for s in down]
        if self._engine.intake.report.problem:
            reasons.append(self._engine.intake.report.problem)
        if self._probe.state == "unknown":
            reasons.append(self._probe.message)
        if self._probe.host_trouble[0]:
            reasons.append(self._probe.host_trouble[1])
        reasons += [f"server {server.id} waits: {server.shared_with}" for server in servers if "shared" in server.holds]
        if not servers:
            reasons.append("there is no server")
        if _STOPPING in holds:
            return "stopping", reasons
        if DRAIN in holds:
            return ("draining" if self._engine.dispatcher.busy() else "drained"), reasons
        if QUARANTINE in holds:
            reasons.insert(0, "every GPU is in quarantine: requests wait (obatchctl gpus says what to do)")
        if OPERATOR in holds or QUARANTINE in holds:
            return "paused", reasons
        return ("degraded" if reasons else "running"), reasons

    def _open_ports(self) -> list[str]:
        """A notice where, on a host for several users, the servers' ports are open to all of them."""
        if self._engine.settings.value.access.mode != "service":
            return []
        shut = guarded_ports()
        managed = [server for server in self._fleet.servers.values() if isinstance(server, ManagedServer)]
        if all(server.port in shut for server in managed):
            return []
        return ["every user of this host can reach the servers' ports (install nftables, then restart obatchd)"]

    def server(self, server: Server) -> documents.ServerEntry:
        link = self._engine.dispatcher.links.get(server.id)
        loaded, loading = (
            documents.LoadedModel(profile.model, profile.context_length) if profile else None
            for profile in (server.loaded, server.loading)
        )
        return documents.ServerEntry(
            id=server.id,
            kind=server.kind,
            state=server.state.value,
            reason=server.reason,
            url=server.base_url,
            gpu=self._gpu(server.gpu) if server.gpu else None,
            gpus=[self._gpu(gpu) for gpu in server.gpus],
            loaded=loaded,
            loading=loading,
            in_flight=link.started if link else 0,
            offered=len(link.offers) if link else 0,
            slots=server.slots,
            tokens_per_s=round(link.tokens_per_s(), 1) if link else 0.0,
            requests_done=link.requests_done if link else 0,
            restarts=server.restarts,
            watchdog=dict(link.watchdog) if link else {},
            pid=server.pid,
            worker_pid=link.worker.pid if link and link.worker else None,
        )

    def _gpu(self, gpu: Gpu) -> documents.ServerGpu:
        reading = self._probe.readings.get(gpu.uuid) or Reading(gpu.uuid, 0.0, memory_total_bytes=gpu.memory_bytes)
        return excerpt(documents.ServerGpu, reading, index=gpu.index, name=gpu.name)
