"""How long a host keeps its models, and itself, without a head."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import attrs

from obatchd import log
from obatchd.cluster.host.head import Head
from obatchd.cluster.host.settings import HostSettings
from obatchd.errors import ServerError
from obatchd.servers.managed import ManagedServer

_log = log.get(__name__)
_LOOK_S = 1.0


class LeaseListener(Protocol):
    """Decides what follows the end of a lease; :class:`obatchd.daemon.host.HostDaemon`."""

    def servers(self) -> Mapping[str, ManagedServer]:
        """By id."""
        ...

    def is_testing(self) -> bool:
        """Whether a burn-in runs: it goes on without the head, and needs its models."""
        ...

    def lease_over(self, lease_s: float) -> None:
        """The head has been away for longer than a lease; the models are unloaded."""


@attrs.define(eq=False)
class Lease:
    """Looks whether the head has been away for too long: whoever waits for these GPUs may then have them."""

    _head: Head
    _settings: HostSettings
    _listener: LeaseListener

    async def run(self) -> None:
        """Look for ever; each time of absence ends once."""
        over = False
        while True:
            await asyncio.sleep(_LOOK_S)
            was_over = over
            over = self._head.away_s >= self._settings.lease_s and not self._listener.is_testing()
            if over and not was_over:
                _log.warning("lease_over", lease_s=self._settings.lease_s)
                await asyncio.gather(*map(self._unload, self._listener.servers().values()))
                self._listener.lease_over(self._settings.lease_s)

    async def _unload(self, server: ManagedServer) -> None:
        try:
            await server.unload()
        except ServerError as error:
            _log.warning("lease_unload_failed", server=server.id, reason=error.message)
