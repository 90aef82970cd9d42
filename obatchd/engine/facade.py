"""What the control API may ask of the daemon. Implements :class:`obatchd.control.engine.Engine`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec

from obatchd import __version__
from obatchd.control.auth import Caller, daemon_itself
from obatchd.control.engine import Submission
from obatchd.control.runtime import guarded_ports
from obatchd.engine.documents import SCHEMA, finished_document, instant, job_document
from obatchd.engine.engine import Engine
from obatchd.engine.erasure import erase
from obatchd.engine.gpu_desk import GpuDesk
from obatchd.engine.gpu_duty import QUARANTINE, GpuDuty
from obatchd.engine.indexing import SubmittedSettings
from obatchd.engine.live import LiveJob
from obatchd.errors import ControlError, DropRefused, NotFoundError, SpoolError
from obatchd.gpus.model import Gpu
from obatchd.gpus.probe import Probe
from obatchd.jobs.formats import request_file
from obatchd.jobs.model import FILE_ENDINGS, JobState
from obatchd.jobs.store import DISK_ERRORS, JobRow
from obatchd.servers.fleet import Fleet
from obatchd.servers.logs import read_log
from obatchd.servers.managed import ManagedServer
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState
from obatchd.settings_io import parse_job_settings
from obatchd.spool import claim

_OPERATOR = "paused"
_DRAIN = "draining"
_STOPPING = "stopping"
_P = ParamSpec("_P")
_T = TypeVar("_T")
_STATUS_JOBS = 50
_ACTION_S = 5.0  # longest wait for a drain or restart before the answer says how far it is


def _told(command: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """A disk that refuses is no defect: the caller is told, and nothing has changed."""

    @functools.wraps(command)
    async def run(*arguments: _P.args, **named: _P.kwargs) -> _T:
        try:
            return await command(*arguments, **named)
        except DISK_ERRORS as error:
            raise SpoolError(f"the spool's disk refuses: {error}. Try again when it is well.", code="disk") from error

    return run


class Facade:
    """Documents and commands; errors are :class:`ControlError` with a message for the user."""

    def __init__(
        self,
        engine: Engine,
        fleet: Fleet,
        models: ModelKeeper,
        probe: Probe,
        duty: GpuDuty,
        reload: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self._engine = engine
        self._fleet = fleet
        self._models = models
        self._probe = probe
        self.gpu_desk = GpuDesk(duty, probe)
        self._reload = reload
        self._started_s = time.time()
        self._actions: set[asyncio.Task[Any]] = set()

    # Looking.

    def status(self, caller: Caller) -> dict[str, Any]:
        """The whole state of the daemon in one document, of jobs and drops what the caller may see."""
        engine = self._engine
        in_flight = engine.dispatcher.in_flight()
        state, reasons = self._state(caller)
        free_bytes, free_inodes, _ = engine.troubles.free
        report = engine.intake.report
        return {
            "schema": SCHEMA,
            "version": __version__,
            "spool": str(engine.layout.root),
            "pid": os.getpid(),
            "started_at": instant(self._started_s),
            "state": state,
            "reasons": reasons,
            "servers": [self._server(server) for server in self._fleet.servers.values()],
            "gpus": {"state": self._probe.state, "message": self._probe.message, "pid": self._probe.pid},
            "notices": [*self._fleet.notices, *self._open_ports()],
            "queue": {
                "requests": engine.queue.total(),
                "jobs": len(engine.jobs),
                "finished": sum(live.finished for live in engine.jobs.values()),
                "total": sum(live.requests for live in engine.jobs.values()),
                "requests_per_s": round(sum(live.requests_per_s() for live in engine.jobs.values()), 2),
            },
            "inbox": {
                "settling": report.settling,
                "blocked": [{"name": b.name, "reason": b.reason} for b in report.blocked if caller.may_see(b.owner)],
                "refused": engine.intake.refused,
                "problem": report.problem,
            },
            "disk": {"free_bytes": free_bytes, "free_inodes": free_inodes, "low": engine.troubles.disk_low},
            "pulls": [
                {
                    "model": name,
                    "status": pull.status,
                    "completed_bytes": pull.completed_bytes,
                    "total_bytes": pull.total_bytes,
                }
                for name, pull in self._models.pulls.items()
            ],
            "jobs": [
                job_document(live, in_flight.get(live.key, 0))
                for live in islice(
                    (live for live in engine.jobs.values() if caller.may_see(live.row.owner)), _STATUS_JOBS
                )
            ],
        }

    def _state(self, caller: Caller) -> tuple[str, list[str]]:
        holds = self._engine.dispatcher.holds
        jobs = self._engine.jobs
        hindered = [key for key in self._engine.troubles.of_jobs if key in jobs and caller.may_see(jobs[key].row.owner)]
        reasons = [*self._engine.troubles.of_all.values(), *(self._engine.troubles.of_jobs[key] for key in hindered)]
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
        if _DRAIN in holds:
            return ("draining" if self._engine.dispatcher.busy() else "drained"), reasons
        if QUARANTINE in holds:
            reasons.insert(0, "every GPU is in quarantine: requests wait (obatchctl gpus says what to do)")
        if _OPERATOR in holds or QUARANTINE in holds:
            return "paused", reasons
        return ("degraded" if reasons else "running"), reasons

    def _open_ports(self) -> list[str]:
        """A notice where, on a host for several users, the servers' ports are open to all of them."""
        if self._engine.settings.access.mode != "service":
            return []
        shut = guarded_ports()
        managed = [server for server in self._fleet.servers.values() if isinstance(server, ManagedServer)]
        if all(server.port in shut for server in managed):
            return []
        return ["every user of this host can reach the servers' ports (install nftables, then restart obatchd)"]

    def _server(self, server: Server) -> dict[str, Any]:
        link = self._engine.dispatcher.links.get(server.id)
        return {
            "id": server.id,
            "kind": server.kind,
            "state": server.state.value,
            "reason": server.reason,
            "url": server.base_url,
            "gpu": self._gpu(server.gpu) if server.gpu else None,
            "gpus": [self._gpu(gpu) for gpu in server.gpus],
            "loaded": _profile(server.loaded),
            "loading": _profile(server.loading),
            "in_flight": link.started if link else 0,
            "offered": len(link.offers) if link else 0,
            "slots": server.slots,
            "tokens_per_s": round(link.tokens_per_s(), 1) if link else 0.0,
            "requests_done": link.requests_done if link else 0,
            "restarts": server.restarts,
            "watchdog": dict(link.findings) if link else {},
            "pid": server.pid,
            "worker_pid": link.worker.pid if link and link.worker else None,
        }

    def _gpu(self, gpu: Gpu) -> dict[str, Any]:
        reading = self._probe.readings.get(gpu.uuid)
        return {
            "uuid": gpu.uuid,
            "index": gpu.index,
            "name": gpu.name,
            "utilisation_percent": reading.utilisation_percent if reading else None,
            "memory_used_bytes": reading.memory_used_bytes if reading else None,
            "memory_total_bytes": reading.memory_total_bytes if reading else gpu.memory_bytes,
            "temp_c": reading.temp_c if reading else None,
            "power_w": reading.power_w if reading else None,
        }

    def jobs(self, caller: Caller, state: str | None, limit: int, *, mine: bool = False) -> list[dict[str, Any]]:
        """Jobs, newest first; ``state`` is ``running``, ``done``, ``refused`` … or None for all."""
        try:
            states = [JobState(state)] if state else list(JobState)
        except ValueError:
            known = ", ".join(s.value for s in JobState)
            raise ControlError(f"no such job state: {state}; use one of {known}", code="usage") from None
        owner = caller.uid if mine or not caller.is_administrator else None
        rows = self._engine.store.state.list_jobs(states, limit=limit, newest_first=True, owner=owner)
        in_flight = self._engine.dispatcher.in_flight()
        return [self._job_document(row, in_flight) for row in rows]

    def _job_document(self, row: JobRow, in_flight: dict[int, int]) -> dict[str, Any]:
        live = self._engine.jobs.get(row.key)
        if live is not None:
            return job_document(live, in_flight.get(row.key, 0))
        settings = self._engine.settings
        outbox = str(self._engine.layout.outbox_dir(row.job, row.name, row.owner))
        return finished_document(row, outbox, settings.model, settings.priority)

    def job(self, caller: Caller, job_id: str) -> dict[str, Any]:
        """One job, by its id or the beginning of it."""
        return self._job_document(self._find(caller, job_id), self._engine.dispatcher.in_flight())

    def _find(self, caller: Caller, job_id: str) -> JobRow:
        """The job; one that the caller may not see is not found, so that nobody can try out ids."""
        owner = None if caller.is_administrator else caller.uid
        state = self._engine.store.state
        rows = [row for row in state.find([job_id]) if caller.may_see(row.owner)] or state.find_prefix(job_id, owner)
        if not rows:
            raise NotFoundError(f"no job {job_id}; obatchctl jobs lists them")
        if len(rows) > 1:
            raise ControlError(f"{job_id} is the beginning of several job ids; give more of it", code="ambiguous")
        return rows[0]

    def _live(self, caller: Caller, job_id: str) -> LiveJob:
        row = self._find(caller, job_id)
        live = self._engine.jobs.get(row.key)
        if live is None or live.publishing:
            raise ControlError(f"job {row.job} is over already ({row.state.value})", code="job_over")
        return live

    # Jobs.

    @_told
    async def submit(self, submission: Submission) -> dict[str, Any]:
        """Take a submission; answers when it would survive a power cut."""
        self._may_submit(submission.owner)
        settings, notes = parse_job_settings(submission.settings, "the submission's settings")
        engine = self._engine
        begun = await asyncio.to_thread(
            claim.begin_submission, engine.layout, engine.intake.ids, os.fsencode(submission.name),
            submission.owner, submission.kind,
        )  # fmt: skip
        try:
            await asyncio.to_thread(_copy, submission, begun, engine.settings.inbox.max_unpacked_bytes)
            await asyncio.to_thread(SubmittedSettings(settings, notes).write, begun.directory)
            claimed = await asyncio.to_thread(claim.commit_submission, begun, engine.layout, engine.store.state)
        except BaseException:
            await asyncio.to_thread(begun.abandon)
            raise
        return await self._begin(claimed.job)

    def _may_submit(self, owner: int) -> None:
        if self._engine.troubles.of_all:
            raise ControlError("; ".join(self._engine.troubles.of_all.values()), code="trouble")
        if reason := self._engine.limits().room(owner, 0):
            raise ControlError(reason, code="over_limit")

    async def _begin(self, job: str) -> dict[str, Any]:
        rows = self._engine.store.state.find([job])
        await self._engine.intake.begin(rows)
        [row] = self._engine.store.state.find([job])
        if row.state is JobState.REFUSED:
            raise DropRefused("; ".join(row.notes))
        return self._job_document(row, {})

    @_told
    async def cancel(self, caller: Caller, job_id: str) -> dict[str, Any]:
        """End a job; what is answered stays."""
        live = self._live(caller, job_id)
        await self._engine.endings.cancel(live)
        return job_document(live, 0)

    @_told
    async def retry(self, caller: Caller, job_id: str) -> dict[str, Any]:
        """A new job from the requests of a finished one that did not succeed."""
        row = self._find(caller, job_id)
        if row.key in self._engine.jobs:
            raise ControlError(f"job {row.job} is not over yet; retry it when it is", code="job_running")
        self._may_submit(row.owner)
        engine = self._engine
        begun = await asyncio.to_thread(
            claim.begin_submission, engine.layout, engine.intake.ids, _retry_name(row), row.owner, "file"
        )
        try:
            count = await asyncio.to_thread(self._copy_failed, row, begun.input)
            if not count:
                raise ControlError(f"job {row.job} has no failed request that could be tried again", code="nothing")
            # Records have been made into requests already.
            settings = msgspec.structs.replace(row.settings, template=None, text_column=None, id_column=None)
            settings = msgspec.structs.replace(settings, sample=None, sample_of=None)
            if isinstance(settings.deadline, str):  # a time of the first job; it may be over
                settings = msgspec.structs.replace(settings, deadline=None)
            await asyncio.to_thread(SubmittedSettings(settings, [], row.job).write, begun.directory)
            claimed = await asyncio.to_thread(claim.commit_submission, begun, engine.layout, engine.store.state)
        except BaseException:
            await asyncio.to_thread(begun.abandon)
            raise
        return await self._begin(claimed.job)

    def _copy_failed(self, row: JobRow, target: Path) -> int:
        source = request_file(self._engine.layout.job_dir(row.job) / "input")
        if not source.exists():
            raise ControlError(f"the prompts of job {row.job} are no longer kept; drop them again", code="released")
        rows = self._engine.store.of(row).failed_requests(row.key)
        with open(source, "rb") as prompts, open(target, "wb") as file:
            for request in rows:
                prompts.seek(request.offset)
                file.write(prompts.read(request.length).replace(b"\n", b" ") + b"\n")
        return len(rows)

    @_told
    async def pause(self, caller: Caller, job_id: str | None) -> dict[str, Any]:
        """Offer nothing new, of one job or of all."""
        if job_id is None:
            await asyncio.to_thread(self._engine.store.state.set, "paused", "1")
            self._engine.dispatcher.hold(_OPERATOR)
            return {"paused": True}
        live = self._live(caller, job_id)
        await self._engine.pause(live, True)
        return job_document(live, 0)

    @_told
    async def resume(self, caller: Caller, job_id: str | None) -> dict[str, Any]:
        """Go on."""
        if job_id is None:
            await asyncio.to_thread(self._engine.store.state.set, "paused", "")
            self._engine.dispatcher.unhold(_OPERATOR)
            return {"paused": False}
        live = self._live(caller, job_id)
        await self._engine.pause(live, False)
        return job_document(live, 0)

    @_told
    async def remove_job(self, caller: Caller, job_id: str) -> dict[str, Any]:
        """Erase a job that is over."""
        row, engine = self._find(caller, job_id), self._engine
        if row.key in engine.jobs:
            raise ControlError(f"job {row.job} is not over; first: obatchctl cancel {row.job}", code="job_running")
        await asyncio.to_thread(erase, engine.layout, engine.store, [row])
        return {"removed": row.job}

    # Servers and models.

    def _known_server(self, server_id: str) -> Server:
        server = self._fleet.servers.get(server_id)
        if server is None:
            known = ", ".join(self._fleet.servers) or "none"
            raise NotFoundError(f"no server {server_id}; there are: {known}")
        return server

    async def server_action(self, server_id: str, action: str) -> dict[str, Any]:
        """``drain``, ``resume`` or ``restart`` one server."""
        server = self._known_server(server_id)
        if action == "resume":
            server.resume()
            return self._server(server)
        work = server.drain("asked by the operator") if action == "drain" else self._restart(server)
        task = asyncio.create_task(work, name=f"{action}-{server_id}")
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)
        # Long answers may be in flight: the caller hears how far it is, the rest goes on.
        await asyncio.wait({task}, timeout=_ACTION_S)
        return self._server(server)

    async def _restart(self, server: Server) -> None:
        """Let what is in flight end, up to the server's ``drain_s``, then end and start it; ends a drain too."""
        await server.drain("is about to be restarted, asked by the operator")
        if (link := self._engine.dispatcher.links.get(server.id)) is not None:
            await self._engine.dispatcher.vacate(link, 0.0, "its server is restarted")
        await server.restart("asked by the operator")
        server.resume()

    async def server_log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        """What a managed server writes."""
        server = self._known_server(server_id)
        if not isinstance(server, ManagedServer):
            raise ControlError(f"{server_id} runs elsewhere: its output is on its own host", code="remote")
        async with contextlib.aclosing(read_log(server.log_file, lines, follow=follow)) as found:
            async for line in found:
                yield line

    async def drain(self) -> dict[str, Any]:
        """Offer nothing new on this host; returns at once, ``status`` says when all has ended."""
        self._engine.dispatcher.hold(_DRAIN)
        return {"state": self._state(daemon_itself())[0]}

    async def undrain(self) -> dict[str, Any]:
        """Take work again."""
        self._engine.dispatcher.unhold(_DRAIN)
        return {"state": self._state(daemon_itself())[0]}

    async def models(self) -> list[dict[str, Any]]:
        """The models in the servers' stores."""
        return [msgspec.to_builtins(info) | {"model": info.name} for info in await self._models.list_models()]

    async def pull_model(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """Pull a model, with progress."""
        async with contextlib.aclosing(self._models.pull(name)) as steps:
            async for step in steps:
                yield msgspec.to_builtins(step)

    async def remove_model(self, name: str) -> dict[str, Any]:
        """Delete a model from the store."""
        await self._models.remove(name)
        return {"removed": name}

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again."""
        return await self._reload()


def _copy(submission: Submission, incoming: claim.Incoming, limit_bytes: int) -> None:
    for name, descriptor in submission.files:
        with os.fdopen(descriptor, "rb", closefd=False) as source:
            incoming.add(name, source, limit_bytes)


def _profile(profile: Any) -> dict[str, Any] | None:
    return {"model": profile.model, "context_length": profile.context_length} if profile else None


def _retry_name(row: JobRow) -> bytes:
    stem = row.name
    for ending in (".gz", *FILE_ENDINGS):
        stem = stem.removesuffix(ending.encode())
    return stem + b".retry.jsonl"
