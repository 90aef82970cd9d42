"""Reports as plain text for a terminal, 80 columns wide, and comparisons, whose table has its own width."""

from __future__ import annotations

import textwrap

from obatchd.burnin.report.figures import (
    THE_HEAD,
    TOO_SHORT,
    called,
    fastest_precision,
    is_too_short,
    load_words,
    most_power_percent,
    products,
    scaled,
    slowest_link,
)
from obatchd.documents.burnin.comparison import ComparedGpu, ComparedGroup, Comparison
from obatchd.documents.burnin.report import BurninGpu, BurninHead, BurninReport
from obatchd.times import duration
from obatchd.words import binary_size, counted, three_digits

_WIDTH = 80
_SHOWN = ("fail", "inconclusive", "warn")


def summary(report: BurninHead | BurninReport) -> str:
    """A report on one screen: the verdict, a line for each GPU, and why."""
    plan, host = report.plan, report.host
    load, width = load_words(plan), _gpu_width(report)
    lines = [
        f"Burn-in {report.run} on {host.hostname}: {report.verdict} ({report.state})",
        *textwrap.wrap(report.meaning, _WIDTH),
        *textwrap.wrap(
            f"{plan.profile}, {duration(report.elapsed_s)} of {duration(report.asked_s)} with {load}", _WIDTH
        ),
        *(
            line
            for gap in report.gaps
            for line in textwrap.wrap(f"gap from {gap.since} until {gap.until}: {gap.reason}", _WIDTH)
        ),
        *_hosts(report),
        "",
        f"{'GPU':<{width}} {'VERDICT':<15} {'TOKENS/S':>8} {'TOKENS/J':>8} {'UTIL':>5} {'POWER':>5} {'HOTTEST':>7} "
        f"{'SLOTS':>5}  OUTPUT",
    ]
    for gpu in report.gpus:
        stress, canary = gpu.stress, gpu.canary
        check = f"{canary.checks} ok" if canary.state == "on" and not canary.mismatches else canary.state
        if canary.mismatches:
            check = f"{canary.mismatches} of {canary.checks} differ"
        lines.append(
            f"{called(gpu):<{width}} {gpu.verdict:<15} {_cell(gpu.work.tokens_per_s, ''):>8} "
            f"{_per_joule(gpu.work.tokens_per_j):>8} {_cell(stress.utilisation_percent, ' %'):>5} "
            f"{_cell(stress.power_percent, ' %'):>5} {_cell(stress.temp_c, ' °C'):>7} "
            f"{_cell(stress.slots_busy_percent, ' %'):>5}  {check}"
        )
    lines += _stressed(report)
    for gpu in report.gpus:
        lines += _reasons(gpu)
    return "\n".join(lines)


def _gpu_width(report: BurninHead | BurninReport) -> int:
    return max([3, *(len(called(gpu)) for gpu in report.gpus)])


def _hosts(report: BurninHead | BurninReport) -> list[str]:
    """Of a run over several hosts: those that were not tested to the end, and those that are slow as a whole."""
    told = [f"{host.host or THE_HEAD}: {host.reason}" for host in report.hosts or () if host.reason]
    return [line for text in [*told, *(report.outliers or ())] for line in textwrap.wrap(text, _WIDTH)]


def _stressed(report: BurninHead | BurninReport) -> list[str]:
    """The loads beside the model, where there were any: a line for each GPU."""
    if not any(gpu.stress_loads.products or gpu.stress_loads.memory or gpu.stress_loads.links for gpu in report.gpus):
        return []
    precision, width = fastest_precision(products(gpu.stress_loads) for gpu in report.gpus), _gpu_width(report)
    lines = [
        "",
        f"{'GPU':<{width}} {f'TFLOP/S {precision}'.strip():>12} {'MEM GB/S':>8} {'COVERED':>14} {'HOST GB/S':>9} "
        f"{'PEER GB/S':>9} {'MOST POWER':>10}  WRONG",
    ]
    for gpu in report.gpus:
        loads, memory = gpu.stress_loads, gpu.stress_loads.memory
        covered = "–" if memory is None else binary_size(memory.covered_bytes)
        if memory is not None and memory.covered_percent is not None:
            covered += f" {memory.covered_percent:.0f} %"
        lines.append(
            f"{called(gpu):<{width}} {scaled(products(loads).get(precision), 1e12):>12} "
            f"{scaled(memory.bytes_per_s if memory else None, 1e9):>8} {covered:>14} "
            f"{scaled(slowest_link(loads, 'to_host', 'from_host'), 1e9):>9} "
            f"{scaled(slowest_link(loads, 'to_peer'), 1e9):>9} {_cell(most_power_percent(gpu), ' %'):>10}  "
            f"{loads.wrong_tiles + loads.wrong_words or 'none'}"
        )
    short = is_too_short(gpu.stress_loads for gpu in report.gpus)
    return [*lines, *textwrap.wrap(TOO_SHORT, _WIDTH)] if short else lines


def _cell(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.0f}{unit}"


def _of_median(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.1f} %"


def _tokens(per_s: float | None) -> str:
    return "–" if per_s is None else f"{per_s:.1f}"


def _per_joule(tokens: float | None) -> str:
    return "–" if tokens is None else three_digits(tokens)


def _reasons(gpu: BurninGpu) -> list[str]:
    shown = [reason for reason in gpu.reasons if reason.consequence in _SHOWN]
    low = [reason for reason in gpu.reasons if reason.signal == "low_stress"]
    if not shown and not low:
        return []
    lines = ["", *textwrap.wrap(f"GPU {called(gpu)}, {gpu.name}, {gpu.uuid}: {gpu.verdict}", _WIDTH)]
    told = [f"{reason.consequence}: {reason.text}" for reason in shown or low]
    told += [f"do: {gpu.action}"] if gpu.action not in ("", "None.") else []
    for text in told:
        lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


def comparison(document: Comparison) -> str:
    """A comparison: a line for each GPU, grouped by kind of GPU and load."""
    lines = textwrap.wrap(f"{document.verdict}: {document.meaning}", _WIDTH)
    width = min(20, max(len("HOST"), *(len(row.hostname) for group in document.groups for row in group.gpus)))
    for group in document.groups:
        lines += [
            "",
            *textwrap.wrap(_heading(group), _WIDTH),
            f"{'HOST':<{width}} {'RUN':<16} {'GPU':<4} {'OWN VERDICT':<15} {'TOKENS/S':>9} "
            f"{'OF MEDIAN':>10} {'TOKENS/J':>9} {'OF MEDIAN':>10} {'POWER':>6} {'CLOCK':>8}  COMPARED",
        ]
        for row in group.gpus:
            lines.append(
                f"{row.hostname[:width]:<{width}} {row.run:<16} {row.index:<4} {row.verdict:<15} "
                f"{_tokens(row.tokens_per_s):>9} {_of_median(row.of_median_percent):>10} "
                f"{_per_joule(row.tokens_per_j):>9} {_of_median(row.tokens_per_j_of_median_percent):>10} "
                f"{_cell(row.power_percent, ' %'):>6} {_cell(row.clock_mhz, ' MHz'):>8}  {row.judgement}"
            )
        lines += _stressed_beside(group, width)
        lines += _hardware_beside(group, width)
        lines += [f"  {text}" for text in group.hosts]
    lines += ["", *document.left_out] if document.left_out else []
    return "\n".join(lines)


def _heading(group: ComparedGroup) -> str:
    if not group.model:
        return f"{group.name}, no model"
    slots = counted(group.slots, "slot") if group.slots else "slots unknown"
    return (
        f"{group.name}, {group.model}, context {group.context_length or 'unknown'}, {slots}: median "
        f"{_tokens(group.tokens_per_s)} tokens/s"
    )


def _stressed_beside(group: ComparedGroup, width: int) -> list[str]:
    """The loads beside the model, where a report has them; each with its percentage of the median."""
    if not any(row.operations_per_s or row.memory_bytes_per_s or row.link_bytes_per_s for row in group.gpus):
        return []
    precision = fastest_precision(row.operations_per_s for row in group.gpus)
    head = f"{'HOST':<{width}} {'RUN':<16} {'GPU':<4}"
    for name in (f"TFLOP/S {precision}".strip(), "MEM GB/S", "TO HOST", "FROM HOST", "TO PEERS"):
        head += f" {name:>12} {'OF MEDIAN':>9}"
    lines = ["", f"{head} {'COVERED':>10}"]
    for row in group.gpus:
        of_median, links = row.stress_of_median_percent, row.link_bytes_per_s
        line = f"{row.hostname[:width]:<{width}} {row.run:<16} {row.index:<4}"
        for name, value, unit in (
            (precision, row.operations_per_s.get(precision), 1e12),
            ("memory", row.memory_bytes_per_s, 1e9),
            *((kind, links.get(kind), 1e9) for kind in ("to_host", "from_host", "to_peer")),
        ):
            line += f" {scaled(value, unit):>12} {_of_median(of_median.get(name)):>9}"
        covered = "–" if row.covered_bytes is None else binary_size(row.covered_bytes)
        lines.append(f"{line} {covered:>10}")
    return lines


def _hardware_beside(group: ComparedGroup, width: int) -> list[str]:
    """How hard each card was driven, what it is connected by, and what was wrong."""
    head = f"{'HOST':<{width}} {'RUN':<16} {'GPU':<4} {'MOST POWER':>10} {'HOTTEST':>7} {'MEMORY':>7} {'OF FREE':>7}"
    lines = ["", f"{head} {'PCIE':<10} {'NVLINK ERRORS':>13}  WRONG"]
    for row in group.gpus:
        errors = "–" if row.nvlink_errors is None else f"{row.nvlink_errors:,}"
        lines.append(
            f"{row.hostname[:width]:<{width}} {row.run:<16} {row.index:<4} {_cell(row.most_power_percent, ' %'):>10} "
            f"{_cell(row.temp_c, ' °C'):>7} {_cell(row.memory_temp_c, ' °C'):>7} "
            f"{_cell(row.covered_percent, ' %'):>7} {_pcie(row):<10} {errors:>13}  {_wrong(row)}"
        )
    return lines


def _pcie(row: ComparedGpu) -> str:
    known = [f"gen {row.pcie_gen}"] if row.pcie_gen else []
    return " ".join([*known, *([f"×{row.pcie_width}"] if row.pcie_width else [])]) or "–"


def _wrong(row: ComparedGpu) -> str:
    return f"{row.wrong:,}, the first: {row.wrong_at}" if row.wrong and row.wrong_at else f"{row.wrong or 'none'}"
