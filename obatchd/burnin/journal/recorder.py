"""Gathers readings and load into buckets. It has no clock: whoever drives it says what time it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from obatchd.burnin.journal.records import Bucket, Sample
from obatchd.gpus.model import ClockReason, Reading, SlowReading

HW_SLOWDOWN, HW_THERMAL, HW_POWER_BRAKE, SW_THERMAL = "hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal"
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
_OTHERS = (
    "ecc_corrected_aggregate",
    "ecc_uncorrected_aggregate",
    "sram_uncorrected_aggregate",
    "remap_pending",
    "remap_failed",
    "banks_without_spares",
    "retired_pending",
    "pcie_gen",
    "pcie_width",
)
_COUNTERS = (*UNCORRECTED, *CORRECTED, *_OTHERS)


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


class _Mean:
    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float | None, weight: float) -> None:
        if value is not None:
            self._sum += value * weight
            self._weight += weight

    def value(self) -> float | None:
        return self._sum / self._weight if self._weight else None


class _Highest:
    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float | None) -> None:
        if value is not None:
            self.value = value if self.value is None else max(self.value, value)


class _Meter:
    """One GPU in the open bucket."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = dict.fromkeys(("seen_s", "loaded_s", "canary_s", "slot_s"), 0.0)
        self.counts: dict[str, Any] = dict.fromkeys(("tokens", "prompt_tokens", "requests", "failed"), 0)
        self.slots = 0
        self.utilisation, self.power, self.clock = _Mean(), _Mean(), _Mean()
        self.memory, self.temp, self.memory_temp = _Highest(), _Highest(), _Highest()
        self.memory_total: int | None = None
        self.power_limit: float | None = None
        self.throttle_s: dict[str, float] = {}
        self.counters: dict[str, int] = {}

    def throttled(self, cause: str, seconds: float) -> None:
        if seconds > 0:
            self.throttle_s[cause] = self.throttle_s.get(cause, 0.0) + seconds

    def sample(self) -> Sample:
        memory = self.memory.value
        return Sample(
            **self.fields,
            **self.counts,
            slots=self.slots,
            utilisation_percent=self.utilisation.value(),
            memory_used_bytes=None if memory is None else int(memory),
            memory_total_bytes=self.memory_total,
            temp_c=self.temp.value,
            memory_temp_c=self.memory_temp.value,
            power_w=self.power.value(),
            power_limit_w=self.power_limit,
            clock_mhz=self.clock.value(),
            throttle_s=self.throttle_s,
            counters=self.counters,
        )


class Recorder:
    """Fills the buckets of a run.

    Args:
        gpus: UUIDs.
        bucket_s: length of a bucket.
        start_s: when the first one begins; seconds since the epoch, as every time here.
    """

    def __init__(self, gpus: Iterable[str], bucket_s: float, start_s: float) -> None:
        self._gpus = list(gpus)
        self._bucket_s = bucket_s
        self._begun_s = self._now_s = start_s
        self._meters = {gpu: _Meter() for gpu in self._gpus}
        self._slow: dict[str, SlowReading] = {}
        self.elapsed_s = 0.0  # recorded so far

    def begin(self, now_s: float) -> None:
        """Count from now on."""
        self._begun_s = self._now_s = now_s

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
        bucket = Bucket(self._now_s, span_s, {gpu: meter.sample() for gpu, meter in self._meters.items()})
        self._begun_s = self._now_s
        self._meters = {gpu: _Meter() for gpu in self._gpus}
        return bucket

    def answered(self, gpu: str, *, tokens: int, prompt_tokens: int, requests: int = 1) -> None:
        """Requests of the load were answered."""
        counts = self._meters[gpu].counts
        counts["tokens"] += tokens
        counts["prompt_tokens"] += prompt_tokens
        counts["requests"] += requests

    def failed(self, gpu: str, requests: int = 1) -> None:
        """Requests of the load failed."""
        self._meters[gpu].counts["failed"] += requests

    def loaded(self, gpu: str, work: Occupied) -> None:
        """The GPU was under load like this since the latest call."""
        fields = self._meters[gpu].fields
        fields["slot_s"] += work.slot_s
        fields["loaded_s"] += work.loaded_s
        fields["canary_s"] += work.canary_s

    def _add(self, meter: _Meter, gpu: str, span_s: float, seen: Seen) -> None:
        meter.slots = max(meter.slots, seen.slots)
        reading = seen.reading
        if reading is not None and not reading.trouble:
            meter.fields["seen_s"] += span_s
            meter.utilisation.add(reading.utilisation_percent, span_s)
            meter.power.add(reading.power_w, span_s)
            meter.clock.add(reading.clock_mhz, span_s)
            meter.memory.add(reading.memory_used_bytes)
            meter.temp.add(reading.temp_c)
            meter.memory_temp.add(reading.memory_temp_c)
            meter.memory_total = reading.memory_total_bytes or meter.memory_total
            meter.power_limit = reading.power_limit_w or meter.power_limit
        self._add_slow(meter, gpu, seen.slow)
        if reading is not None:
            self._add_throttling(meter, gpu, span_s, reading.clock_reasons or 0)

    def _add_slow(self, meter: _Meter, gpu: str, slow: SlowReading | None) -> None:
        before = self._slow.get(gpu)
        if slow is None or (before is not None and slow.at_s <= before.at_s):
            return
        self._slow[gpu] = slow
        counters = {name: int(value) for name in _COUNTERS if (value := getattr(slow, name)) is not None}
        meter.counters.update(counters)
        if before is None:
            return
        for cause in (HW_THERMAL, HW_POWER_BRAKE, SW_THERMAL):
            then, now = getattr(before, f"{cause}_s"), getattr(slow, f"{cause}_s")
            if then is not None and now is not None:
                meter.throttled(cause, now - then)

    def _add_throttling(self, meter: _Meter, gpu: str, span_s: float, reasons: int) -> None:
        """Seconds from the clock reasons, for each cause that the driver does not count itself."""
        slow = self._slow.get(gpu)
        bits = ((HW_THERMAL, ClockReason.HW_THERMAL), (HW_POWER_BRAKE, ClockReason.HW_POWER_BRAKE))
        for cause, bit in (*bits, (SW_THERMAL, ClockReason.SW_THERMAL)):
            if reasons & bit and (slow is None or getattr(slow, f"{cause}_s") is None):
                meter.throttled(cause, span_s)
        # The umbrella bit alone: a slowdown whose cause is not told.
        if reasons & ClockReason.HW_SLOWDOWN and not reasons & (ClockReason.HW_THERMAL | ClockReason.HW_POWER_BRAKE):
            meter.throttled(HW_SLOWDOWN, span_s)
