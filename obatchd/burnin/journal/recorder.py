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


class Worked(NamedTuple):
    """What the loads beside the model did since they told it last; by precision where it is a product."""

    precision: str = ""
    first: str = ""
    operations: int = 0
    operating_s: float = 0.0
    wrong_tiles: int = 0
    wrong_words: int = 0
    bytes_written: int = 0
    bytes_checked: int = 0
    accessing_s: float = 0.0
    covered_bytes: int = 0
    free_bytes: int = 0
    passes: int = 0


_SUMS = ("wrong_tiles", "wrong_words", "bytes_written", "bytes_checked", "accessing_s")
_HIGHEST = ("covered_bytes", "free_bytes", "passes")


class _Meter:
    """One GPU and its sample of the open bucket."""

    def __init__(self) -> None:
        self._slow: SlowReading | None = None  # the latest
        self.forget()
        self.begin()

    def forget(self) -> None:
        """What was before does not count."""
        self._counter_j: float | None = None  # of the energy, the latest

    def begin(self) -> None:
        self.sample = Sample()
        self._broken = False
        self._means: dict[str, tuple[float, float]] = {}  # of a field: weighted sum of its values, sum of the weights

    def add(self, span_s: float, seen: Seen) -> None:
        sample, reading = self.sample, seen.reading
        sample.slots = max(sample.slots, seen.slots)
        if reading is not None and not reading.trouble:
            sample.seen_s += span_s
            for field in ("utilisation_percent", "power_w", "clock_mhz"):
                self._add_to_mean(field, getattr(reading, field), span_s)
            for field in ("memory_used_bytes", "temp_c", "memory_temp_c"):
                known = [value for value in (getattr(sample, field), getattr(reading, field)) if value is not None]
                setattr(sample, field, max(known, default=None))
            sample.memory_total_bytes = reading.memory_total_bytes or sample.memory_total_bytes
            sample.power_limit_w = reading.power_limit_w or sample.power_limit_w
            self._add_energy(reading.energy_j)
        self._add_slow(seen.slow)
        if reading is not None:
            self._add_throttling(span_s, reading.clock_reasons or 0)

    def _add_to_mean(self, field: str, value: float | None, weight: float) -> None:
        if value is not None and weight:
            total, weights = self._means.get(field, (0.0, 0.0))
            self._means[field] = total + value * weight, weights + weight
            setattr(self.sample, field, self._means[field][0] / self._means[field][1])

    def _add_energy(self, counter_j: float | None) -> None:
        """The driver's counter; of a bucket in which it began anew the energy is not known."""
        if counter_j is None:
            return
        before_j, self._counter_j = self._counter_j, counter_j
        if before_j is None:
            return
        self._broken = self._broken or counter_j < before_j
        self.sample.energy_j = None if self._broken else (self.sample.energy_j or 0.0) + counter_j - before_j

    def _add_slow(self, slow: SlowReading | None) -> None:
        before = self._slow
        if slow is None or (before is not None and slow.at_s <= before.at_s):
            return
        self._slow = slow
        counters = {name: int(value) for name in _COUNTERS if (value := getattr(slow, name)) is not None}
        self.sample.counters.update(counters)
        for cause in _CAUSES if before is not None else ():
            then, now = getattr(before, f"{cause}_s"), getattr(slow, f"{cause}_s")
            if then is not None and now is not None:
                self._throttled(cause, now - then)

    def _add_throttling(self, span_s: float, reasons: int) -> None:
        """Seconds from the clock reasons, for each cause that the driver does not count itself."""
        for cause, bit in _CAUSES.items():
            if reasons & bit and (self._slow is None or getattr(self._slow, f"{cause}_s") is None):
                self._throttled(cause, span_s)
        # The umbrella bit alone: a slowdown whose cause is not told.
        if reasons & ClockReason.HW_SLOWDOWN and not reasons & (ClockReason.HW_THERMAL | ClockReason.HW_POWER_BRAKE):
            self._throttled("hw_slowdown", span_s)

    def _throttled(self, cause: str, seconds: float) -> None:
        if seconds > 0:
            self.sample.throttle_s[cause] = self.sample.throttle_s.get(cause, 0.0) + seconds


class Recorder:
    """Fills the buckets of a run. Times are seconds since the epoch, GPUs are UUIDs."""

    def __init__(self, gpus: Iterable[str], bucket_s: float, start_s: float) -> None:
        self._bucket_s = bucket_s
        self._meters = {gpu: _Meter() for gpu in gpus}
        self.elapsed_s = 0.0  # recorded so far, exchanges of loads left out
        self._between = False
        self.begin(start_s)

    def begin(self, now_s: float) -> None:
        """Count from now on, and forget what was before."""
        for meter in self._meters.values():
            meter.forget()
        self._open(now_s)

    def _open(self, now_s: float) -> None:
        """Begin the next bucket."""
        self._begun_s = self._now_s = now_s
        for meter in self._meters.values():
            meter.begin()

    def look(self, now_s: float, seen: Mapping[str, Seen]) -> Bucket | None:
        """The time since the latest look was like this; the bucket, when one is full."""
        span_s = max(0.0, now_s - self._now_s)
        self._now_s = now_s
        self.elapsed_s += 0.0 if self._between else span_s
        for gpu, what in seen.items():
            self._meters[gpu].add(span_s, what)
        return self.close() if now_s - self._begun_s >= self._bucket_s else None

    def close(self) -> Bucket | None:
        """End the open bucket, however short; None when nothing is in it."""
        span_s = self._now_s - self._begun_s
        if span_s <= 0:
            return None
        samples = {gpu: meter.sample for gpu, meter in self._meters.items()}
        bucket = Bucket(self._now_s, span_s, samples, self._between)
        self._open(self._now_s)
        return bucket

    def exchange(self, between: bool) -> Bucket | None:
        """The loads are exchanged from now on, or run again; the bucket until now, which is one or the other."""
        bucket = self.close()
        self._between = between
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

    def stressed(self, gpu: str, span_s: float) -> None:
        """Loads beside the model ran on the GPU since the latest call."""
        self._meters[gpu].sample.stress_s += span_s

    def worked(self, gpu: str, work: Worked) -> None:
        """Loads beside the model did this on the GPU."""
        sample = self._meters[gpu].sample
        for field in _SUMS:
            setattr(sample, field, getattr(sample, field) + getattr(work, field))
        for field in _HIGHEST:
            setattr(sample, field, max(getattr(sample, field), getattr(work, field)))
        if precision := work.precision:
            sample.operations[precision] = sample.operations.get(precision, 0) + work.operations
            sample.operating_s[precision] = sample.operating_s.get(precision, 0.0) + work.operating_s
            if work.first:
                sample.firsts[precision] = work.first
