"""The report of a run as one document.

Terminal summary, HTML page, comparison and vendor bundle are made from this document alone, so each can be made
elsewhere and later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.recorder import CORRECTED, UNCORRECTED
from obatchd.burnin.journal.records import Bucket, Event, Gap, PhaseBegun, Record, Sample
from obatchd.burnin.verdict import verdict
from obatchd.burnin.verdict.canary import summary as canary_summary
from obatchd.burnin.verdict.evidence import Evidence, gather
from obatchd.burnin.verdict.verdict import Result, Verdict
from obatchd.documents import excerpt
from obatchd.documents.burnin.report import (
    BegunPhase,
    BurninEvent,
    BurninGap,
    BurninGpu,
    BurninGpuPages,
    BurninHead,
    BurninLoad,
    BurninReason,
    BurninReport,
    Series,
    Stress,
)
from obatchd.words import counted

_READ = ("utilisation_percent", "memory_used_bytes", "temp_c", "memory_temp_c", "power_w", "clock_mhz")


def build(records: Sequence[Record]) -> BurninReport:
    """The report of a run, finished or not: the verdicts of an unfinished one say what they would be now."""
    begun, ended, loading_s = journal.begun(records), journal.ended(records), journal.loading_s(records)
    evidence = gather(records)
    verdicts = verdict.judge(evidence)
    buckets = buckets_in(records)
    result = verdict.worst([judged.result for judged in verdicts])
    return BurninReport(
        run=begun.plan.run,
        version=begun.version,
        state=state_of(records),
        verdict=result.value,
        exit_code=verdict.EXIT_CODES[result],
        meaning=meaning(result, verdicts),
        plan=begun.plan,
        host=begun.host,
        started_at=instant(begun.at_s),
        loading_at=instant_if(loading_s),
        ended_at=instant_if(ended.at_s if ended else None),
        end=ended.text or ended.reason if ended else "",
        asked_s=begun.plan.duration_s,
        elapsed_s=elapsed_s(buckets),
        gaps=gaps_in(records),
        phases=phases_in(records),
        events=[event_of(record) for record in records if isinstance(record, Event) and not record.gpu],
        at=[instant(bucket.at_s) for bucket in buckets],
        gpus=[gpu_pages(found, judged, buckets) for found, judged in zip(evidence, verdicts, strict=True)],
    )


def buckets_in(records: Sequence[Record]) -> list[Bucket]:
    return [record for record in records if isinstance(record, Bucket)]


def elapsed_s(buckets: Sequence[Bucket]) -> float:
    """How long the load went on: the time between phases does not count."""
    return round(sum(bucket.span_s for bucket in buckets if not bucket.between), 1)


def phases_in(records: Sequence[Record]) -> list[BegunPhase]:
    return [BegunPhase(r.number, r.loads, instant(r.at_s)) for r in records if isinstance(r, PhaseBegun)]


def state_of(records: Sequence[Record]) -> str:
    """How far a run is, or how it ended."""
    if (ended := journal.ended(records)) is not None:
        return ended.reason
    return "preparing" if journal.loading_s(records) is None else "loading"


def gaps_in(records: Sequence[Record]) -> list[BurninGap]:
    """The times without load."""
    return [BurninGap(instant(r.from_s), instant(r.until_s), r.reason) for r in records if isinstance(r, Gap)]


def head(report: BurninReport) -> BurninHead:
    """A report without series and events, which fill pages."""
    short = excerpt(BurninHead, report)
    short.gpus = [excerpt(BurninGpu, gpu) for gpu in report.gpus]
    return short


def instant(at_s: float) -> str:
    """A time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant_if(at_s: float | None) -> str | None:
    return None if at_s is None else instant(at_s)


def meaning(result: Result, verdicts: Sequence[Verdict]) -> str:
    """What the verdict of a run says, in a sentence or two."""
    count, bad = len(verdicts), sum(1 for judged in verdicts if judged.result is result)
    match result:
        case Result.PASS:
            found = f"No fault was found on {counted(count, 'GPU')}."
            return f"{found} This was a test under load, no proof of perfection."
        case Result.PASS_LOW_STRESS:
            return f"No fault was found, but {counted(bad, 'GPU')} of {count} did not reach full stress."
        case Result.FAIL:
            return f"{counted(bad, 'GPU')} of {count} failed. Take {'it' if bad == 1 else 'them'} out of production."
        case _:
            found = f"{counted(bad, 'GPU')} of {count} cannot be judged"
            return f"{found}: nobody knows whether {'it is' if bad == 1 else 'they are'} sound. The reasons say why."


def gpu_pages(evidence: Evidence, judged: Verdict, buckets: list[Bucket]) -> BurninGpuPages:
    """All about one GPU, from ``buckets`` of its host."""
    ready, unit = evidence.prepared, evidence.unit
    return BurninGpuPages(
        **msgspec.structs.asdict(unit) | {"host": unit.host or UNSET},
        verdict=judged.result.value,
        action=judged.action,
        reasons=[
            BurninReason(reason.consequence, reason.signal, reason.text, reason.action, instant_if(reason.at_s))
            for reason in judged.reasons
        ],
        load=BurninLoad(ready.model, ready.digest, ready.ollama, ready.context_length, ready.slots)
        if ready
        else BurninLoad(),
        stress=Stress(*map(_rounded, msgspec.structs.astuple(evidence.stress))),
        work=evidence.work,
        canary=canary_summary(evidence.canaries, evidence.plan.with_jobs),
        throttle_s={cause: round(seconds, 1) for cause, seconds in sorted(evidence.throttle_s.items())},
        counters=dict(sorted(evidence.counters.items())),
        stress_loads=evidence.loads,
        phases=evidence.phases,
        events=[event_of(event) for event in evidence.events if event.gpu],
        series=series_of(evidence.unit.uuid, buckets),
    )


def _rounded(value: float | None) -> Any:
    return None if value is None else round(value, 1)


def event_of(event: Event) -> BurninEvent:
    return BurninEvent(instant(event.at_s), event.signal, event.text, event.consequence, event.action, event.verbatim)


def series_of(uuid: str, buckets: Sequence[Bucket]) -> Series:
    """The values of one GPU, one for each bucket."""
    empty = Sample()
    samples = [bucket.gpus.get(uuid, empty) for bucket in buckets]
    spans = [max(bucket.span_s, 1e-3) for bucket in buckets]
    return Series(
        **{name: [_rounded(getattr(sample, name)) for sample in samples] for name in _READ},
        tokens_per_s=[round(s.tokens / span, 1) for s, span in zip(samples, spans, strict=True)],
        throttled_percent=[
            round(min(100.0, 100 * max(s.throttle_s.values(), default=0.0) / span), 1)
            for s, span in zip(samples, spans, strict=True)
        ],
        errors_uncorrected=_errors(samples, UNCORRECTED),
        errors_corrected=_errors(samples, CORRECTED),
        **_stressed(samples, spans),
    )


def _stressed(samples: list[Sample], spans: list[float]) -> dict[str, list[Any]]:
    """The columns of the loads beside the model, where there were any."""
    if not any(s.operations or s.bytes_written for s in samples):
        return {}
    both = list(zip(samples, spans, strict=True))
    return {
        "operations_per_s": [round(sum(s.operations.values()) / span, 1) for s, span in both],
        "checked_bytes_per_s": [round(s.bytes_checked / span, 1) for s, span in both],
        "covered_bytes": _covered(samples),
    }


def _covered(samples: list[Sample]) -> list[int]:
    """The latest that was told; it comes every two seconds, and a bucket may be shorter."""
    column, last = [], 0
    for sample in samples:
        last = sample.covered_bytes or (last if sample.stress_s else 0)
        column.append(last)
    return column


def _errors(samples: list[Sample], names: tuple[str, ...]) -> list[int]:
    """Errors counted since the beginning, of these counters together."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    column = []
    for sample in samples:
        for name in sample.counters.keys() & set(names):
            value = sample.counters[name]
            first.setdefault(name, value)
            last[name] = value
        # A counter that a driver reload set back counts from there.
        column.append(sum(max(0, last[name] - first[name]) for name in first))
    return column
