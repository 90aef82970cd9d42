"""GPUs as operators see and command them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from attrs import define, frozen

from obatchd.control.auth import Caller
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEventEntry, Gpus, Released
from obatchd.gpucare.cards import GpuCards
from obatchd.live.audit import AuditLog
from obatchd.operations.audit import entry_of, recorded


@frozen(eq=False)
class CallersLedger:
    """Writes a caller's commands into the audit log. Implements :class:`obatchd.gpucare.cards.Ledger`."""

    _audit: AuditLog
    _caller: Caller

    def recorded(self, kind: str, uuid: str, detail: str = "") -> AbstractAsyncContextManager[None]:
        return recorded(self._audit, entry_of(self._caller, kind, uuid, detail=detail))


@define(eq=False)
class GpuService:
    """Implements :class:`obatchd.control.operations.GpuOperations`, which says what each method does."""

    _cards: GpuCards
    _audit: AuditLog

    def all(self) -> Gpus:
        return self._cards.all()

    async def one(self, name: str) -> GpuDetails:
        return await self._cards.one(name)

    async def events(self, name: str | None, limit: int) -> list[GpuEventEntry]:
        return await self._cards.events(name, limit)

    async def quarantine(self, caller: Caller, name: str, reason: str) -> GpuEntry:
        return await self._cards.quarantine(self._ledger(caller), name, reason)

    async def release(self, caller: Caller, name: str) -> Released:
        return await self._cards.release(self._ledger(caller), name)

    async def lend(self, caller: Caller, name: str, for_s: float) -> GpuEntry:
        return await self._cards.lend(self._ledger(caller), name, for_s)

    async def share(self, caller: Caller, name: str, shared: bool) -> GpuEntry:
        return await self._cards.share(self._ledger(caller), name, shared)

    async def take_back(self, caller: Caller, name: str) -> GpuEntry:
        return await self._cards.take_back(self._ledger(caller), name)

    def _ledger(self, caller: Caller) -> CallersLedger:
        return CallersLedger(self._audit, caller)
