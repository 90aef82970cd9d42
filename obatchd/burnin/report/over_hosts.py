"""The report and the series of a run over several hosts: one table of all GPUs, compared over all hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.hosts import HostPart, beside
from obatchd.burnin.journal.records import Event
from obatchd.burnin.report.compare import by_host, slower_hosts
from obatchd.burnin.report.figures import THE_HEAD
from obatchd.burnin.report.report import (
    buckets_in,
    elapsed_s,
    event_of,
    gaps_in,
    gpu_pages,
    instant,
    instant_if,
    meaning,
    phases_in,
)
from obatchd.burnin.report.series import ends, neighbours, of_gpu
from obatchd.burnin.verdict import verdict
from obatchd.burnin.verdict.evidence import Evidence, gather
from obatchd.burnin.verdict.verdict import Result, Verdict
from obatchd.documents.burnin.plan import Host, Plan
from obatchd.documents.burnin.report import (
    BegunPhase,
    BurninEvent,
    BurninGap,
    BurninHost,
    BurninReport,
    BurninSeries,
)
from obatchd.words import counted

_ABSENT = ("not_begun", "lost")


class OverHosts(NamedTuple):
    """A run over several hosts, as its head knows it; times are epoch seconds by its clock."""

    plan: Plan
    began_s: float
    version: str  # of obatchd
    state: str  # as of a report
    ended_s: float | None = None
    end: str = ""  # why


def build(run: OverHosts, parts: Sequence[HostPart]) -> BurninReport:
    """The report of a run, finished or not."""
    told = [part for part in parts if part.records]
    evidence = gather(*(part.records for part in told))
    verdicts = verdict.judge(evidence)
    hosts = [_host(part, evidence, verdicts) for part in parts]
    # A host whose GPUs nobody knows is not judged either.
    result = verdict.worst([v.result for v in verdicts] + [Result(host.verdict) for host in hosts])
    times, rows = beside([buckets_in(part.records) for part in told])
    rows_of = {part.host: found for part, found in zip(told, rows, strict=True)}
    document = BurninReport(
        run=run.plan.run,
        version=run.version,
        state=run.state,
        verdict=result.value,
        exit_code=verdict.EXIT_CODES[result],
        meaning=_meaning(result, verdicts, parts),
        plan=run.plan,
        host=Host(hostname=counted(len(parts), "host")),
        started_at=instant(run.began_s),
        loading_at=instant_if(min(_loading(told), default=None)),
        ended_at=instant_if(run.ended_s),
        end=run.end,
        asked_s=run.plan.duration_s,
        elapsed_s=max((host.elapsed_s for host in hosts), default=0.0),
        gaps=_gaps(told),
        phases=_phases(told),
        events=_events(told),
        at=[instant(at_s) for at_s in times],
        gpus=[gpu_pages(e, v, rows_of[e.unit.host]) for e, v in zip(evidence, verdicts, strict=True)],
        hosts=hosts,
        outliers=[],
    )
    document.outliers = slower_hosts(by_host(document))
    return document


def series(run: OverHosts, parts: Sequence[HostPart], points: int) -> BurninSeries:
    """The series of a run; of more buckets than ``points``, neighbours are drawn together."""
    told = [part for part in parts if part.records]
    times, rows = beside([buckets_in(part.records) for part in told])
    together = neighbours(len(times), points)
    return BurninSeries(
        run=run.plan.run,
        state=run.state,
        active=run.ended_s is None,
        elapsed_s=max((_elapsed_s(part) for part in told), default=0.0),
        asked_s=run.plan.duration_s,
        at_s=ends(times, together),
        gaps=_gaps(told),
        gpus=[
            of_gpu(unit, buckets, together)
            for part, buckets in zip(told, rows, strict=True)
            for unit in journal.begun(part.records).units
        ],
    )


def _host(part: HostPart, evidence: Sequence[Evidence], verdicts: Sequence[Verdict]) -> BurninHost:
    own = [v.result for e, v in zip(evidence, verdicts, strict=True) if e.unit.host == part.host]
    begun = journal.begun(part.records) if part.records else None
    return BurninHost(
        host=part.host,
        state=part.state,
        reason=part.reason,
        verdict=verdict.worst(own).value,
        gpus=len(own),
        elapsed_s=_elapsed_s(part),
        machine=begun.host if begun else Host(),
        version=begun.version if begun else "",
    )


def _meaning(result: Result, verdicts: Sequence[Verdict], parts: Sequence[HostPart]) -> str:
    absent = [part.host or THE_HEAD for part in parts if part.state in _ABSENT]
    if result is Result.INCONCLUSIVE and not any(v.result is result for v in verdicts):
        found = f"No fault was found on {counted(len(verdicts), 'GPU')}, but not every host can be judged."
    else:
        found = meaning(result, verdicts)
    return f"{found} Not tested to the end: {', '.join(absent)}." if absent else found


def _elapsed_s(part: HostPart) -> float:
    return elapsed_s(buckets_in(part.records))


def _loading(told: Sequence[HostPart]) -> list[float]:
    return [at_s for part in told if (at_s := journal.loading_s(part.records)) is not None]


def _gaps(told: Sequence[HostPart]) -> list[BurninGap]:
    named = [(part.host or THE_HEAD, gap) for part in told for gap in gaps_in(part.records)]
    return [msgspec.structs.replace(gap, reason=f"{host}: {gap.reason}") for host, gap in named]


def _phases(told: Sequence[HostPart]) -> list[BegunPhase]:
    """Of the host that is furthest: they begin within seconds of each other."""
    furthest = max(told, key=_elapsed_s, default=None)
    return phases_in(furthest.records) if furthest else []


def _events(told: Sequence[HostPart]) -> list[BurninEvent]:
    """Of whole hosts, in order of time."""
    found = [(part.host or THE_HEAD, r) for part in told for r in part.records if isinstance(r, Event) and not r.gpu]
    found.sort(key=lambda pair: pair[1].at_s)
    return [msgspec.structs.replace(event_of(event), text=f"{host}: {event.text}") for host, event in found]
