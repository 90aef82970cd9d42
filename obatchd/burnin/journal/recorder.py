"""Gathers readings and load into buckets. It has no clock: whoever drives it says what time it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from obatchd.burnin.journal.records import Bucket, Sample
from obatchd.gpus.model import ClockReason, Reading, SlowReading
from obatchd.gpus.track import COUNTERS

# Causes of a slowdown whose seconds many drivers count themselves.
_CAUSES = {
    "hw_thermal": ClockReason.HW_THERMAL,
    "hw_power_brake": ClockReason.HW_POWER_BRAKE,
    "sw_thermal": ClockReason.SW_THERMAL,
}
# Counters and flags of a slow reading that go into the report, with their values before and after.
UNCORRECTED = (
    "ecc_uncorrected",
    "sram_uncorrected",
    "remapped_uncorrected",
    "retired_double_bit",
    "pcie_non_fatal",
    "pcie_fatal",
)
CORRECTED = (
    "ecc_corrected",
    "remapped_corrected",
    "retired_single_bit",
    "pcie_correctable",
    "pcie_replays",
    "nvlink_replays",
    "nvlink_recoveries",
    "nvlink_crc",
)
_COUNTERS = (
    *(name for name in COUNTERS if not name.endswith("_s")),
    "remap_pending",
    "remap_failed",
    "banks_without_spares",
    "retired_pending",
    "pcie_gen",
    "pcie_width",
)


class Seen(NamedTuple):
    """One GPU and its server at one moment. ``reading`` is None when there is no fresh one."""

    reading: Reading | None
    slow: SlowReading | None
    slots: int


class Occupied(NamedTuple):
    """How a server spent some time: with requests in slots, and emptied for the output check, in seconds.

    ``slot_s`` adds up the time of each busy slot, outside of output checks.
    """

    slot_s: float
    loaded_s: float
    canary_s: float


class _Meter:
    """One GPU in the open bucket."""

    def __init__(self) -> None:
        self.sample = Sample()
        self._means: dict[str, tuple[float, float]] = {}  # of a field: weighted sum of its values, sum of the weights

    def mean(self, field: str, value: float | None, weight: float) -> None:
        if value is not None and weight:
            total, weights = self._means.get(field, (0.0, 0.0))
            self._means[field] = total + value * weight, weights + weight
            setattr(self.sample, field, self._means[field][0] / self._means[field][1])

    def highest(self, field: str, value: float | None) -> None:
        before = getattr(self.sample, field)
        if value is not None:
            setattr(self.sample, field, value if before is None else max(before, value))

    def throttled(self, cause: str, seconds: float) -> None:
        if seconds > 0:
            self.sample.throttle_s[cause] = self.sample.throttle_s.get(cause, 0.0) + seconds


class Recorder:
    """Fills the buckets of a run. Times are seconds since the epoch, GPUs are UUIDs."""

    def __init__(self, gpus: Iterable[str], bucket_s: float, start_s: float) -> None:
        self._bucket_s = bucket_s
        self._begun_s = self._now_s = start_s
        self._meters = {gpu: _Meter() for gpu in gpus}
        self._slow: dict[str, SlowReading] = {}
        self.elapsed_s = 0.0  # recorded so far

    def begin(self, now_s: float) -> None:
        """Count from now on, and forget what was before."""
        self._begun_s = self._now_s = now_s
        self._meters = {gpu: _Meter() for gpu in self._meters}

    def look(self, now_s: float, seen: Mapping[str, Seen]) -> Bucket | None:
        """The time since the latest look was like this; the bucket, when one is full."""
        span_s = max(0.0, now_s - self._now_s)
        self._now_s = now_s
        self.elapsed_s += span_s
        for gpu, what in seen.items():
            self._add(self._meters[gpu], gpu, span_s, what)
        if now_s - self._begun_s < self._bucket_s:
            return None
        return self.close()

    def close(self) -> Bucket | None:
        """End the open bucket, however short; None when nothing is in it."""
        span_s = self._now_s - self._begun_s
        if span_s <= 0:
            return None
        bucket = Bucket(self._now_s, span_s, {gpu: meter.sample for gpu, meter in self._meters.items()})
        self.begin(self._now_s)
        return bucket

    def answered(self, gpu: str, *, tokens: int, prompt_tokens: int, requests: int = 1) -> None:
        """Requests of the load were answered."""
        sample = self._meters[gpu].sample
        sample.tokens += tokens
        sample.prompt_tokens += prompt_tokens
        sample.requests += requests

    def failed(self, gpu: str, requests: int = 1) -> None:
        """Requests of the load failed."""
        self._meters[gpu].sample.failed += requests

    def loaded(self, gpu: str, work: Occupied) -> None:
        """The GPU was under load like this since the latest call."""
        sample = self._meters[gpu].sample
        sample.slot_s += work.slot_s
        sample.loaded_s += work.loaded_s
        sample.canary_s += work.canary_s

    def _add(self, meter: _Meter, gpu: str, span_s: float, seen: Seen) -> None:
        sample, reading = meter.sample, seen.reading
        sample.slots = max(sample.slots, seen.slots)
        if reading is not None and not reading.trouble:
            sample.seen_s += span_s
            for field in ("utilisation_percent", "power_w", "clock_mhz"):
                meter.mean(field, getattr(reading, field), span_s)
            for field in ("memory_used_bytes", "temp_c", "memory_temp_c"):
                meter.highest(field, getattr(reading, field))
            sample.memory_total_bytes = reading.memory_total_bytes or sample.memory_total_bytes
            sample.power_limit_w = reading.power_limit_w or sample.power_limit_w
        self._add_slow(meter, gpu, seen.slow)
        if reading is not None:
            self._add_throttling(meter, gpu, span_s, reading.clock_reasons or 0)

    def _add_slow(self, meter: _Meter, gpu: str, slow: SlowReading | None) -> None:
        before = self._slow.get(gpu)
        if slow is None or (before is not None and slow.at_s <= before.at_s):
            return
        self._slow[gpu] = slow
        counters = {name: int(value) for name in _COUNTERS if (value := getattr(slow, name)) is not None}
        meter.sample.counters.update(counters)
        if before is None:
            return
        for cause in _CAUSES:
            then, now = getattr(before, f"{cause}_s"), getattr(slow, f"{cause}_s")
            if then is not None and now is not None:
                meter.throttled(cause, now - then)

    def _add_throttling(self, meter: _Meter, gpu: str, span_s: float, reasons: int) -> None:
        """Seconds from the clock reasons, for each cause that the driver does not count itself."""
        slow = self._slow.get(gpu)
        for cause, bit in _CAUSES.items():
            if reasons & bit and (slow is None or getattr(slow, f"{cause}_s") is None):
                meter.throttled(cause, span_s)
        # The umbrella bit alone: a slowdown whose cause is not told.
        if reasons & ClockReason.HW_SLOWDOWN and not reasons & (ClockReason.HW_THERMAL | ClockReason.HW_POWER_BRAKE):
            meter.throttled("hw_slowdown", span_s)
