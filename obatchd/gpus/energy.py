"""The energy that each card has taken since the daemon began, out of the drivers' counters.

NVML counts the energy of a card in millijoules since the driver was loaded, from Volta on
(``nvmlDeviceGetTotalEnergyConsumption``). Such a counter begins anew with the driver, which may happen at any time:
where persistence mode is off, the driver goes when its last user does. What it counted between the latest reading and
that moment is not known, so the meter says that there was a break.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import attrs

from obatchd.gpus.model import Identity, Reading
from obatchd.gpus.monitor import MonitorListener


class Metered(NamedTuple):
    """A meter at one moment. The difference of two is the energy between them, if ``breaks`` is the same."""

    at_s: float  # monotonic
    energy_j: float  # since the first reading
    breaks: int  # how often the counter began anew


@attrs.define(eq=False)
class EnergyMeters(MonitorListener):
    """Folds the readings of all cards. A card whose readings tell no energy has no meter."""

    _counters: dict[str, float] = attrs.field(
        factory=dict, init=False
    )  # latest of the driver in J, by UUID of the card
    _meters: dict[str, Metered] = attrs.field(factory=dict, init=False)

    def readings_of_cards(self, readings: Sequence[tuple[Identity, Reading]]) -> None:
        now_s = time.monotonic()
        for card, reading in readings:
            if reading.energy_j is not None:
                self.add(card.uuid, reading.energy_j, now_s)

    def add(self, card: str, counter_j: float, now_s: float) -> None:
        """The counter of a card, read now."""
        meter, before_j = self._meters.get(card, Metered(now_s, 0.0, 0)), self._counters.get(card, counter_j)
        self._counters[card] = counter_j
        more_j, breaks = counter_j - before_j, meter.breaks
        if more_j < 0:
            more_j, breaks = 0.0, breaks + 1
        self._meters[card] = Metered(now_s, meter.energy_j + more_j, breaks)

    def of(self, cards: Sequence[str]) -> Metered | None:
        """The meters of these cards together; None where one of them has none, or was not read with the others."""
        meters = [self._meters.get(card) for card in cards]
        known = [meter for meter in meters if meter is not None]
        if not known or len(known) < len(meters) or len({meter.at_s for meter in known}) > 1:
            return None
        return Metered(known[0].at_s, sum(m.energy_j for m in known), sum(m.breaks for m in known))

    def tells(self, card: str) -> bool:
        """Whether the card ever told its energy."""
        return card in self._meters
