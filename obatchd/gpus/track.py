"""The readings of one GPU since a mark, folded: all that :mod:`obatchd.gpus.rules` judges.

A track knows no clock and asks nobody: the same readings give the same track. It can be stored and read again.
"""

from __future__ import annotations

import msgspec

from obatchd.gpus.model import ClockReason, Identity, Reading, SlowReading, XidEvent

RECENT_S = 660.0  # readings kept: the longest window of a rule, and a minute
HOUR_S = 3660.0
DAY_S = 86_400.0
GAP_S = 10.0  # time between two readings that counts at most; a longer gap was not watched
LOADED_PERCENT = 50  # utilisation from which time counts as loaded
_MOST_XIDS = 1000
_MOST_ENDED = 100
_CAUSES = {
    "hw_slowdown": ClockReason.HARDWARE,
    "hw_thermal": ClockReason.HW_THERMAL,
    "hw_power_brake": ClockReason.HW_POWER_BRAKE,
    "sw_thermal": ClockReason.SW_THERMAL,
    "power_cap": ClockReason.POWER_CAP,
}
# Counters whose increase since the mark some rule looks at.
UNCORRECTED = ("ecc_uncorrected", "ecc_uncorrected_aggregate")
_OF_MEMORY = ("ecc_corrected", "ecc_corrected_aggregate", "sram_uncorrected", "sram_uncorrected_aggregate")
_REPLACED = ("remapped_corrected", "remapped_uncorrected", "retired_single_bit", "retired_double_bit")
HARDWARE_SLOWDOWN = ("hw_thermal_s", "hw_power_brake_s")
_PCIE = ("pcie_replays", "pcie_correctable", "pcie_non_fatal", "pcie_fatal")
NVLINK = ("nvlink_replays", "nvlink_recoveries", "nvlink_crc")
COUNTERS = (*UNCORRECTED, *_OF_MEMORY, *_REPLACED, *HARDWARE_SLOWDOWN, "sw_thermal_s", *_PCIE, *NVLINK)


def increase(before: SlowReading | None, after: SlowReading | None, counter: str) -> float:
    """How much a counter grew; one that is smaller began anew at zero (driver reload, reset). Unknown is 0."""
    new = getattr(after, counter) if after else None
    old = getattr(before, counter) if before else None
    if new is None or old is None:
        return 0
    grown: float = new - old if new >= old else new
    return grown


class Crash(msgspec.Struct):
    """One crash of a card's server: when (epoch seconds), what it had loaded, and the UUIDs of the cards whose servers
    answered what had been in flight. In a burn-in only when."""

    at_s: float
    work: str = ""
    answered_by: list[str] = []


class Track(msgspec.Struct):
    """The condensed history of one card; lists begin with the oldest, times are epoch seconds."""

    identity: Identity
    began_s: float = 0.0
    mark: SlowReading | None = None  # the first; increases count from it
    latest: Reading | None = None
    slow: SlowReading | None = None
    recent: list[Reading] = []  # of the last eleven minutes
    hour: list[SlowReading] = []  # of the last hour
    first_s: dict[str, float] = {}  # when a counter was first seen above its mark
    grown: dict[str, float] = {}  # by how much each counter grew, added up over restarts of the driver
    loaded_s: float = 0.0
    slowed_s: dict[str, float] = {}  # by cause, by sampling; counters of the driver are more exact where it has them
    xids: list[XidEvent] = []  # of the last 24 h, de-duplicated
    server_crashes: list[Crash] = []  # of its server or runner, where it was not what it worked on
    crashed_s: dict[str, float] = {}  # of the latest crash, whatever the reason, by what its server had loaded
    ended: list[float] = []  # when we ended its server ourselves
    accepted: list[str] = []  # signals of lasting defects that an administrator knows of; they only warn
    had_power: bool = False  # ever
    keep_xids: bool = False  # all, in a burn-in

    @property
    def uuid(self) -> str:
        return self.identity.uuid

    def add(self, reading: Reading) -> None:
        """The next reading, in order of time."""
        earlier, self.latest = self.latest, reading
        self.began_s = self.began_s or reading.at_s
        self.had_power = self.had_power or reading.power_w is not None
        self.recent.append(reading)
        if reading.at_s - self.recent[0].at_s > 2 * RECENT_S:
            self.recent = [kept for kept in self.recent if kept.at_s >= reading.at_s - RECENT_S]
        if earlier is None:
            return
        passed_s = min(max(0.0, reading.at_s - earlier.at_s), GAP_S)
        if (reading.utilisation_percent or 0) >= LOADED_PERCENT:
            self.loaded_s += passed_s
        for cause, bits in _CAUSES.items():
            if (reading.clock_reasons or 0) & bits:
                self.slowed_s[cause] = self.slowed_s.get(cause, 0.0) + passed_s

    def add_slow(self, reading: SlowReading) -> None:
        """The next slow reading, in order of time."""
        earlier, self.slow = self.slow or self.mark, reading
        if self.mark is None:
            self.mark = reading
        for counter in COUNTERS:
            if grown := increase(earlier, reading, counter):
                self.grown[counter] = self.grown.get(counter, 0) + grown
                self.first_s.setdefault(counter, reading.at_s)
        self.hour.append(reading)
        self.hour = [kept for kept in self.hour if kept.at_s >= reading.at_s - HOUR_S]

    def add_xid(self, event: XidEvent) -> None:
        """An XID of this card."""
        self.xids.append(event)
        if not self.keep_xids:
            self.xids = [kept for kept in self.xids if kept.at_s >= event.at_s - DAY_S]
        del self.xids[:-_MOST_XIDS]

    def add_crash(self, crash: Crash) -> None:
        """The card's server or its runner crashed, and it was not what it worked on."""
        self.server_crashes = [*self.server_crashes[-_MOST_XIDS:], crash]

    def add_ended(self, *at_s: float) -> None:
        """We end the card's server ourselves: an XID 45 is to be expected. Known times may be told again."""
        self.ended = sorted({*self.ended, *at_s})[-_MOST_ENDED:]

    @property
    def now_s(self) -> float:
        """The time of the latest reading of either kind."""
        return max(self.latest.at_s if self.latest else 0.0, self.slow.at_s if self.slow else 0.0)
