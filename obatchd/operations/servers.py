"""Servers and the models in their stores, as operators see and command them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from attrs import Factory, define, field
from msgspec import UNSET

from obatchd.client.runtime import guarded_ports
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.server import HostedServer
from obatchd.control.auth import Caller
from obatchd.dispatch.link import Link
from obatchd.dispatch.tuning.tuner import Tuner
from obatchd.documents import excerpt
from obatchd.documents.answers import Removed
from obatchd.documents.audit import SERVER_DRAINED, SERVER_RESTARTED, SERVER_RESUMED
from obatchd.documents.models import ModelEntry, PullProgress
from obatchd.documents.status import LoadedModel, RefusedModel, ServerEntry, ServerGpu
from obatchd.documents.tuning import SlotTuning
from obatchd.engine.engine import Engine
from obatchd.errors import ControlError, NotFoundError
from obatchd.gpus.model import Gpu, Reading
from obatchd.gpus.probe import Probe
from obatchd.operations.audit import entry_of, recorded
from obatchd.operations.tuning import tuning_document
from obatchd.servers.fleet import Fleet
from obatchd.servers.logs import read_log
from obatchd.servers.managed import ManagedServer
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import ServerFace
from obatchd.settings import addresses
from obatchd.tasks import TaskSet
from obatchd.times import clock
from obatchd.words import in_order

_KINDS = {"drain": SERVER_DRAINED, "resume": SERVER_RESUMED, "restart": SERVER_RESTARTED}  # in the audit log
_ACTION_S = 5.0  # longest wait for a drain or restart before the answer says how far it is


@define(eq=False)
class ServerCommands:
    """Implements :class:`obatchd.control.operations.ServerOperations`, which says what each method does."""

    _engine: Engine
    _fleet: Fleet
    _probe: Probe
    _tuner: Tuner
    hosts: Mapping[str, JoinedHost] = field(factory=dict)  # joined ones, by name
    _actions: TaskSet = field(default=Factory(TaskSet, takes_self=True), init=False)

    def all(self) -> list[ServerEntry]:
        guests = sorted(self._fleet.guests.values(), key=_by_host)
        return [self._document(server) for server in (*self._fleet.servers.values(), *guests)]

    def sorted_hosts(self) -> list[JoinedHost]:
        """Joined hosts by name."""
        return [self.hosts[name] for name in sorted(self.hosts, key=in_order)]

    def tuning(self) -> SlotTuning:
        managed = any(isinstance(server, ManagedServer) for server in self._fleet.servers.values())
        return tuning_document(self._tuner, self._engine.settings.value.servers, managed=managed)

    def _find(self, server_id: str) -> ServerFace:
        """The server of this id, or at this address as [ollama_instances] has it."""
        servers = self._fleet.all
        if server_id in servers:
            return servers[server_id]
        with contextlib.suppress(ValueError, KeyError):
            _, host, port = addresses.split(server_id)
            here = self._fleet.servers.values()
            found = (server for server in here if addresses.split(server.base_url)[1:] == (host, port))
            if (server := next(found, None)) is not None:
                return server
        known = ", ".join(servers) or "none"
        raise NotFoundError(f"no server {server_id}; there are: {known}")

    async def act(self, caller: Caller, server_id: str, action: str) -> ServerEntry:
        server = self._find(server_id)
        async with recorded(self._engine.work.audit, entry_of(caller, _KINDS[action], server.id)):
            return await self._act(server, action)

    async def _act(self, server: ServerFace, action: str) -> ServerEntry:
        if action == "resume":
            server.resume()
            if (link := self._engine.dispatcher.links.get(server.id)) is not None:
                link.refused.clear()  # somebody may have pulled the model by now
            await server.try_again()
            return self._document(server)
        work = self._drain(server) if action == "drain" else self._restart(server)
        task = self._actions.start(work, f"{action}-{server.id}")
        # Long answers may be in flight: the caller hears how far it is, the rest goes on.
        done, _ = await asyncio.wait({task}, timeout=_ACTION_S)
        for ended in done:
            ended.result()  # its caller is not to hear that all is well
        return self._document(server)

    def task_failed(self, name: str, error: BaseException) -> None:
        """An action failed by a defect; its caller is told while waiting, else the state of the server shows it."""

    async def _drain(self, server: ServerFace) -> None:
        back = f"back with: obatchctl servers resume {server.id}"
        await server.drain(f"by an administrator at {clock(time.time(), '%H:%M')}; {back}")

    async def _restart(self, server: ServerFace) -> None:
        """Let requests in flight end, up to the server's ``drain_s``, then end and start it; ends a drain too."""
        await server.drain("is about to be restarted, asked by an administrator")
        if (link := self._engine.dispatcher.links.get(server.id)) is not None:
            await self._engine.dispatcher.vacate(link, 0.0, "its server is restarted")
        await server.restart("asked by an administrator")
        server.resume()

    def log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        server = self._find(server_id)
        if isinstance(server, HostedServer):
            return server.log(lines, follow=follow)
        if not isinstance(server, ManagedServer):
            raise ControlError(f"{server.id} runs elsewhere: its output is on its own host", code="remote")
        return read_log(server.log_file, lines, follow=follow)

    def open_ports(self) -> list[str]:
        """A notice where, on a host for several users, the servers' ports are open to all of them."""
        if self._engine.settings.value.access.mode != "service":
            return []
        shut = guarded_ports()
        managed = [server for server in self._fleet.servers.values() if isinstance(server, ManagedServer)]
        if all(server.port in shut for server in managed):
            return []
        return ["every user of this host can reach the servers' ports (install nftables, then restart obatchd)"]

    def _document(self, server: ServerFace) -> ServerEntry:
        link = self._engine.dispatcher.links.get(server.id)
        loaded, loading = (
            LoadedModel(profile.model, profile.context_length) if profile else None
            for profile in (server.loaded, server.loading)
        )
        return excerpt(
            ServerEntry,
            server,
            state=server.state.value,
            url=server.base_url,
            gpu=self._gpu(server, server.gpu) if server.gpu else None,
            gpus=[self._gpu(server, gpu) for gpu in server.gpus],
            loaded=loaded,
            loading=loading,
            in_flight=link.started if link else 0,
            offered=len(link.offers) if link else 0,
            tokens_per_s=round(link.tokens_per_s(), 1) if link else 0.0,
            requests_done=link.requests_done if link else 0,
            watchdog=dict(link.watchdog) if link else {},
            worker_pid=link.worker.pid if link and link.worker else None,
            cannot_have=_refused(link) or UNSET if link else UNSET,
            families=link.families or UNSET if link else UNSET,
            host=server.host or UNSET,
        )

    def _gpu(self, server: ServerFace, gpu: Gpu) -> ServerGpu:
        if server.host:
            host = self.hosts.get(server.host)
            reading = host.sensors.reading(gpu.uuid) if host is not None and host.session is not None else None
        else:
            reading = self._probe.readings.get(gpu.uuid) if self._probe.state == "ok" else None  # else of earlier
        reading = reading or Reading(gpu.uuid, 0.0, memory_total_bytes=gpu.memory_bytes)
        return excerpt(ServerGpu, reading, index=gpu.index, name=gpu.name)


def _by_host(server: ServerFace) -> tuple[list[str | int], list[str | int]]:
    """For sorting: by the name of the host, then its own."""
    return in_order(server.host), in_order(server.id)


def _refused(link: Link) -> list[RefusedModel]:
    return [
        RefusedModel(profile.model, profile.context_length, refused.error.code, refused.error.message)
        for profile, refused in link.refused.items()
    ]


@define(eq=False)
class ModelCommands:
    """Implements :class:`obatchd.control.operations.ModelOperations`, which says what each method does."""

    _models: ModelKeeper

    async def all(self) -> list[ModelEntry]:
        return [excerpt(ModelEntry, info, model=info.name) for info in await self._models.list_models()]

    def pull(self, name: str) -> AsyncIterator[PullProgress]:
        return self._models.pull(name)

    async def remove(self, name: str) -> Removed:
        await self._models.remove(name)
        return Removed(name)
