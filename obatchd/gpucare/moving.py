"""Work and the care of GPUs: what that asks of whoever gives work to servers, in this process or elsewhere."""

from __future__ import annotations

from typing import Protocol

from obatchd.dispatch.events import CrashListener


class CrashesHere(CrashListener):
    """Judges the cards of this machine by crashes, also where servers of others answered what was in flight.
    :class:`obatchd.gpucare.policy.GpuPolicy`; does nothing by itself."""

    def cleared_by(self, server_id: str, work: str, crashed_s: float, cards: set[str], reason: str) -> None:
        """As ``cleared``, by a server on these cards, which may be those of other machines."""

    def cards_of(self, server_id: str) -> set[str]:
        """The UUIDs of the cards here that a server computes on."""
        return set()


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

    def listen_to_crashes(self, listener: CrashesHere) -> None:
        """Tell of each request that was in flight in a crash of a server, and when another server answers it."""
