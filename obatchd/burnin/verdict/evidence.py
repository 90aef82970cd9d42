"""From the records of a run to the evidence on each GPU: sums, means, speeds. No judgement here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Bucket, Canary, Event, Prepared, Record, Sample, Unit
from obatchd.documents.burnin import BurninWork, CounterChange, Plan, Stress

_WINDOW_S = 3600.0  # of load that speeds are compared over


class Speed(msgspec.Struct, frozen=True):
    """Answered tokens per second of load in a window, and how far it can be off by the requests at its edges."""

    tokens_per_s: float
    uncertain_percent: float


class Evidence(msgspec.Struct, kw_only=True):
    """The evidence of a run on one GPU. Percentages and speeds are over the time under load."""

    unit: Unit
    prepared: Prepared | None
    plan: Plan
    one_profile: bool  # its server had the same model, context and slots from beginning to end
    asked_s: float
    elapsed_s: float  # of the run, without gaps
    stress: Stress  # exact
    work: BurninWork
    speed: Speed | None  # over the last hour of load, or all of it where that is less
    early_speed: Speed | None  # over the first hour, where the two do not overlap
    throttle_s: dict[str, float]
    counters: dict[str, CounterChange]
    events: list[Event]  # its own and the host's
    canaries: list[Canary]


def gather(records: Sequence[Record]) -> list[Evidence]:
    """The evidence on each GPU, in index order."""
    begun, ready = journal.begun(records), journal.prepared(records)
    plan = begun.plan
    buckets = [r for r in records if isinstance(r, Bucket)]
    elapsed_s = sum(bucket.span_s for bucket in buckets)
    # The time still to come is not held against an unfinished run.
    asked_s = plan.duration_s if journal.ended(records) else min(plan.duration_s, elapsed_s)
    loads = {(r.server, r.model, r.context_length, r.slots) for r in records if isinstance(r, Prepared)}
    profiles = Counter(server for server, *_ in loads)
    found = []
    for unit in sorted(begun.units, key=lambda unit: (unit.index, unit.uuid)):
        samples = [bucket.gpus[unit.uuid] for bucket in buckets if unit.uuid in bucket.gpus]
        loaded = [s for s in samples if s.loaded_s + s.canary_s > 0]
        speed, early_speed = _speed(reversed(loaded), alike=not plan.with_jobs), None
        if sum(s.loaded_s for s in loaded) >= 2 * _WINDOW_S:
            early_speed = _speed(loaded, alike=not plan.with_jobs)
        found.append(
            Evidence(
                unit=unit,
                prepared=ready.get(unit.server),
                plan=plan,
                one_profile=profiles[unit.server] <= 1,
                asked_s=asked_s,
                elapsed_s=elapsed_s,
                stress=_stress(samples, loaded),
                work=_work(samples, loaded, speed, early_speed),
                speed=speed,
                early_speed=early_speed,
                throttle_s=_throttled_s(samples),
                counters=_counters(samples),
                events=[r for r in records if isinstance(r, Event) and r.gpu in (unit.uuid, "")],
                canaries=[r for r in records if isinstance(r, Canary) and r.gpu == unit.uuid],
            )
        )
    return found


def _stress(samples: list[Sample], loaded: list[Sample]) -> Stress:
    canary_s, load_only_s = sum(s.canary_s for s in loaded), sum(s.loaded_s for s in loaded)
    capacity = sum(s.loaded_s * s.slots for s in loaded)
    watts = [s.power_w for s in loaded if s.power_w is not None]
    limits = [s.power_limit_w for s in loaded if s.power_limit_w]
    shares = [100 * s.power_w / s.power_limit_w for s in loaded if s.power_w is not None and s.power_limit_w]
    filled = [(s.memory_used_bytes, s.memory_total_bytes) for s in loaded if s.memory_used_bytes is not None]
    used, total = max(filled, key=lambda pair: pair[0], default=(None, None))
    return Stress(
        loaded_s=load_only_s + canary_s,
        canary_s=canary_s,
        seen_s=sum(s.seen_s for s in samples),
        slots_busy_percent=100 * sum(s.slot_s for s in loaded) / capacity if capacity else None,
        utilisation_percent=_mean((s.utilisation_percent, s.seen_s) for s in loaded),
        power_w=statistics.median(watts) if watts else None,
        power_limit_w=limits[-1] if limits else None,
        power_percent=statistics.median(shares) if shares else None,
        power_p95_percent=sorted(shares)[int(0.95 * (len(shares) - 1))] if shares else None,
        clock_mhz=_mean((s.clock_mhz, s.seen_s) for s in loaded),
        temp_c=max((s.temp_c for s in samples if s.temp_c is not None), default=None),
        memory_temp_c=max((s.memory_temp_c for s in samples if s.memory_temp_c is not None), default=None),
        vram_bytes=used,
        vram_percent=100 * used / total if used is not None and total else None,
    )


def _mean(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    known = [(value, weight) for value, weight in pairs if value is not None and weight > 0]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _work(samples: list[Sample], loaded: list[Sample], speed: Speed | None, early_speed: Speed | None) -> BurninWork:
    metered = [(s.energy_j, s.tokens) for s in loaded if s.energy_j is not None]
    energy_j, tokens = sum(energy_j for energy_j, _ in metered), sum(tokens for _, tokens in metered)
    last, first = (round(speed.tokens_per_s, 2) if speed else None for speed in (speed, early_speed))
    return BurninWork(
        tokens=sum(s.tokens for s in samples),
        prompt_tokens=sum(s.prompt_tokens for s in samples),
        requests=sum(s.requests for s in samples),
        failed=sum(s.failed for s in samples),
        tokens_per_s=last,
        tokens_per_s_at_first=first,
        energy_j=round(energy_j, 1) if metered else None,
        tokens_per_j=round(tokens / energy_j, 4) if energy_j else None,
    )


def _throttled_s(samples: list[Sample]) -> dict[str, float]:
    causes = {cause for sample in samples for cause in sample.throttle_s}
    return {cause: sum(sample.throttle_s.get(cause, 0.0) for sample in samples) for cause in causes}


def _counters(samples: list[Sample]) -> dict[str, CounterChange]:
    changes: dict[str, CounterChange] = {}
    for sample in samples:
        for name, value in sample.counters.items():
            first = changes[name].start if name in changes else value
            changes[name] = CounterChange(first, value, value - first)
    return changes


def _speed(samples: Iterable[Sample], *, alike: bool) -> Speed | None:
    """Speed over the first ``_WINDOW_S`` of load in ``samples``.

    A request counts when it ends, so at both edges of a window up to the answers of all slots may be missing or too
    many: the fewer requests, the less a speed says. Where requests are not ``alike`` on all GPUs, who got the long ones
    is chance, too: a share of 1/√n if their lengths differ as much as they are long.
    """
    seconds, tokens, requests, slots = 0.0, 0, 0, 0
    for sample in samples:
        if seconds >= _WINDOW_S:
            break
        seconds += sample.loaded_s
        tokens += sample.tokens
        requests += sample.requests
        slots = max(slots, sample.slots)
    if not seconds or not tokens or not requests:
        return None
    chance = 0.0 if alike else 1 / math.sqrt(requests)
    return Speed(tokens / seconds, 100 * (slots / requests + chance))
