"""The GPUs of one machine, as operators see and command them.

Whose command it is, and where that is written down, is known to the :class:`Ledger` of each.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
from attrs import define, field
from msgspec import UNSET

from obatchd.documents import excerpt
from obatchd.documents import gpus as documents
from obatchd.documents.audit import (
    GPU_LENT,
    GPU_QUARANTINED,
    GPU_RELEASED,
    GPU_SHARED,
    GPU_TAKEN_BACK,
    GPU_UNSHARED,
)
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEvent, GpuEventEntry, GpuFinding, Gpus, Released
from obatchd.errors import ControlError, NotFoundError
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpucare.watch import servers_on
from obatchd.gpus.finding import Finding
from obatchd.gpus.model import ClockReason, Reading
from obatchd.gpus.monitor import Quarantine
from obatchd.gpus.probe import Probe
from obatchd.times import duration, instant

_MOST_LENT_S = 30 * 86_400.0
_EVENTS_SHOWN = 20


class Ledger(Protocol):
    """Where the commands of somebody are written down."""

    def recorded(self, kind: str, uuid: str, detail: str = "") -> AbstractAsyncContextManager[None]:
        """Write down what is about to be done to a card, of a kind of :mod:`obatchd.documents.audit`, and that it
        failed, where it does."""


@define(eq=False)
class GpuCards:
    """What each method does is said by :class:`obatchd.control.operations.GpuOperations`."""

    _policy: GpuPolicy
    _probe: Probe
    _turn: asyncio.Lock = field(factory=asyncio.Lock, init=False)  # what was judged holds until it is done

    def all(self) -> Gpus:
        cards = sorted(self._policy.monitor.tracks.values(), key=lambda track: (track.identity.index or 0, track.uuid))
        code, message = self._probe.host_trouble
        log = self._policy.watch.kernel_log
        return Gpus(
            self._probe.state,
            self._policy.watch.blind or self._probe.message,
            documents.HostTrouble(code, message) if code else None,
            documents.KernelLogState(log.source or None, log.problem),
            [self._card(track.uuid) for track in cards],
        )

    async def one(self, name: str) -> GpuDetails:
        uuid = self.find(name)
        track, monitor = self._policy.monitor.tracks[uuid], self._policy.monitor
        found = monitor.assessments.get(uuid)
        events = await self.events(uuid, _EVENTS_SHOWN)
        return GpuDetails(
            **msgspec.structs.asdict(self._card(uuid)),
            identity=track.identity,
            reading=track.latest,
            slow_reading=track.slow,
            watched_since=instant(track.began_s),
            increases=track.grown,
            findings=[_finding(finding) for finding in found.findings] if found else [],
            accepted=track.accepted,
            events=events,
        )

    async def events(self, name: str | None, limit: int) -> list[GpuEventEntry]:
        uuid = self.find(name) if name else None
        # A card's serial number is followed to other slots.
        serial = self._policy.monitor.tracks[uuid].identity.serial if uuid else ""
        events = await asyncio.to_thread(self._policy.watch.history.events, uuid, limit, serial)
        return list(map(told, events))

    async def quarantine(self, ledger: Ledger, name: str, reason: str) -> GpuEntry:
        async with self._turn:
            uuid = self.find(name)
            if self._policy.monitor.records[uuid].quarantine is not None:
                raise ControlError(f"{self._called(uuid)} is in quarantine already", code="already")
            words = reason or "asked by an administrator"
            async with ledger.recorded(GPU_QUARANTINED, uuid, reason):
                self._policy.monitor.quarantine(uuid, Quarantine(words, time.time(), "administrator"), False)
        await asyncio.to_thread(self._policy.monitor.save)
        return self._card(uuid)

    async def release(self, ledger: Ledger, name: str) -> Released:
        async with self._turn:
            uuid, monitor = self.find(name), self._policy.monitor
            found, present = monitor.assessments.get(uuid), any(gpu.card == uuid for gpu in self._probe.gpus)
            well = monitor.records[uuid].quarantine is None and (found is None or found.level == "ok")
            if well and present:
                raise ControlError(
                    f"{self._called(uuid)} is not in quarantine, and nothing is found against it", code="nothing"
                )
            if present and (obstacle := monitor.obstacle(uuid)):
                raise ControlError(f"{self._called(uuid)} cannot be released yet: {obstacle}", code="still_bad")
            index = monitor.tracks[uuid].identity.index  # which goes with a card that is forgotten
            async with ledger.recorded(GPU_RELEASED, uuid):
                accepted = self._policy.release(uuid)
        await asyncio.to_thread(monitor.save)
        return Released(uuid, uuid not in monitor.tracks, accepted, index)

    async def lend(self, ledger: Ledger, name: str, for_s: float) -> GpuEntry:
        async with self._turn:
            uuid = self.find(name)
            if not 0 < for_s <= _MOST_LENT_S:
                raise ControlError("a GPU is lent for more than nothing and for 30 days at most", code="usage")
            async with ledger.recorded(GPU_LENT, uuid, f"for {duration(for_s)}"):
                self._policy.lend(uuid, for_s)
        await asyncio.to_thread(self._policy.monitor.save)
        return self._card(uuid)

    async def share(self, ledger: Ledger, name: str, shared: bool) -> GpuEntry:
        async with self._turn:
            uuid = self.find(name)
            async with ledger.recorded(GPU_SHARED if shared else GPU_UNSHARED, uuid):
                self._policy.share(uuid, shared)
        await asyncio.to_thread(self._policy.monitor.save)
        return self._card(uuid)

    async def take_back(self, ledger: Ledger, name: str) -> GpuEntry:
        async with self._turn:
            uuid = self.find(name)
            if not self._policy.monitor.records[uuid].lent_until_s:
                raise ControlError(f"{self._called(uuid)} is not lent", code="not_lent")
            async with ledger.recorded(GPU_TAKEN_BACK, uuid):
                self._policy.take_back(uuid)
        await asyncio.to_thread(self._policy.monitor.save)
        return self._card(uuid)

    def find(self, name: str) -> str:
        """A card by its UUID or the beginning of it, its index, or its serial number."""
        tracks = self._policy.monitor.tracks
        hits = [
            uuid
            for uuid, track in tracks.items()
            if name in (uuid, str(track.identity.index), track.identity.serial) or uuid.startswith(name)
        ]
        exact = [uuid for uuid in hits if name in (uuid, str(tracks[uuid].identity.index))]
        if len(exact or hits) != 1:
            known = ", ".join(f"{track.identity.index} = {uuid}" for uuid, track in tracks.items()) or "none"
            raise NotFoundError(f"{'several GPUs match' if hits else 'no GPU'} {name}; there are: {known}")
        return (exact or hits)[0]

    def _called(self, uuid: str) -> str:
        """A card as people name it."""
        index = self._policy.monitor.tracks[uuid].identity.index
        return f"GPU {uuid if index is None else index}"

    def _card(self, uuid: str) -> GpuEntry:
        monitor = self._policy.monitor
        track, record, found = monitor.tracks[uuid], monitor.records[uuid], monitor.assessments.get(uuid)
        servers = list(servers_on(self._policy.fleet, uuid))
        blind = self._probe.state != "ok"
        level = "quarantine" if record.quarantine else "unknown" if blind or found is None else found.level
        quarantine = record.quarantine
        reading = track.latest or Reading(uuid, 0.0)
        if blind or uuid in monitor.asleep:  # the latest is old
            asleep = True if uuid in monitor.asleep and not blind else UNSET
            reading = Reading(uuid, 0.0, memory_total_bytes=reading.memory_total_bytes, asleep=asleep)
        slows, reasons = ClockReason.HARDWARE | ClockReason.SW_THERMAL, reading.clock_reasons
        return excerpt(
            GpuEntry,
            reading,
            uuid=uuid,
            index=track.identity.index,
            name=track.identity.name,
            serial=track.identity.serial,
            slot=track.identity.slot or track.identity.pci_bus_id,
            health=level,
            reason=quarantine.reason if quarantine else found.reason if found else "",
            action=(quarantine.action if quarantine else "") or (found.action if found else ""),
            quarantine=_quarantine(quarantine) if quarantine else None,
            lent_until=instant(record.lent_until_s) if record.lent_until_s else None,
            servers=[server.id for server in servers],
            shares_unknown=record.shares_unknown or UNSET,
            shared_with="; ".join(server.shared_with for server in servers if server.shared_with),
            slowed=None if reasons is None else bool(reasons & slows),
            host=UNSET,
        )


def told(event: GpuEvent) -> GpuEventEntry:
    """An event as it is shown."""
    return GpuEventEntry(**msgspec.structs.asdict(event), at=instant(event.at_s))


def _quarantine(quarantine: Quarantine) -> documents.QuarantineEntry:
    findings = [_finding(finding) for finding in quarantine.findings]
    return documents.QuarantineEntry(instant(quarantine.since_s), quarantine.by, quarantine.reason, findings)


def _finding(finding: Finding) -> GpuFinding:
    return excerpt(GpuFinding, finding, since=instant(finding.since_s) if finding.since_s else None)
