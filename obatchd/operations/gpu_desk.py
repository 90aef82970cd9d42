"""What the control API may ask about GPUs. Implements :class:`obatchd.control.operations.GpuDesk`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from obatchd.errors import ControlError, NotFoundError
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpucare.watch import servers_on
from obatchd.gpus.finding import Finding
from obatchd.gpus.model import ClockReason, Reading
from obatchd.gpus.monitor import Quarantine
from obatchd.gpus.probe import Probe
from obatchd.times import instant

_MOST_LENT_S = 30 * 86_400.0
_EVENTS_SHOWN = 20


class GpuDesk:
    """Documents and commands about GPUs."""

    def __init__(self, policy: GpuPolicy, probe: Probe) -> None:
        self._policy = policy
        self._probe = probe

    def gpus(self) -> dict[str, Any]:
        """All cards in the order of their index, and what is known of the host."""
        cards = sorted(self._policy.monitor.tracks.values(), key=lambda track: (track.identity.index or 0, track.uuid))
        code, message = self._probe.host_trouble
        log = self._policy.watch.kernel_log
        return {
            "state": self._probe.state,
            "message": self._probe.message,
            "host": {"code": code, "message": message} if code else None,
            "kernel_log": {"source": log.source or None, "problem": log.problem},
            "gpus": [self._card(track.uuid) for track in cards],
        }

    async def gpu(self, name: str) -> dict[str, Any]:
        """One card with identity, findings and its latest events."""
        uuid = self._find(name)
        track, monitor = self._policy.monitor.tracks[uuid], self._policy.monitor
        found = monitor.assessments.get(uuid)
        events = await self.events(uuid, _EVENTS_SHOWN)
        return {
            **self._card(uuid),
            "identity": msgspec.to_builtins(track.identity),
            "reading": msgspec.to_builtins(track.latest),
            "slow_reading": msgspec.to_builtins(track.slow),
            "watched_since": instant(track.began_s),
            "increases": track.grown,
            "findings": [_finding(finding) for finding in found.findings] if found else [],
            "accepted": track.accepted,
            "events": events,
        }

    async def events(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """The latest events, of one card or of all, oldest first. A card's serial number is followed to other slots."""
        uuid = self._find(name) if name else None
        serial = self._policy.monitor.tracks[uuid].identity.serial if uuid else ""
        events = await asyncio.to_thread(self._policy.watch.history.events, uuid, limit, serial)
        return [{**msgspec.to_builtins(event), "at": instant(event.at_s)} for event in events]

    async def quarantine(self, name: str, reason: str) -> dict[str, Any]:
        """Take a card out of use until it is released."""
        uuid = self._find(name)
        if self._policy.monitor.records[uuid].quarantine is not None:
            raise ControlError(f"GPU {uuid} is in quarantine already", code="already")
        words = reason or "asked by an administrator"
        self._policy.monitor.quarantine(uuid, Quarantine(words, time.time(), "administrator"), False)
        await asyncio.to_thread(self._policy.monitor.save)
        return self._card(uuid)

    async def release(self, name: str) -> dict[str, Any]:
        """End a quarantine, or forget past errors that only warn; refused while the reason is still there."""
        uuid, monitor = self._find(name), self._policy.monitor
        found = monitor.assessments.get(uuid)
        if monitor.records[uuid].quarantine is None and (found is None or found.level == "ok"):
            raise ControlError(f"GPU {uuid} is not in quarantine, and nothing is found against it", code="nothing")
        present = any(gpu.card == uuid for gpu in self._probe.gpus)
        if present and (obstacle := monitor.obstacle(uuid)):
            raise ControlError(f"GPU {uuid} cannot be released: {obstacle} still holds", code="still_bad")
        accepted = self._policy.release(uuid)
        await asyncio.to_thread(monitor.save)
        return {"uuid": uuid, "forgotten": uuid not in monitor.tracks, "accepted": accepted}

    async def lend(self, name: str, for_s: float) -> dict[str, Any]:
        """Free a card for somebody else; it is taken back by itself."""
        uuid = self._find(name)
        if not 0 < for_s <= _MOST_LENT_S:
            raise ControlError("a GPU is lent for more than nothing and for 30 days at most", code="usage")
        self._policy.lend(uuid, for_s)
        await asyncio.to_thread(self._policy.monitor.save)
        return self._card(uuid)

    async def take_back(self, name: str) -> dict[str, Any]:
        """End a loan before its time."""
        uuid = self._find(name)
        if not self._policy.monitor.records[uuid].lent_until_s:
            raise ControlError(f"GPU {uuid} is not lent", code="not_lent")
        self._policy.take_back(uuid)
        await asyncio.to_thread(self._policy.monitor.save)
        return self._card(uuid)

    def _find(self, name: str) -> str:
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

    def _card(self, uuid: str) -> dict[str, Any]:
        monitor = self._policy.monitor
        track, record, found = monitor.tracks[uuid], monitor.records[uuid], monitor.assessments.get(uuid)
        servers = list(servers_on(self._policy.fleet, uuid))
        blind = self._probe.state != "ok"
        level = "quarantine" if record.quarantine else "unknown" if blind or found is None else found.level
        quarantine, reading = record.quarantine, track.latest
        return {
            "uuid": uuid,
            "index": track.identity.index,
            "name": track.identity.name,
            "serial": track.identity.serial,
            "slot": track.identity.slot or track.identity.pci_bus_id,
            "health": level,
            "reason": quarantine.reason if quarantine else found.reason if found else "",
            "action": (quarantine.action if quarantine else "") or (found.action if found else ""),
            "quarantine": {
                "since": instant(quarantine.since_s),
                "by": quarantine.by,
                "reason": quarantine.reason,
                "findings": [_finding(finding) for finding in quarantine.findings],
            }
            if quarantine
            else None,
            "lent_until": instant(record.lent_until_s) if record.lent_until_s else None,
            "servers": [server.id for server in servers],
            "shared_with": "; ".join(server.shared_with for server in servers if server.shared_with),
            **_now(reading),
        }


def _now(reading: Reading | None) -> dict[str, Any]:
    reasons = reading.clock_reasons if reading else None
    return {
        "utilisation_percent": reading.utilisation_percent if reading else None,
        "memory_used_bytes": reading.memory_used_bytes if reading else None,
        "memory_total_bytes": reading.memory_total_bytes if reading else None,
        "temp_c": reading.temp_c if reading else None,
        "memory_temp_c": reading.memory_temp_c if reading else None,
        "power_w": reading.power_w if reading else None,
        "power_limit_w": reading.power_limit_w if reading else None,
        "clock_mhz": reading.clock_mhz if reading else None,
        "slowed": None if reasons is None else bool(reasons & (ClockReason.HARDWARE | ClockReason.SW_THERMAL)),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "signal": finding.signal,
        "level": finding.level,
        "burn_in": finding.burn_in,
        "text": finding.text,
        "value": finding.value,
        "limit": finding.limit,
        "since": instant(finding.since_s) if finding.since_s else None,
    }
