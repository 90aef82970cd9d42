"""What head and host may ask of each other, as types: the desk ``servers`` of a host is called ``servers.load`` …

Each side implements its desk with a class of its own; arguments travel by their names.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from obatchd.jobs.model import Profile


class ServersDesk(Protocol):
    """The desk ``servers`` of a host. ``server`` is an id there: gpu0. All raise NotFoundError where there is none."""

    async def load(self, server: str, profile: Profile, afresh: bool = False) -> None:
        """As :meth:`obatchd.servers.server.Server.load`; ``afresh``: also where it seems to be loaded."""

    async def unload(self, server: str) -> None: ...
    async def drain(self, server: str, reason: str) -> bool: ...
    async def restart(self, server: str, reason: str) -> None: ...
    async def try_again(self, server: str) -> None: ...
    async def resume(self, server: str) -> None: ...
    async def one_token(self, server: str, timeout_s: float) -> None: ...
    async def fallen_back(self, server: str) -> str: ...
    def log(self, server: str, lines: int, follow: bool) -> AsyncGenerator[str, None]: ...


class HeadDesk(Protocol):
    """The desk ``head`` of the head."""

    async def vacate(self, server: str, patience_s: float, reason: str) -> None:
        """Give a server nothing new, wait ``patience_s`` for its requests, and have others answer the rest."""
