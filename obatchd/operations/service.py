"""Carries out the commands of operators. Implements :class:`obatchd.control.operations.Operations`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from obatchd.control.auth import Caller, daemon_itself
from obatchd.documents.answers import HostState, Reloaded
from obatchd.documents.status import Status
from obatchd.engine.engine import Engine
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpus.probe import Probe
from obatchd.operations.gpus import GpuService
from obatchd.operations.jobs import JobCommands
from obatchd.operations.overview import DRAIN, Overview
from obatchd.operations.servers import ServerCommands
from obatchd.servers.fleet import Fleet
from obatchd.servers.models import ModelKeeper


class OperatorService(JobCommands, ServerCommands):
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
        JobCommands.__init__(self, engine)
        ServerCommands.__init__(self, fleet, models, engine.dispatcher, Overview(engine, fleet, models, probe))
        self.gpus = GpuService(policy, probe)
        self._reload = reload

    def status(self, caller: Caller) -> Status:
        """The whole state of the daemon in one document; of jobs and drops those that the caller may see."""
        return self._overview.status(caller)

    async def drain(self) -> HostState:
        """Offer nothing new on this host; returns at once, ``status`` says when all has ended."""
        self._dispatcher.holds.hold(DRAIN)
        return HostState(self._overview.state(daemon_itself())[0])

    async def undrain(self) -> HostState:
        """Take work again."""
        self._dispatcher.holds.release(DRAIN)
        return HostState(self._overview.state(daemon_itself())[0])

    async def reload(self) -> Reloaded:
        """Read the configuration again."""
        return await self._reload()
