"""GPUs as operators see and command them: those of this machine, and those of joined hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from attrs import define, field, frozen

from obatchd.cluster.head import gpus as elsewhere
from obatchd.cluster.head.joined import JoinedHost
from obatchd.control.auth import Caller
from obatchd.documents.audit import (
    GPU_LENT,
    GPU_QUARANTINED,
    GPU_RELEASED,
    GPU_SHARED,
    GPU_TAKEN_BACK,
    GPU_UNSHARED,
)
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEventEntry, Gpus, Released
from obatchd.errors import NotFoundError, ObatchError
from obatchd.gpucare.cards import GpuCards
from obatchd.live.audit import AuditLog
from obatchd.log import get
from obatchd.operations.audit import entry_of, recorded
from obatchd.times import duration
from obatchd.words import in_order

_log = get(__name__)
_MOST_NAMED = 8  # of GPUs, in one message


class HostedGpu(NamedTuple):
    """A GPU of a joined host."""

    host: JoinedHost
    uuid: str


@frozen(eq=False)
class CallersLedger:
    """Writes a caller's commands into the audit log. Implements :class:`obatchd.gpucare.cards.Ledger`."""

    _audit: AuditLog
    _caller: Caller

    def recorded(self, kind: str, uuid: str, detail: str = "") -> AbstractAsyncContextManager[None]:
        return recorded(self._audit, entry_of(self._caller, kind, uuid, detail=detail))


@define(eq=False)
class GpuService:
    """Implements :class:`obatchd.control.operations.GpuOperations`, which says what each method does.

    Those of this machine are named as ever; one of a joined host as ``node07/0`` (``node07.0`` and ``node07:0`` are
    taken, too), by its UUID or its serial number, and by its index alone where no other machine has a GPU with that
    one.
    """

    _cards: GpuCards
    _audit: AuditLog
    _hosts: Mapping[str, JoinedHost] = field(factory=dict)

    def all(self) -> Gpus:
        found = self._cards.all()
        hosts = [self._hosts[name] for name in sorted(self._hosts, key=in_order)]
        if probes := [probe for host in hosts if (probe := elsewhere.probe_of(host)) is not None]:
            found.hosts = probes
            for host in hosts:
                found.gpus += elsewhere.cards_of(host)
        return found

    async def one(self, name: str) -> GpuDetails:
        hosted, name = self.place(name)
        return await (self._cards.one(name) if hosted is None else elsewhere.details(*hosted))

    async def events(self, name: str | None, limit: int) -> list[GpuEventEntry]:
        if name is not None:
            hosted, name = self.place(name)
            return await (self._cards.events(name, limit) if hosted is None else elsewhere.events(*hosted, limit))
        found = await self._cards.events(None, limit)
        here = [host for host in self._hosts.values() if host.session is not None]
        for told in await asyncio.gather(*(self._events(host, limit) for host in here)):
            found += told
        return sorted(found, key=lambda event: event.at_s)[-limit:]

    async def _events(self, host: JoinedHost, limit: int) -> list[GpuEventEntry]:
        try:
            return await elsewhere.events(host, None, limit)
        except ObatchError as error:
            _log.warning("host_not_asked", host=host.name, reason=error.message)
            return []

    async def quarantine(self, caller: Caller, name: str, reason: str) -> GpuEntry:
        hosted, name = self.place(name)
        if hosted is None:
            return await self._cards.quarantine(self._ledger(caller), name, reason)
        return await self._command(caller, GPU_QUARANTINED, hosted, "quarantine", reason, reason=reason)

    async def release(self, caller: Caller, name: str) -> Released:
        hosted, name = self.place(name)
        if hosted is None:
            return await self._cards.release(self._ledger(caller), name)
        async with self._recorded(caller, GPU_RELEASED, hosted):
            return await elsewhere.release(*hosted)

    async def lend(self, caller: Caller, name: str, for_s: float) -> GpuEntry:
        hosted, name = self.place(name)
        if hosted is None:
            return await self._cards.lend(self._ledger(caller), name, for_s)
        return await self._command(caller, GPU_LENT, hosted, "lend", f"for {duration(for_s)}", for_s=for_s)

    async def share(self, caller: Caller, name: str, shared: bool) -> GpuEntry:
        hosted, name = self.place(name)
        if hosted is None:
            return await self._cards.share(self._ledger(caller), name, shared)
        return await self._command(caller, GPU_SHARED if shared else GPU_UNSHARED, hosted, "share", shared=shared)

    async def take_back(self, caller: Caller, name: str) -> GpuEntry:
        hosted, name = self.place(name)
        if hosted is None:
            return await self._cards.take_back(self._ledger(caller), name)
        return await self._command(caller, GPU_TAKEN_BACK, hosted, "take_back")

    async def _command(
        self, caller: Caller, kind: str, hosted: HostedGpu, name: str, detail: str = "", **given: Any
    ) -> GpuEntry:
        async with self._recorded(caller, kind, hosted, detail):
            return await elsewhere.command(hosted.host, name, hosted.uuid, **given)

    def _ledger(self, caller: Caller) -> CallersLedger:
        return CallersLedger(self._audit, caller)

    def _recorded(
        self, caller: Caller, kind: str, hosted: HostedGpu, detail: str = ""
    ) -> AbstractAsyncContextManager[None]:
        return self._ledger(caller).recorded(kind, f"{hosted.host.name}/{hosted.uuid}", detail)

    # --- names ------------------------------------------------------------------------------------------------------

    def place(self, name: str) -> tuple[HostedGpu | None, str]:
        """The GPU of a joined host that is meant; None, and its name there, for one of this machine.

        Raises NotFoundError where there is none, or where there are several.
        """
        cards = [(host, card) for host in self._hosts.values() for card in elsewhere.cards_of(host)]
        for host in self._hosts.values():
            if name.startswith((f"{host.name}/", f"{host.name}.", f"{host.name}:")):
                name = name[len(host.name) + 1 :]
                return self._only([(host, card) for of, card in cards if of is host], name, host.name), name
        if not cards or any(_fits(card, name) for card in self._cards.all().gpus):
            return None, name
        return self._only(cards, name), name

    def _only(self, cards: list[tuple[JoinedHost, GpuEntry]], name: str, on: str = "") -> HostedGpu:
        hits = [(host, card) for host, card in cards if _fits(card, name)]
        exact = [hit for hit in hits if name in (hit[1].uuid, str(hit[1].index))]
        if len(exact or hits) == 1:
            [(host, card)] = exact or hits
            return HostedGpu(host, card.uuid)
        named = [f"{host.name}/{card.index} = {card.uuid}" for host, card in hits or cards]
        known = ", ".join(named[:_MOST_NAMED]) + (" …" if named[_MOST_NAMED:] else "") or "none"
        where = f" on host {on}" if on else ""
        words = f"several GPUs match {name}{where}" if hits else f"no GPU {name}{where}"
        raise NotFoundError(f"{words}; there are: {known}. Name one as HOST/INDEX; obatchctl gpus lists all.")


def _fits(card: GpuEntry, name: str) -> bool:
    return name in (card.uuid, str(card.index), card.serial) or card.uuid.startswith(name)
