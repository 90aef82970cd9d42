"""Compares GPUs of one kind over several reports: other hosts, or earlier runs of the same one."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from obatchd.burnin.verdict.verdict import EXIT_CODES, Result, worst
from obatchd.documents.burnin import BurninReport, ComparedGpu, ComparedGroup, Comparison, Limits
from obatchd.errors import ConfigError
from obatchd.words import counted

_Kind = tuple[str, str, str, int | None, int | None]  # GPU, model, its digest, context, slots


def compare(reports: Sequence[BurninReport]) -> Comparison:
    """GPUs beside each other that are of one kind and did the same work.

    A GPU is compared with the median of all others of its group, and each report as a whole with the others: in a
    chassis that is too hot, or with too little power, all siblings are slow and none stands out. The verdict is the
    worst of the comparison and of the reports' own. Raises ConfigError where the reports have nothing in common.
    """
    rows: dict[_Kind, list[ComparedGpu]] = {}
    reports, left_out = _without_repetitions(reports)
    for number, report in enumerate(reports):
        host, run = report.host.hostname, report.run
        for gpu in report.gpus:
            load, stress, speed = gpu.load, gpu.stress, gpu.work.tokens_per_s
            if speed is None:
                left_out.append(f"{host} {run} GPU {gpu.index}: no speed was measured")
                continue
            model = f"jobs, {load.model}" if report.plan.with_jobs else load.model
            key = (gpu.name, model, load.model_digest, load.context_length, load.slots)
            rows.setdefault(key, []).append(ComparedGpu(
                number, host, run, gpu.index, gpu.uuid, gpu.verdict, speed, stress.power_percent, stress.clock_mhz,
                stress.temp_c, tokens_per_j=gpu.work.tokens_per_j,
            ))  # fmt: skip
    groups = [_group(key, members, reports) for key, members in sorted(rows.items(), key=str) if len(members) > 1]
    only = [members[0] for members in rows.values() if len(members) == 1]
    left_out += [
        f"{row.hostname} {row.run} GPU {row.index}: no GPU of its kind with the same load to compare it with"
        for row in only
    ]
    if not groups:
        raise ConfigError(
            "the reports have no two GPUs of one kind with the same model, context and slots: " + "; ".join(left_out),
            code="nothing_to_compare",
        )
    failed = any(group.hosts_fail or any(row.judgement.startswith("FAIL") for row in group.gpus) for group in groups)
    own = {f"{r.host.hostname} {r.run} GPU {gpu.index}": _result(gpu.verdict) for r in reports for gpu in r.gpus}
    verdict = worst([Result.FAIL if failed else Result.PASS, *own.values()])
    count = len({(row.hostname, row.uuid) for group in groups for row in group.gpus})
    if count == 1:
        meaning = (
            f"1 GPU is {'slower in some of its runs than in others' if failed else 'as fast in each of its runs'}."
        )
    elif failed:
        meaning = f"of {counted(count, 'GPU')} some are slower than others of their kind."
    else:
        meaning = f"{counted(count, 'GPU')} are as fast as the others of their kind."
    if told := [f"{gpu}: {result.value}" for gpu, result in own.items() if result is not Result.PASS]:
        meaning += f" The reports themselves say: {', '.join(told)}."
    return Comparison(
        verdict=verdict.value, exit_code=EXIT_CODES[verdict], meaning=meaning, groups=groups, left_out=left_out
    )


def _result(verdict: str) -> Result:
    try:
        return Result(verdict)
    except ValueError:
        words = f"the report has the verdict {verdict}, which this version does not know"
        raise ConfigError(words, code="not_a_report") from None


def _without_repetitions(reports: Sequence[BurninReport]) -> tuple[list[BurninReport], list[str]]:
    """Each run once, however it was named, and the runs left out: a GPU beside itself would always look fine."""
    kept: dict[tuple[Any, ...], BurninReport] = {}
    left_out = []
    for report in reports:
        host = report.host.hostname
        run = (host, report.run, *(gpu.uuid for gpu in report.gpus))
        if run in kept:
            left_out.append(f"{host} {report.run}: given twice")
        kept[run] = report
    return list(kept.values()), left_out


def _group(key: _Kind, members: list[ComparedGpu], reports: Sequence[BurninReport]) -> ComparedGroup:
    limits = reports[members[0].report].plan.limits
    for row in members:
        usual = statistics.median(other.tokens_per_s for other in members if other is not row)
        row.of_median_percent = round(100 * row.tokens_per_s / usual, 1)
        others = [other.tokens_per_j for other in members if other is not row and other.tokens_per_j]
        if row.tokens_per_j is not None and others:
            row.tokens_per_j_of_median_percent = round(100 * row.tokens_per_j / statistics.median(others), 1)
        slower, row.judgement = 100 - row.of_median_percent, "as the others"
        if slower > limits.slower_warn_percent:
            word = "FAIL" if slower > limits.slower_fail_percent else "warn"
            row.judgement = f"{word}: {slower:.1f} % slower"
    hosts, fails = _hosts(members, limits)
    median = round(statistics.median(row.tokens_per_s for row in members), 2)
    return ComparedGroup(*key, median, members, hosts, fails)


def _hosts(members: list[ComparedGpu], limits: Limits) -> tuple[list[str], bool]:
    """Whole reports that are slower than the others together, in words, and whether one is so slow that it fails."""
    reports = [list(rows) for _, rows in itertools.groupby(members, key=lambda row: row.report)]
    medians = [statistics.median(row.tokens_per_s for row in rows) for rows in reports]
    found, fails = [], False
    for (first, *_), median in zip(reports, medians, strict=True):
        slower = 100 * (1 - median / max(medians))
        if slower > limits.slower_warn_percent:
            fails = fails or slower > limits.slower_fail_percent
            found.append(
                f"{first.hostname} {first.run} as a whole is {slower:.1f} % slower than the fastest: look at its air "
                "flow, power supply and power limits"
            )
    return found, fails
