"""The desk ``servers`` of a host: its servers, for the head. Servers are named as on this host: gpu0."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import attrs

from obatchd import log
from obatchd.cluster.host.news import News
from obatchd.errors import NotFoundError
from obatchd.jobs.model import Profile
from obatchd.servers.fleet import Fleet
from obatchd.servers.logs import read_log
from obatchd.servers.managed import ManagedServer

_log = log.get(__name__)


@attrs.define(eq=False)
class ServerDesk:
    """Each method is that of :class:`obatchd.servers.server.Server` with its name, and raises what that does.

    The head is told of the server before it gets an answer, so that what it sees of it is right by then.
    """

    _fleet: Fleet
    _news: News

    async def load(self, server: str, profile: Profile, afresh: bool = False, prefer: Sequence[int] = ()) -> None:
        """``afresh``: also where it seems to be loaded. ``prefer``: with the first of these slots that fit."""
        found = self._find(server)
        try:
            if afresh:
                found.loaded = None
            if prefer and found.tuning is not None:
                found.prefer(prefer)
            await found.load(profile)
        finally:
            self._news.look()

    async def unload(self, server: str) -> None:
        found = self._find(server)
        try:
            await found.unload()
        finally:
            self._news.look()

    async def drain(self, server: str, reason: str) -> bool:
        try:
            return await self._find(server).drain(reason)
        finally:
            self._news.look()

    async def restart(self, server: str, reason: str) -> None:
        found = self._find(server)
        _log.info("server_command", server=server, command="restart", reason=reason)
        try:
            await found.restart(reason)
        finally:
            self._news.look()

    async def try_again(self, server: str) -> None:
        try:
            await self._find(server).try_again()
        finally:
            self._news.look()

    async def resume(self, server: str) -> None:
        """End a drain by an administrator."""
        self._find(server).resume()
        self._news.look()

    async def one_token(self, server: str, timeout_s: float) -> None:
        await self._find(server).one_token(timeout_s)

    async def fallen_back(self, server: str) -> str:
        return await self._find(server).fallen_back()

    async def log(self, server: str, lines: int, follow: bool = False) -> AsyncGenerator[str, None]:
        """The last lines of its output; with ``follow`` also those that come, for ever."""
        async with aclosing(read_log(self._find(server).log_file, lines, follow=follow)) as found:
            async for line in found:
                yield line

    def _find(self, server_id: str) -> ManagedServer:
        server = self._fleet.servers.get(server_id)
        if not isinstance(server, ManagedServer):
            there = ", ".join(self._fleet.servers) or "none"
            raise NotFoundError(f"there is no server {server_id} on this host; there are: {there}")
        return server
