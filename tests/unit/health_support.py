"""Builds what was seen of a card, reading by reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from obatchd.gpus.finding import Assessment, Finding
from obatchd.gpus.model import Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.rules.assessment import assess
from obatchd.gpus.track import Track
from obatchd.settings.tables.gpu_health import GpuHealthSettings

START_S = 1_800_000_000.0
CARD = Identity(
    uuid="GPU-1",
    name="Test",
    index=0,
    pci_bus_id="00000000:41:00.0",
    serial="1320",
    ecc=True,
    ecc_pending=True,
    persistence=True,
    power_default_w=350.0,
    temp_max_c=87,
    temp_slowdown_c=92,
    temp_shutdown_c=97,
    memory_temp_max_c=95,
    pcie_gen_max=4,
    pcie_width_max=16,
)
FAST = Reading("GPU-1", START_S, 95, 2**30, 2**36, 70, 300.0, 350.0, clock_mhz=1700, clock_reasons=0x4)
SLOW = SlowReading(
    "GPU-1",
    START_S,
    ecc_corrected=0,
    ecc_uncorrected=0,
    ecc_corrected_aggregate=10,
    ecc_uncorrected_aggregate=0,
    sram_uncorrected=0,
    sram_uncorrected_aggregate=0,
    sram_threshold_exceeded=False,
    remapped_corrected=0,
    remapped_uncorrected=0,
    remap_pending=False,
    remap_failed=False,
    banks_without_spares=0,
    hw_thermal_s=0.0,
    hw_power_brake_s=0.0,
    sw_thermal_s=0.0,
    pcie_gen=4,
    pcie_width=16,
    pcie_replays=0,
    pcie_non_fatal=0,
    pcie_fatal=0,
    nvlink_replays=0,
    nvlink_recoveries=0,
    nvlink_crc=0,
    recovery_action=0,
)


class Watched:
    """A card that is watched: fast readings every 2 s, slow ones every 30 s."""

    def __init__(self, card: Identity = CARD, **counters: Any) -> None:
        """``counters`` are what slow readings tell from the first on."""
        self.track = Track(card)
        self.now_s = START_S
        self.fast: dict[str, Any] = {}
        self.slow = counters
        self.pass_time(120)

    def pass_time(self, seconds: float, **changes: Any) -> Watched:
        """Let time pass with these values; values of slow readings go by their own names."""
        for name, value in changes.items():
            (self.slow if name in SlowReading.__struct_fields__ and name != "trouble" else self.fast)[name] = value
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            slow = None
            if (self.now_s - START_S) % 30 == 0:
                slow = msgspec.structs.replace(SLOW, at_s=self.now_s, **self.slow)
            self.see(msgspec.structs.replace(FAST, at_s=self.now_s, **self.fast), slow)
            self.now_s += 2
        return self

    def see(self, reading: Reading, slow: SlowReading | None) -> None:
        if slow is not None:
            self.track.add_slow(slow)
        self.track.add(reading)

    def hear(self, event: XidEvent) -> None:
        self.track.add_xid(event)

    def xid(self, *numbers: int, every_s: float = 60, line: str = "") -> Watched:
        for number in numbers:
            self.hear(XidEvent(number, self.now_s, line=line))
            self.pass_time(every_s)
        return self

    def judge(self, siblings: Sequence[Watched] = (), **limits: Any) -> Assessment:
        return assess(self.track, GpuHealthSettings(**limits), [sibling.track for sibling in siblings])


def only(assessment: Assessment) -> Finding:
    assert len(assessment.findings) == 1, assessment.findings
    return assessment.findings[0]
