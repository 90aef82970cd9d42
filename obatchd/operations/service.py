"""Carries out the commands of operators. Implements :class:`obatchd.control.operations.Operations`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import define, field

from obatchd.control.auth import daemon_itself
from obatchd.documents.answers import HostState, Reloaded
from obatchd.gpucare.policy import GpuPolicy
from obatchd.operations.gpus import GpuService
from obatchd.operations.overview import DRAIN
from obatchd.operations.servers import ServerCommands


@define(eq=False, slots=False)
class OperatorService(ServerCommands):
    """Documents and commands; errors are :class:`ControlError` with a message for the user."""

    _policy: GpuPolicy
    reload: Callable[[], Awaitable[Reloaded]]
    gpus: GpuService = field(init=False)  # the same for GPUs

    @gpus.default
    def _gpus(self) -> GpuService:
        return GpuService(self._policy, self._probe)

    async def drain(self) -> HostState:
        self._engine.dispatcher.holds.hold(DRAIN)
        return HostState(self.state(daemon_itself())[0])

    async def undrain(self) -> HostState:
        self._engine.dispatcher.holds.release(DRAIN)
        return HostState(self.state(daemon_itself())[0])
