"""Questions and commands of operators. Implements :class:`obatchd.control.operations.Operations`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import msgspec

from obatchd.control.auth import Caller, daemon_itself
from obatchd.control.operations import Submission
from obatchd.delivery.documents import finished_document, job_document
from obatchd.documents.answers import HostState, Paused, Reloaded, Removed
from obatchd.documents.jobs import JobDocument
from obatchd.documents.models import ModelEntry, PullProgress
from obatchd.documents.status import ServerEntry, Status
from obatchd.engine.engine import Engine
from obatchd.engine.erasure import erase
from obatchd.errors import ControlError, NotFoundError, SpoolError
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpus.probe import Probe
from obatchd.jobs.model import JobState
from obatchd.jobs.store import DISK_ERRORS, JobRow
from obatchd.live.job import LiveJob
from obatchd.operations.gpus import GpuService
from obatchd.operations.overview import DRAIN, OPERATOR, Overview
from obatchd.operations.submissions import Submissions
from obatchd.servers.fleet import Fleet
from obatchd.servers.logs import read_log
from obatchd.servers.managed import ManagedServer
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import Server
from obatchd.tasks import TaskSet

_P = ParamSpec("_P")
_T = TypeVar("_T")
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


class OperatorService:
    """Documents and commands; errors are :class:`ControlError` with a message for the user.

    Attributes:
        gpus: the same for GPUs.
    """

    def __init__(
        self,
        engine: Engine,
        fleet: Fleet,
        models: ModelKeeper,
        probe: Probe,
        policy: GpuPolicy,
        reload: Callable[[], Awaitable[Reloaded]],
    ) -> None:
        self._engine = engine
        self._fleet = fleet
        self._models = models
        self._overview = Overview(engine, fleet, models, probe)
        self._submissions = Submissions(engine)
        self.gpus = GpuService(policy, probe)
        self._reload = reload
        self._actions = TaskSet(self)

    # Looking.

    def status(self, caller: Caller) -> Status:
        """The whole state of the daemon in one document, with those jobs and drops that the caller may see."""
        return self._overview.status(caller)

    def jobs(self, caller: Caller, state: str | None, limit: int, *, mine: bool = False) -> list[JobDocument]:
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

    def _job_document(self, row: JobRow, in_flight: dict[int, int]) -> JobDocument:
        live = self._engine.jobs.get(row.key)
        # The index hears first, in the publisher's thread, that a job is over.
        if live is not None and row.state is not JobState.DONE:
            return job_document(live, in_flight.get(row.key, 0))
        return finished_document(row, self._engine.layout)

    def job(self, caller: Caller, job_id: str) -> JobDocument:
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
    async def submit(self, submission: Submission) -> JobDocument:
        """Take a submission; answers when it would survive a power cut."""
        return self._job_document(await self._submissions.submit(submission), {})

    @_told
    async def cancel(self, caller: Caller, job_id: str) -> JobDocument:
        """End a job; answers stay."""
        live = self._live(caller, job_id)
        await self._engine.completion.cancellation.cancel(live)
        return job_document(live, 0)

    @_told
    async def retry(self, caller: Caller, job_id: str) -> JobDocument:
        """A new job from the requests of a finished one that did not succeed."""
        row = self._find(caller, job_id)
        if row.key in self._engine.jobs and row.state is not JobState.DONE:
            raise ControlError(f"job {row.job} is not over yet; retry it when it is", code="job_running")
        return self._job_document(await self._submissions.retry(row), {})

    @_told
    async def pause(self, caller: Caller, job_id: str | None) -> JobDocument | Paused:
        """Offer nothing new, of one job or of all."""
        if job_id is None:
            await asyncio.to_thread(self._engine.store.state.set, "paused", "1")
            self._engine.dispatcher.holds.hold(OPERATOR)
            return Paused(True)
        live = self._live(caller, job_id)
        await self._engine.admission.pause(live, True)
        return job_document(live, 0)

    @_told
    async def resume(self, caller: Caller, job_id: str | None) -> JobDocument | Paused:
        """Go on."""
        if job_id is None:
            await asyncio.to_thread(self._engine.store.state.set, "paused", "")
            self._engine.dispatcher.holds.release(OPERATOR)
            return Paused(False)
        live = self._live(caller, job_id)
        await self._engine.admission.pause(live, False)
        return job_document(live, 0)

    @_told
    async def remove_job(self, caller: Caller, job_id: str) -> Removed:
        """Erase a job that is over."""
        row, engine = self._find(caller, job_id), self._engine
        if row.key in engine.jobs:
            raise ControlError(f"job {row.job} is not over; first: obatchctl cancel {row.job}", code="job_running")
        await asyncio.to_thread(erase, engine.layout, engine.store, [row])
        return Removed(row.job)

    # Servers and models.

    def _known_server(self, server_id: str) -> Server:
        server = self._fleet.servers.get(server_id)
        if server is None:
            known = ", ".join(self._fleet.servers) or "none"
            raise NotFoundError(f"no server {server_id}; there are: {known}")
        return server

    async def server_action(self, server_id: str, action: str) -> ServerEntry:
        """``drain``, ``resume`` or ``restart`` one server."""
        server = self._known_server(server_id)
        if action == "resume":
            server.resume()
            return self._overview.server(server)
        work = self._drain(server) if action == "drain" else self._restart(server)
        task = self._actions.start(work, f"{action}-{server_id}")
        # Long answers may be in flight: the caller hears how far it is, the rest goes on.
        done, _ = await asyncio.wait({task}, timeout=_ACTION_S)
        for ended in done:
            ended.result()  # its caller is not to hear that all is well
        return self._overview.server(server)

    def task_failed(self, name: str, error: BaseException) -> None:
        """An action failed by a defect; its caller is told while waiting, else the state of the server shows it."""

    async def _drain(self, server: Server) -> None:
        await server.drain("asked by the operator")

    async def _restart(self, server: Server) -> None:
        """Let requests in flight end, up to the server's ``drain_s``, then end and start it; ends a drain too."""
        await server.drain("is about to be restarted, asked by the operator")
        if (link := self._engine.dispatcher.links.get(server.id)) is not None:
            await self._engine.dispatcher.vacate(link, 0.0, "its server is restarted")
        await server.restart("asked by the operator")
        server.resume()

    async def server_log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        """The output of a managed server."""
        server = self._known_server(server_id)
        if not isinstance(server, ManagedServer):
            raise ControlError(f"{server_id} runs elsewhere: its output is on its own host", code="remote")
        async with contextlib.aclosing(read_log(server.log_file, lines, follow=follow)) as found:
            async for line in found:
                yield line

    async def drain(self) -> HostState:
        """Offer nothing new on this host; returns at once, ``status`` says when all has ended."""
        self._engine.dispatcher.holds.hold(DRAIN)
        return HostState(self._overview.state(daemon_itself())[0])

    async def undrain(self) -> HostState:
        """Take work again."""
        self._engine.dispatcher.holds.release(DRAIN)
        return HostState(self._overview.state(daemon_itself())[0])

    async def models(self) -> list[ModelEntry]:
        """The models in the servers' stores."""
        return [
            ModelEntry(**msgspec.structs.asdict(info), model=info.name) for info in await self._models.list_models()
        ]

    async def pull_model(self, name: str) -> AsyncIterator[PullProgress]:
        """Pull a model, with progress."""
        async with contextlib.aclosing(self._models.pull(name)) as steps:
            async for step in steps:
                yield step

    async def remove_model(self, name: str) -> Removed:
        """Delete a model from the store."""
        await self._models.remove(name)
        return Removed(name)

    async def reload(self) -> Reloaded:
        """Read the configuration again."""
        return await self._reload()
