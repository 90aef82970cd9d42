"""The desk ``care`` of a host: what the head knows of its cards, because it gives their servers work."""

from __future__ import annotations

import time

import attrs

from obatchd.cluster.host.mover import HeadMover


@attrs.define(eq=False)
class CareDesk:
    """Implements :class:`obatchd.cluster.desks.CareDesk`."""

    _mover: HeadMover

    async def crashed(self, server: str, work: str, ago_s: float) -> None:
        self._mover.crashes.crashed(server, work, time.monotonic() - ago_s)

    async def cleared(self, server: str, work: str, ago_s: float, answered_by: list[str], reason: str) -> None:
        self._mover.crashes.cleared_by(server, work, time.monotonic() - ago_s, set(answered_by), reason)
