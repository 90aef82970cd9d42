"""From the records of a run to the evidence on each GPU: sums, means, speeds. No judgement here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Bucket, Canary, Event, Gap, Loading, Prepared, Record, Sample, Unit
from obatchd.documents.burnin import Limits

_WINDOW_S = 3600.0  # of load that speeds are compared over


class Speed(msgspec.Struct, frozen=True):
    """Answered tokens per second of load in a window, and how far it can be off by the requests at its edges."""

    tokens_per_s: float
    uncertain_percent: float


class Evidence(msgspec.Struct):
    """The evidence of a run on one GPU. Percentages and speeds are over the time under load."""

    unit: Unit
    prepared: Prepared | None
    limits: Limits
    with_jobs: bool
    strict: bool
    one_profile: bool  # its server had the same model, context and slots from beginning to end
    asked_s: float
    elapsed_s: float = 0.0  # of the run, without gaps
    loaded_s: float = 0.0  # with requests in a slot, output checks included
    canary_s: float = 0.0
    seen_s: float = 0.0  # of the elapsed time, with fresh readings
    slots_busy_percent: float | None = None  # of the slots, outside of output checks
    tokens: int = 0
    prompt_tokens: int = 0
    requests: int = 0
    failed: int = 0
    utilisation_percent: float | None = None
    power_w: float | None = None  # median
    power_limit_w: float | None = None
    power_percent: float | None = None  # median, of the limit
    power_p95_percent: float | None = None
    temp_c: float | None = None  # highest
    memory_temp_c: float | None = None  # highest
    clock_mhz: float | None = None
    vram_bytes: int | None = None
    vram_percent: float | None = None
    throttle_s: dict[str, float] = {}
    first_counters: dict[str, int] = {}
    last_counters: dict[str, int] = {}
    speed: Speed | None = None  # over the last hour of load, or all of it where that is less
    early_speed: Speed | None = None  # over the first hour, where the two do not overlap
    events: list[Event] = []  # its own and the host's
    canaries: list[Canary] = []


class Findings(msgspec.Struct):
    """The evidence of a whole run."""

    evidence: list[Evidence]  # in index order
    gaps: list[Gap]
    host_events: list[Event]
    loading_s: float | None
    last_s: float  # time of the latest record


def gather(records: Sequence[Record]) -> Findings:
    """Everything the records show."""
    begun = journal.begun(list(records))
    ready = journal.prepared(list(records))
    loading = next((r.at_s for r in records if isinstance(r, Loading)), None)
    buckets = [r for r in records if isinstance(r, Bucket)]
    events = [r for r in records if isinstance(r, Event)]
    canaries = [r for r in records if isinstance(r, Canary)]
    loads = {(r.server, r.model, r.context_length, r.slots) for r in records if isinstance(r, Prepared)}
    profiles = Counter(server for server, *_ in loads)
    found = []
    for unit in sorted(begun.units, key=lambda unit: (unit.index, unit.uuid)):
        evidence = Evidence(
            unit, ready.get(unit.server), begun.plan.limits, begun.plan.with_jobs, begun.plan.strict,
            profiles[unit.server] <= 1, begun.plan.duration_s,
        )  # fmt: skip
        evidence.elapsed_s = sum(bucket.span_s for bucket in buckets)
        if journal.ended(list(records)) is None:  # the time still to come is not held against it
            evidence.asked_s = min(evidence.asked_s, evidence.elapsed_s)
        _add_samples(evidence, [(b.span_s, b.gpus[unit.uuid]) for b in buckets if unit.uuid in b.gpus])
        evidence.events = [event for event in events if event.gpu in (unit.uuid, "")]
        evidence.canaries = [canary for canary in canaries if canary.gpu == unit.uuid]
        found.append(evidence)
    return Findings(
        found,
        [r for r in records if isinstance(r, Gap)],
        [event for event in events if not event.gpu],
        loading,
        max((_at(record) for record in records), default=0.0),
    )


def _at(record: Record) -> float:
    return record.until_s if isinstance(record, Gap) else record.at_s


def _add_samples(evidence: Evidence, samples: list[tuple[float, Sample]]) -> None:
    loaded = [s for _, s in samples if s.loaded_s + s.canary_s > 0]
    evidence.seen_s = sum(s.seen_s for _, s in samples)
    evidence.canary_s = sum(s.canary_s for s in loaded)
    load_only_s = sum(s.loaded_s for s in loaded)
    evidence.loaded_s = load_only_s + evidence.canary_s
    capacity = sum(s.loaded_s * s.slots for s in loaded)
    evidence.slots_busy_percent = 100 * sum(s.slot_s for s in loaded) / capacity if capacity else None
    for name in ("tokens", "prompt_tokens", "requests", "failed"):
        setattr(evidence, name, sum(getattr(s, name) for _, s in samples))
    evidence.utilisation_percent = _mean((s.utilisation_percent, s.seen_s) for s in loaded)
    evidence.clock_mhz = _mean((s.clock_mhz, s.seen_s) for s in loaded)
    _add_power(evidence, loaded)
    evidence.temp_c = max((s.temp_c for _, s in samples if s.temp_c is not None), default=None)
    evidence.memory_temp_c = max((s.memory_temp_c for _, s in samples if s.memory_temp_c is not None), default=None)
    _add_memory(evidence, loaded)
    evidence.throttle_s = {}
    for _, sample in samples:
        for cause, seconds in sample.throttle_s.items():
            evidence.throttle_s[cause] = evidence.throttle_s.get(cause, 0.0) + seconds
    counted = [s.counters for _, s in samples if s.counters]
    for counters in counted:
        for name, value in counters.items():
            evidence.first_counters = {name: value, **evidence.first_counters}
            evidence.last_counters = {**evidence.last_counters, name: value}
    evidence.speed = _speed(reversed(loaded), _WINDOW_S, alike=not evidence.with_jobs)
    if load_only_s >= 2 * _WINDOW_S:
        evidence.early_speed = _speed(loaded, _WINDOW_S, alike=not evidence.with_jobs)


def _mean(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    known = [(value, weight) for value, weight in pairs if value is not None and weight > 0]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _add_power(evidence: Evidence, loaded: list[Sample]) -> None:
    watts = [s.power_w for s in loaded if s.power_w is not None]
    limits = [s.power_limit_w for s in loaded if s.power_limit_w]
    shares = [100 * s.power_w / s.power_limit_w for s in loaded if s.power_w is not None and s.power_limit_w]
    evidence.power_w = statistics.median(watts) if watts else None
    evidence.power_limit_w = limits[-1] if limits else None
    evidence.power_percent = statistics.median(shares) if shares else None
    evidence.power_p95_percent = sorted(shares)[int(0.95 * (len(shares) - 1))] if shares else None


def _add_memory(evidence: Evidence, loaded: list[Sample]) -> None:
    used = [(s.memory_used_bytes, s.memory_total_bytes) for s in loaded if s.memory_used_bytes is not None]
    if used:
        most, total = max(used, key=lambda pair: pair[0])
        evidence.vram_bytes = most
        evidence.vram_percent = 100 * most / total if total else None


def _speed(samples: Iterable[Sample], window_s: float, *, alike: bool) -> Speed | None:
    """Speed over the first ``window_s`` of load in ``samples``.

    A request counts when it ends, so at both edges of a window up to the answers of all slots may be missing or too
    many: the fewer requests, the less a speed says. Where requests are not ``alike`` on all GPUs, who got the long ones
    is chance, too: a share of 1/√n if their lengths differ as much as they are long.
    """
    seconds, tokens, requests, slots = 0.0, 0, 0, 0
    for sample in samples:
        if seconds >= window_s:
            break
        seconds += sample.loaded_s
        tokens += sample.tokens
        requests += sample.requests
        slots = max(slots, sample.slots)
    if not seconds or not tokens or not requests:
        return None
    chance = 0.0 if alike else 1 / math.sqrt(requests)
    return Speed(tokens / seconds, 100 * (slots / requests + chance))
