"""Compares GPUs of one kind over several reports: other hosts, or earlier runs of the same one."""

from __future__ import annotations

import itertools
import operator
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from obatchd.burnin.report.figures import most_power_percent, nvlink_errors, pcie_link, products
from obatchd.burnin.verdict.verdict import EXIT_CODES, Result, worst
from obatchd.documents.burnin.comparison import ComparedGpu, ComparedGroup, Comparison
from obatchd.documents.burnin.plan import Limits
from obatchd.documents.burnin.report import BurninGpuPages, BurninReport
from obatchd.errors import ConfigError
from obatchd.words import counted

_NAMES = {
    "memory": "memory",
    "to_host": "link to the host",
    "from_host": "link from the host",
    "to_peer": "link to a GPU",
}
_CARE_OF_HOST = "air flow, power supply and power limits"
_LINKS_OF_HOST = "slots, risers and settings of the BIOS"
_Kind = tuple[str, str, str, int | None, int | None]  # GPU, model, its digest, context, slots


def compare(reports: Sequence[BurninReport]) -> Comparison:
    """GPUs beside each other that are of one kind and did the same work.

    A GPU is compared with the median of all others of its group, and each report as a whole with the others: in a
    chassis that is too hot, or with too little power, all siblings are slow and none stands out. The verdict is the
    worst of the comparison and of the reports' own. Raises ConfigError where the reports have nothing in common.
    """
    reports, left_out = _without_repetitions([part for report in reports for part in by_host(report)])
    rows = _rows(reports, left_out)
    groups = [_group(key, members, reports) for key, members in sorted(rows.items(), key=str) if len(members) > 1]
    left_out += [
        f"{row.hostname} {row.run} GPU {row.index}: no GPU of its kind with the same load to compare it with"
        for row in (members[0] for members in rows.values() if len(members) == 1)
    ]
    if not groups:
        raise ConfigError(
            "the reports have no two GPUs of one kind with the same model, context and slots: " + "; ".join(left_out),
            code="nothing_to_compare",
        )
    failed = any(group.hosts_fail or any(row.judgement.startswith("FAIL") for row in group.gpus) for group in groups)
    own = {f"{r.host.hostname} {r.run} GPU {gpu.index}": _result(gpu.verdict) for r in reports for gpu in r.gpus}
    verdict = worst([Result.FAIL if failed else Result.PASS, *own.values()])
    meaning = _meaning(groups, own, failed=failed)
    return Comparison(
        verdict=verdict.value, exit_code=EXIT_CODES[verdict], meaning=meaning, groups=groups, left_out=left_out
    )


def by_host(report: BurninReport) -> list[BurninReport]:
    """A report for each host of a run over several that has GPUs in it; any other report as it is."""
    parts = []
    for host in report.hosts or ():
        gpus = [gpu for gpu in report.gpus if (gpu.host or "") == host.host]
        machine = msgspec.structs.replace(host.machine, hostname=host.host or host.machine.hostname)
        own = msgspec.structs.replace(report, host=machine, gpus=gpus, hosts=UNSET, outliers=UNSET)
        parts += [own] if gpus else []
    return parts if report.hosts else [report]


def slower_hosts(reports: Sequence[BurninReport]) -> list[str]:
    """The reports whose GPUs, two at least, are slower together than those of the others, in words."""
    rows = [members for members in _rows(reports, []).values() if len(members) > 1]
    return [text for members in rows for text in _hosts(members, reports[members[0].report].plan.limits, 2)[0]]


def _rows(reports: Sequence[BurninReport], left_out: list[str]) -> dict[_Kind, list[ComparedGpu]]:
    """The GPUs of all reports by kind; one without any speed is named in ``left_out``."""
    rows: dict[_Kind, list[ComparedGpu]] = {}
    for number, report in enumerate(reports):
        for gpu in report.gpus:
            load = gpu.load
            if gpu.work.tokens_per_s is None and not any(each.operations_per_s for each in gpu.stress_loads.products):
                left_out.append(f"{report.host.hostname} {report.run} GPU {gpu.index}: no speed was measured")
                continue
            model = f"jobs, {load.model}" if report.plan.with_jobs else load.model
            key = (gpu.name, model, load.model_digest, load.context_length, load.slots)
            rows.setdefault(key, []).append(_row(number, report, gpu))
    return rows


def _row(number: int, report: BurninReport, gpu: BurninGpuPages) -> ComparedGpu:
    stress, loads = gpu.stress, gpu.stress_loads
    links: dict[str, float] = {}
    for link in loads.links:
        links[link.kind] = min(link.bytes_per_s, links.get(link.kind, link.bytes_per_s))
    generation, lanes = pcie_link(gpu)
    return ComparedGpu(
        report=number,
        hostname=report.host.hostname,
        run=report.run,
        index=gpu.index,
        uuid=gpu.uuid,
        verdict=gpu.verdict,
        tokens_per_s=gpu.work.tokens_per_s,
        power_percent=stress.power_percent,
        clock_mhz=stress.clock_mhz,
        temp_c=stress.temp_c,
        tokens_per_j=gpu.work.tokens_per_j,
        operations_per_s=products(loads),
        memory_bytes_per_s=loads.memory.bytes_per_s if loads.memory else None,
        covered_bytes=loads.memory.covered_bytes if loads.memory else None,
        link_bytes_per_s=links,
        library=loads.library,
        memory_temp_c=stress.memory_temp_c,
        most_power_percent=most_power_percent(gpu),
        covered_percent=loads.memory.covered_percent if loads.memory else None,
        wrong=loads.wrong_tiles + loads.wrong_words,
        wrong_at=loads.wrong[0].place if loads.wrong else "",
        pcie_gen=generation,
        pcie_width=lanes,
        nvlink_errors=nvlink_errors(gpu),
    )


def _meaning(groups: Sequence[ComparedGroup], own: Mapping[str, Result], *, failed: bool) -> str:
    count = len({(row.hostname, row.uuid) for group in groups for row in group.gpus})
    if count == 1:
        found = f"1 GPU is {'slower in some of its runs than in others' if failed else 'as fast in each of its runs'}."
    elif failed:
        found = f"of {counted(count, 'GPU')} some are slower than others of their kind."
    else:
        found = f"{counted(count, 'GPU')} are as fast as the others of their kind."
    if told := [f"{gpu}: {result.value}" for gpu, result in own.items() if result is not Result.PASS]:
        found += f" The reports themselves say: {', '.join(told)}."
    return found


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


def _speeds(row: ComparedGpu) -> dict[tuple[str, str], float]:
    """Everything that is compared, by name, and of products the library, too: each version has its own speed."""
    named = {("tokens", ""): row.tokens_per_s, ("memory", ""): row.memory_bytes_per_s}
    named |= {(precision, row.library): speed for precision, speed in row.operations_per_s.items()}
    named |= {(kind, ""): speed for kind, speed in row.link_bytes_per_s.items()}
    return {name: speed for name, speed in named.items() if speed}


def _group(key: _Kind, members: list[ComparedGpu], reports: Sequence[BurninReport]) -> ComparedGroup:
    limits = reports[members[0].report].plan.limits
    for row in members:
        of_median = _of_median(row, members)
        row.of_median_percent = of_median.pop("tokens", None)
        row.stress_of_median_percent = of_median
        others = [other.tokens_per_j for other in members if other is not row and other.tokens_per_j]
        if row.tokens_per_j is not None and others:
            row.tokens_per_j_of_median_percent = round(100 * row.tokens_per_j / statistics.median(others), 1)
        row.judgement = _judgement(row, limits)
    hosts, fails = _hosts(members, limits)
    known = [row.tokens_per_s for row in members if row.tokens_per_s]
    return ComparedGroup(*key, round(statistics.median(known), 2) if known else None, members, hosts, fails)


def _of_median(row: ComparedGpu, members: list[ComparedGpu]) -> dict[str, float]:
    """Each speed of a GPU, in percent of the median of the others that tell it; of an even number see verdict.loads."""
    found = {}
    others = [_speeds(other) for other in members if other is not row]
    for name, speed in _speeds(row).items():
        if known := [speeds[name] for speeds in others if name in speeds]:
            middle = statistics.median if name[0] == "tokens" else statistics.median_low
            found[name[0]] = round(100 * speed / middle(known), 1)
    return found


def _judgement(row: ComparedGpu, limits: Limits) -> str:
    """By its slowest speed; that of tokens needs no name."""
    percents = row.stress_of_median_percent | (
        {} if row.of_median_percent is None else {"tokens": row.of_median_percent}
    )
    name, percent = min(percents.items(), key=operator.itemgetter(1), default=("tokens", 100.0))
    slower = 100 - percent
    if slower <= limits.slower_warn_percent:
        return "as the others"
    word = "FAIL" if slower > limits.slower_fail_percent else "warn"
    return f"{word}: {slower:.1f} % slower" + ("" if name == "tokens" else f" ({_NAMES.get(name, name)})")


def _hosts(members: list[ComparedGpu], limits: Limits, least_gpus: int = 1) -> tuple[list[str], bool]:
    """Whole reports that are slower than the others together, in words, and whether one is so slow that it fails.

    One with fewer GPUs than ``least_gpus`` is only what others are compared with.
    """
    reports = [list(rows) for _, rows in itertools.groupby(members, key=lambda row: row.report)]
    found: dict[int, tuple[float, str]] = {}  # by place of the report: how much slower, and in what
    for name in dict.fromkeys(name for row in members for name in _speeds(row)):
        speeds = [[known[name] for row in rows if name in (known := _speeds(row))] for rows in reports]
        medians = {place: statistics.median(each) for place, each in enumerate(speeds) if each}
        for place, median in medians.items():
            slower = 100 * (1 - median / max(medians.values()))
            if len(reports[place]) >= least_gpus and slower > max(
                limits.slower_warn_percent, found.get(place, (0.0, ""))[0]
            ):
                found[place] = slower, "" if name[0] == "tokens" else f" in {_NAMES.get(name[0], name[0])}"
    words = [
        f"{reports[place][0].hostname} {reports[place][0].run} as a whole is {slower:.1f} % slower than the "
        f"fastest{what}: look at its {_LINKS_OF_HOST if 'link' in what else _CARE_OF_HOST}"
        for place, (slower, what) in sorted(found.items())
    ]
    return words, any(slower > limits.slower_fail_percent for slower, _ in found.values())
