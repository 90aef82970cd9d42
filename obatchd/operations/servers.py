"""Servers and models as operators see and command them: a part of :class:`obatchd.control.operations.Operations`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from attrs import define, field

from obatchd.documents import excerpt
from obatchd.documents.answers import Removed
from obatchd.documents.models import ModelEntry, PullProgress
from obatchd.documents.status import ServerEntry
from obatchd.errors import ControlError, NotFoundError
from obatchd.operations.overview import Overview
from obatchd.servers.logs import read_log
from obatchd.servers.managed import ManagedServer
from obatchd.servers.server import Server
from obatchd.tasks import TaskSet

_ACTION_S = 5.0  # longest wait for a drain or restart before the answer says how far it is


@define(eq=False, slots=False)
class ServerCommands(Overview):
    """Commands to servers and their stores of models."""

    _actions: TaskSet = field(init=False)

    @_actions.default
    def _own_actions(self) -> TaskSet:
        return TaskSet(self)

    def _known_server(self, server_id: str) -> Server:
        server = self._fleet.servers.get(server_id)
        if server is None:
            known = ", ".join(self._fleet.servers) or "none"
            raise NotFoundError(f"no server {server_id}; there are: {known}")
        return server

    async def server_action(self, server_id: str, action: str) -> ServerEntry:
        server = self._known_server(server_id)
        if action == "resume":
            server.resume()
            return self.server(server)
        work = self._drain(server) if action == "drain" else self._restart(server)
        task = self._actions.start(work, f"{action}-{server_id}")
        # Long answers may be in flight: the caller hears how far it is, the rest goes on.
        done, _ = await asyncio.wait({task}, timeout=_ACTION_S)
        for ended in done:
            ended.result()  # its caller is not to hear that all is well
        return self.server(server)

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

    def server_log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        server = self._known_server(server_id)
        if not isinstance(server, ManagedServer):
            raise ControlError(f"{server_id} runs elsewhere: its output is on its own host", code="remote")
        return read_log(server.log_file, lines, follow=follow)

    async def models(self) -> list[ModelEntry]:
        return [excerpt(ModelEntry, info, model=info.name) for info in await self._models.list_models()]

    def pull_model(self, name: str) -> AsyncIterator[PullProgress]:
        return self._models.pull(name)

    async def remove_model(self, name: str) -> Removed:
        await self._models.remove(name)
        return Removed(name)
