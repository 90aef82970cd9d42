"""The latest readings of a joined host's GPUs, for parts of the head that ask how busy they are and what they take."""

from __future__ import annotations

import time
from collections.abc import Iterable

import attrs

from obatchd.documents.gpus import Reading
from obatchd.gpus.energy import EnergyMeters

_FRESH_S = 15.0  # a host tells them every five seconds


@attrs.define(eq=False)
class HostSensors:
    """Those of one host; a host cannot touch the meters of another one's cards, whatever UUIDs it names."""

    meters: EnergyMeters = attrs.field(factory=EnergyMeters, init=False)
    _readings: dict[str, Reading] = attrs.field(factory=dict, init=False)  # by UUID
    _heard_s: float = attrs.field(default=float("-inf"), init=False)  # monotonic

    def heard(self, readings: Iterable[Reading], skew_s: float) -> None:
        """What the host told, whose clock is ``skew_s`` ahead of ours."""
        self._heard_s, now_s = time.monotonic(), time.time()
        told = {reading.uuid: reading for reading in readings if now_s + skew_s - reading.at_s < _FRESH_S}
        for uuid, reading in told.items():
            if reading.energy_j is not None:
                self.meters.add(uuid, reading.energy_j, self._heard_s)
        self._readings = told

    def reading(self, uuid: str) -> Reading | None:
        """Of now; None where none came lately."""
        return self._readings.get(uuid) if time.monotonic() - self._heard_s < _FRESH_S else None

    def utilisation(self, uuids: Iterable[str]) -> int | None:
        """Of the busiest of these GPUs in percent; None where that of one is unknown."""
        found = [reading.utilisation_percent if (reading := self.reading(uuid)) else None for uuid in uuids]
        known = [percent for percent in found if percent is not None]
        return max(known) if known and len(known) == len(found) else None
