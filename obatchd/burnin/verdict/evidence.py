"""From the records of a run to the evidence on each GPU: sums, means, speeds. No judgement here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import (
    Bucket,
    Canary,
    Event,
    PhaseBegun,
    Prepared,
    Record,
    Sample,
    StressEnded,
    Unit,
    WrongResult,
)
from obatchd.burnin.verdict import loads as beside
from obatchd.burnin.verdict.loads import Phased, put_beside
from obatchd.documents.burnin.loads import PhaseResult, StressLoads
from obatchd.documents.burnin.plan import Plan
from obatchd.documents.burnin.report import BurninWork, CounterChange, Stress

_UNEVEN = (("memory",), ("dcgm",), ("gpu-burn",))  # phases in which a GPU that is well is idle now and then
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
    over: bool  # the run has ended
    one_profile: bool  # its server had the same model, context and slots from beginning to end
    asked_s: float
    elapsed_s: float  # of the run, without gaps and exchanges of loads
    stress: Stress  # exact
    work: BurninWork
    speed: Speed | None  # over the last hour of load, or all of it where that is less
    early_speed: Speed | None  # over the first hour, where the two do not overlap
    throttle_s: dict[str, float]
    counters: dict[str, CounterChange]
    events: list[Event]  # its own and the host's
    canaries: list[Canary]
    phases: list[PhaseResult]  # those that had load
    loads: StressLoads  # beside the model
    firsts: dict[str, str]  # digest of the first product of each precision
    wrong: list[WrongResult]
    ended: list[StressEnded]

    @property
    def power_percent(self) -> float | None:
        """Median power, of its limit: that of the phase with the most."""
        known = [phase.power_percent for phase in self.phases if phase.power_percent is not None]
        return max(known, default=self.stress.power_percent)

    @property
    def reference(self) -> str:
        """Digest of the answer that its output checks expect; empty where it has none."""
        return next((canary.digest for canary in reversed(self.canaries) if canary.step == "calibrated"), "")

    def has_software_of(self, other: Evidence) -> bool:
        """Whether both answer with the same bytes of model and Ollama: surely on one host, or where they tell so."""
        if self.unit.host == other.unit.host:
            return True
        one, two = self.prepared, other.prepared
        return one is not None and two is not None and (one.digest, one.ollama) == (two.digest, two.ollama)

    def has_driver_of(self, other: Evidence) -> bool:
        """Whether both compute by the same driver: surely on one host, or where they tell so."""
        return self.unit.host == other.unit.host or self.unit.identity.driver == other.unit.identity.driver


def gather(*hosts: Sequence[Record]) -> list[Evidence]:
    """The evidence on each GPU, from the records of each host of a run: by host, then in index order."""
    found = [one for records in hosts for one in _of_host(records)]
    for one in found:
        put_beside(one.loads, [other.loads for other in found if _alike(one, other)])
    return found


def _of_host(records: Sequence[Record]) -> list[Evidence]:
    begun = journal.begun(records)
    phased = _phased(records)
    units = sorted(begun.units, key=lambda unit: (unit.index, unit.uuid))
    return [_of(unit, begun.plan, records, phased) for unit in units]


def _alike(one: Evidence, other: Evidence) -> bool:
    """Whether two GPUs are of one kind and did their products and patterns with the same library."""
    same = one.unit.name == other.unit.name and one.loads.library == other.loads.library != ""
    return same and one.unit.server != other.unit.server


def _phased(records: Sequence[Record]) -> list[tuple[tuple[str, ...], Bucket]]:
    """Each bucket with the loads of its phase."""
    found, loads = [], tuple[str, ...]()
    for record in records:
        if isinstance(record, PhaseBegun):
            loads = tuple(record.loads)
        elif isinstance(record, Bucket):
            found.append((loads, record))
    return found


def _of(
    unit: Unit, plan: Plan, records: Sequence[Record], phased: list[tuple[tuple[str, ...], Bucket]]
) -> Evidence:  # fmt: skip
    over = journal.ended(records) is not None
    elapsed_s = sum(bucket.span_s for _, bucket in phased if not bucket.between)
    every = [Phased(loads, bucket.gpus[unit.uuid]) for loads, bucket in phased if unit.uuid in bucket.gpus]
    of_run = [
        Phased(loads, bucket.gpus[unit.uuid])
        for loads, bucket in phased
        if unit.uuid in bucket.gpus and not bucket.between
    ]
    samples, loaded = [each.sample for each in every], [each for each in of_run if each.sample.under_load_s > 0]
    of_model = [each.sample for each in loaded if each.of_model]
    speed, early_speed = _speed(reversed(of_model), alike=not plan.with_jobs), None
    if sum(s.loaded_s for s in of_model) >= 2 * _WINDOW_S:
        early_speed = _speed(of_model, alike=not plan.with_jobs)
    prepared = [r for r in records if isinstance(r, Prepared) and r.server == unit.server]
    return Evidence(
        unit=unit,
        prepared=prepared[-1] if prepared else None,
        plan=plan,
        over=over,
        one_profile=len({(r.model, r.context_length, r.slots) for r in prepared}) <= 1,
        # The time still to come is not held against an unfinished run.
        asked_s=plan.duration_s if over else min(plan.duration_s, elapsed_s),
        elapsed_s=elapsed_s,
        stress=_stress([each.sample for each in of_run], samples, loaded),
        work=_work(samples, of_model, speed, early_speed),
        speed=speed,
        early_speed=early_speed,
        throttle_s=_throttled_s(samples),
        counters=_counters(samples),
        events=[r for r in records if isinstance(r, Event) and r.gpu in (unit.uuid, "")],
        canaries=[r for r in records if isinstance(r, Canary) and r.gpu == unit.uuid],
        phases=_phases(loaded),
        loads=beside.of(unit.uuid, every, records),
        firsts=beside.firsts(every),
        wrong=[r for r in records if isinstance(r, WrongResult) and r.gpu == unit.uuid],
        ended=[r for r in records if isinstance(r, StressEnded) and r.gpu == unit.uuid],
    )


def _phases(loaded: list[Phased]) -> list[PhaseResult]:
    """One for each set of loads, in the order of the run; none of runs that knew no phases."""
    grouped: dict[tuple[str, ...], list[Sample]] = {}
    for each in loaded:
        if each.loads:
            grouped.setdefault(each.loads, []).append(each.sample)
    found = []
    for names, samples in grouped.items():
        watts, shares = _power(samples)
        found.append(
            PhaseResult(
                loads=list(names),
                loaded_s=round(sum(s.under_load_s for s in samples), 1),
                utilisation_percent=_rounded(_mean((s.utilisation_percent, s.seen_s) for s in samples)),
                power_w=_rounded(statistics.median(watts) if watts else None),
                power_percent=_rounded(statistics.median(shares) if shares else None),
                clock_mhz=_rounded(_mean((s.clock_mhz, s.seen_s) for s in samples)),
                temp_c=max((s.temp_c for s in samples if s.temp_c is not None), default=None),
                memory_temp_c=max((s.memory_temp_c for s in samples if s.memory_temp_c is not None), default=None),
            )
        )
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _power(samples: Iterable[Sample]) -> tuple[list[float], list[float]]:
    """Watts, and percent of the limit, of each sample that tells them."""
    known = [(s.power_w, s.power_limit_w) for s in samples if s.power_w is not None]
    return [watts for watts, _ in known], [100 * watts / limit for watts, limit in known if limit]


def _stress(of_run: list[Sample], samples: list[Sample], phased: list[Phased]) -> Stress:
    loaded = [each.sample for each in phased]
    capacity = sum(s.loaded_s * s.slots for s in loaded)
    watts, shares = _power(loaded)
    limits = [s.power_limit_w for s in loaded if s.power_limit_w]
    filled = [(s.memory_used_bytes, s.memory_total_bytes) for s in loaded if s.memory_used_bytes is not None]
    used, total = max(filled, key=lambda pair: pair[0], default=(None, None))
    # Patterns in memory are left alone for some seconds now and then, and programs of others do what they want.
    busy = [each.sample for each in phased if each.loads not in _UNEVEN] or loaded
    return Stress(
        loaded_s=sum(s.under_load_s for s in loaded),
        canary_s=sum(s.canary_s for s in loaded),
        seen_s=sum(s.seen_s for s in of_run),
        slots_busy_percent=100 * sum(s.slot_s for s in loaded) / capacity if capacity else None,
        utilisation_percent=_mean((s.utilisation_percent, s.seen_s) for s in busy),
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


def _work(samples: list[Sample], of_model: list[Sample], speed: Speed | None, early_speed: Speed | None) -> BurninWork:
    metered = [(s.energy_j, s.tokens) for s in of_model if s.energy_j is not None]
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
