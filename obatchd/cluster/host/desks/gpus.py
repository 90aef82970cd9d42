"""The desk ``gpus`` of a host: its GPUs, for the head. Who gives a command is in the head's audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs

from obatchd import log
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEventEntry, Released
from obatchd.documents.history import GpuHistory
from obatchd.errors import ObatchError
from obatchd.gpucare.cards import GpuCards
from obatchd.gpucare.past import Past

_log = log.get(__name__)


class _HostLog:
    """The commands in this host's own log. Implements :class:`obatchd.gpucare.cards.Ledger`."""

    @asynccontextmanager
    async def _written(self, kind: str, uuid: str, detail: str) -> AsyncIterator[None]:
        _log.info("gpu_command", command=kind, gpu=uuid, detail=detail)
        try:
            yield
        except ObatchError as error:
            _log.warning("gpu_command_failed", command=kind, gpu=uuid, reason=error.message)
            raise

    def recorded(self, kind: str, uuid: str, detail: str = "") -> AbstractAsyncContextManager[None]:
        return self._written(kind, uuid, detail)


@attrs.define(eq=False)
class GpuDesk:
    """What each method does is said by :class:`obatchd.control.operations.GpuOperations`. A GPU is named by its UUID or
    the beginning of it, its index on this host, or its serial number."""

    _cards: GpuCards
    _past: Past
    _ledger: _HostLog = attrs.field(factory=_HostLog, init=False)

    async def one(self, name: str) -> GpuDetails:
        return await self._cards.one(name)

    async def events(self, name: str | None, limit: int) -> list[GpuEventEntry]:
        return await self._cards.events(name, limit)

    async def history(self, since_s: float, until_s: float, points: int, name: str | None) -> GpuHistory:
        return await self._past.gpus(since_s, until_s, points, name)

    async def quarantine(self, name: str, reason: str) -> GpuEntry:
        return await self._cards.quarantine(self._ledger, name, reason)

    async def release(self, name: str) -> Released:
        return await self._cards.release(self._ledger, name)

    async def lend(self, name: str, for_s: float) -> GpuEntry:
        return await self._cards.lend(self._ledger, name, for_s)

    async def share(self, name: str, shared: bool) -> GpuEntry:
        return await self._cards.share(self._ledger, name, shared)

    async def take_back(self, name: str) -> GpuEntry:
        return await self._cards.take_back(self._ledger, name)
