"""The parts that watch the GPUs of a host: readings, their judgement, their history, and the kernel's log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from obatchd.gpucare.records import GpuRecords
from obatchd.gpucare.siblings import CardsElsewhere, Sibling, condensed
from obatchd.gpus.energy import EnergyMeters
from obatchd.gpus.history import History
from obatchd.gpus.kernel_log import KernelLog
from obatchd.gpus.monitor import Monitor, RecordStore, Siblings
from obatchd.gpus.probe import Probe
from obatchd.gpus.track import Track
from obatchd.servers.fleet import Fleet
from obatchd.servers.managed import ManagedServer
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskOwner
from obatchd.words import counted

_FRESH_S = 15.0


class GpuWatch(Siblings):
    """The parts that watch. ``work`` is the directory of ``history.db`` and ``gpus.json``."""

    def __init__(
        self,
        settings: Current[Settings],
        probe: Probe,
        fleet: Fleet,
        facts: RecordStore,
        work: Path,
        kernel_log: Path,
        owner: TaskOwner,
    ) -> None:
        self.probe = probe
        self._settings = settings
        self._fleet = fleet
        self.history = History(work / "history.db")
        records = GpuRecords(work / "gpus.json", facts)
        self.energy = EnergyMeters()
        self.elsewhere = CardsElsewhere()
        self.monitor = Monitor(probe, records, settings, self, [self.history, self.energy])
        self.kernel_log = KernelLog(self.monitor, self.monitor.since_s, kernel_log, owner)

    @property
    def blind(self) -> str:
        """Why the health of the GPUs is unknown, and what to do; empty where it is known, or none is missed."""
        known = self.monitor.tracks
        if self.probe.state != "absent":
            return "" if self.probe.state == "ok" else self.probe.message
        if not known or self._settings.value.gpus.use == "none":
            return ""
        were = f"was {counted(1, 'GPU')}" if len(known) == 1 else f"were {counted(len(known), 'GPU')}"
        return (
            f"{self.probe.message} There {were} here before: look at nvidia-smi and dmesg. "
            "obatchctl gpus release GPU forgets one that is gone for good."
        )

    def utilisation(self, server_id: str) -> int | None:
        """Of the busiest GPU of a server in percent; None where it is unknown or told too long ago."""
        readings, limit_s = self.probe.readings, max(_FRESH_S, 3 * self._settings.value.gpus.poll_s)
        server = self._fleet.servers.get(server_id)
        found = [readings.get(uuid) for uuid in server.gpu_label.split(",")] if server else []
        fresh = [r.utilisation_percent for r in found if r and time.time() - r.at_s < limit_s]
        known = [percent for percent in fresh if percent is not None]
        return max(known) if known and len(known) == len(found) else None

    def comparable(self, card: str) -> set[str]:
        """Cards whose servers do the same work: a fault that they suffer, too, is not this card's."""
        mine = self._work_of(card)
        cards: set[str] = set()
        for server in self._fleet.servers.values():
            if isinstance(server, ManagedServer) and server.loaded in mine and server.ready:
                cards |= {gpu.card for gpu in server.gpus}
        return cards

    def _work_of(self, card: str) -> AbstractSet[object]:
        """The profiles that the servers on a card have loaded, or are loading."""
        return {server.loaded or server.loading for server in servers_on(self._fleet, card)} - {None}

    def tracks_elsewhere(self, card: str, named: AbstractSet[str]) -> Sequence[Track]:
        return self.elsewhere.tracks({str(profile) for profile in self._work_of(card)}, named)

    def siblings(self) -> list[Sibling]:
        """The cards of this machine, for the care of those of others."""
        settings, now_s = self._settings.value.gpu_health, time.time()
        ready = {
            card: {str(server.loaded) for server in servers_on(self._fleet, card) if server.loaded and server.ready}
            for card in self.monitor.tracks
        }
        return [condensed(track, ready[card], settings, now_s) for card, track in self.monitor.tracks.items()]


def servers_on(fleet: Fleet, card: str) -> Iterator[ManagedServer]:
    """The servers that compute on a card; one on each slice, or a group over several."""
    for server in fleet.servers.values():
        if isinstance(server, ManagedServer) and any(gpu.card == card for gpu in server.gpus):
            yield server
