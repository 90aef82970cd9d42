"""Work and the care of GPUs: what that asks of whoever gives work to servers, in this process or elsewhere."""

from __future__ import annotations

from typing import Protocol

from obatchd.dispatch.events import CrashListener


class WorkMover(Protocol):
    """Moves requests away from servers; :class:`obatchd.daemon.compose.DispatchMover` in a daemon, on a host of many
    :class:`obatchd.cluster.host.mover.HeadMover`."""

    async def vacate(self, server_id: str, patience_s: float, reason: str) -> None:
        """Wait ``patience_s`` for the requests of a server that gets nothing new, then let others answer the rest.

        That costs no attempt, and the end of the server then counts as no crash.
        """

    def hold(self, reason: str) -> None:
        """Offer nothing to any server, for a reason of :mod:`obatchd.dispatch.holds`."""

    def release(self, reason: str) -> None:
        """That reason is over."""

    def listen_to_crashes(self, listener: CrashListener) -> None:
        """Tell of each request that was in flight in a crash of a server, and when another server answers it."""
