"""What head and host may ask of each other, as types: the desk ``servers`` of a host is called ``servers.load`` …

Each side implements its desk with a class of its own; arguments travel by their names.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from obatchd.burnin.run.plan import Asked
from obatchd.documents.burnin.plan import Plan
from obatchd.documents.hosts import Finding
from obatchd.gpucare.siblings import Sibling
from obatchd.jobs.model import Profile


class ToldRecords(msgspec.Struct, frozen=True):
    """The records of a run from one on, as many as fit into a message, each a line of a journal."""

    life: str  # of the host's process: records that were told in another one may not have been written down
    lines: list[bytes]
    total: int  # that there are
    clock_s: float  # seconds since the epoch, as the host's clock has it
    loads: list[str] = []  # of the present phase; empty while none runs


class BurninDesk(Protocol):
    """The desk ``burnin`` of a host: its part of a run over several. It goes on whatever becomes of the head."""

    async def start(self, asked: Asked, whole: Plan) -> None:
        """As :meth:`obatchd.burnin.run.manager.Burnin.start_part`."""

    async def stop(self, run: str, why: str) -> None:
        """End a run soon; nothing where it is over."""

    async def records(self, run: str, first: int) -> ToldRecords:
        """The records of a run from the one with this number on, from 0. Raises NotFoundError where it has none."""


class ServersDesk(Protocol):
    """The desk ``servers`` of a host. ``server`` is an id there: gpu0. All raise NotFoundError where there is none."""

    async def load(self, server: str, profile: Profile, afresh: bool = False, prefer: Sequence[int] = ()) -> None:
        """As :meth:`obatchd.servers.server.Server.load`; ``afresh``: also where it seems to be loaded. ``prefer``: with
        the first of these numbers of slots with which all fits."""

    async def unload(self, server: str) -> None: ...
    async def drain(self, server: str, reason: str) -> bool: ...
    async def restart(self, server: str, reason: str) -> None: ...
    async def try_again(self, server: str) -> None: ...
    async def resume(self, server: str) -> None: ...
    async def one_token(self, server: str, timeout_s: float) -> None: ...
    async def fallen_back(self, server: str) -> str: ...
    def log(self, server: str, lines: int, follow: bool) -> AsyncGenerator[str, None]: ...


class DoctorDesk(Protocol):
    """The desk ``doctor`` of a host."""

    async def examine(self) -> list[Finding]:
        """What the checks of ``obatchctl doctor`` find on its machine, and where one hangs.

        Raises HostError where those of an earlier call still hang, or end by a defect.
        """


class CareDesk(Protocol):
    """The desk ``care`` of a host: crashes of its servers, as dispatch sees them, ``ago_s`` seconds ago."""

    async def crashed(self, server: str, work: str, ago_s: float) -> None:
        """A request was in flight as a server crashed, whose profile is ``work`` in words."""

    async def cleared(self, server: str, work: str, ago_s: float, answered_by: list[str], reason: str) -> None:
        """A server on the cards with these UUIDs answered such a request; ``reason`` says so."""


class HeadDesk(Protocol):
    """The desk ``head`` of the head."""

    async def vacate(self, server: str, patience_s: float, reason: str) -> None:
        """Give a server nothing new, wait ``patience_s`` for its requests, and have others answer the rest."""

    async def siblings(self, own: list[Sibling]) -> list[Sibling]:
        """What the cards of a host do, for what those of all others do."""
