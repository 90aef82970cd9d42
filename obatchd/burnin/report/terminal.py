"""Reports as plain text for a terminal, 80 columns wide, and comparisons, whose table has its own width."""

from __future__ import annotations

import textwrap

from obatchd.documents.burnin import BurninGpu, BurninHead, BurninReport, Comparison
from obatchd.times import duration
from obatchd.words import counted, three_digits

_WIDTH = 80
_SHOWN = ("fail", "inconclusive", "warn")


def summary(report: BurninHead | BurninReport) -> str:
    """A report on one screen: the verdict, a line for each GPU, and why."""
    plan, host = report.plan, report.host
    load = "jobs" if plan.with_jobs else plan.model
    lines = [
        f"Burn-in {report.run} on {host.hostname}: {report.verdict} ({report.state})",
        *textwrap.wrap(report.meaning, _WIDTH),
        f"{plan.profile}, {duration(report.elapsed_s)} of {duration(report.asked_s)} with {load}",
        *(
            line
            for gap in report.gaps
            for line in textwrap.wrap(f"gap from {gap.since} until {gap.until}: {gap.reason}", _WIDTH)
        ),
        "",
        f"{'GPU':<3} {'VERDICT':<15} {'TOKENS/S':>8} {'TOKENS/J':>8} {'UTIL':>5} {'POWER':>5} {'HOTTEST':>7} "
        f"{'SLOTS':>5}  OUTPUT",
    ]
    for gpu in report.gpus:
        stress, canary = gpu.stress, gpu.canary
        check = f"{canary.checks} ok" if canary.state == "on" and not canary.mismatches else canary.state
        if canary.mismatches:
            check = f"{canary.mismatches} of {canary.checks} differ"
        lines.append(
            f"{gpu.index:<3} {gpu.verdict:<15} {_cell(gpu.work.tokens_per_s, ''):>8} "
            f"{_per_joule(gpu.work.tokens_per_j):>8} {_cell(stress.utilisation_percent, ' %'):>5} "
            f"{_cell(stress.power_percent, ' %'):>5} {_cell(stress.temp_c, ' °C'):>7} "
            f"{_cell(stress.slots_busy_percent, ' %'):>5}  {check}"
        )
    for gpu in report.gpus:
        lines += _reasons(gpu)
    return "\n".join(lines)


def _cell(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.0f}{unit}"


def _of_median(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.1f} %"


def _per_joule(tokens: float | None) -> str:
    return "–" if tokens is None else three_digits(tokens)


def _reasons(gpu: BurninGpu) -> list[str]:
    shown = [reason for reason in gpu.reasons if reason.consequence in _SHOWN]
    low = [reason for reason in gpu.reasons if reason.signal == "low_stress"]
    if not shown and not low:
        return []
    lines = ["", *textwrap.wrap(f"GPU {gpu.index}, {gpu.name}, {gpu.uuid}: {gpu.verdict}", _WIDTH)]
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
        slots = counted(group.slots, "slot") if group.slots else "slots unknown"
        lines += [
            "",
            f"{group.name}, {group.model}, context {group.context_length or 'unknown'}, {slots}: "
            f"median {group.tokens_per_s:.1f} tokens/s",
            f"{'HOST':<{width}} {'RUN':<16} {'GPU':<4} {'OWN VERDICT':<15} {'TOKENS/S':>9} "
            f"{'OF MEDIAN':>10} {'TOKENS/J':>9} {'OF MEDIAN':>10} {'POWER':>6} {'CLOCK':>8}  COMPARED",
        ]
        for row in group.gpus:
            lines.append(
                f"{row.hostname[:width]:<{width}} {row.run:<16} {row.index:<4} {row.verdict:<15} "
                f"{row.tokens_per_s:>9.1f} {row.of_median_percent:>8.1f} % {_per_joule(row.tokens_per_j):>9} "
                f"{_of_median(row.tokens_per_j_of_median_percent):>10} {_cell(row.power_percent, ' %'):>6} "
                f"{_cell(row.clock_mhz, ' MHz'):>8}  {row.judgement}"
            )
        lines += [f"  {text}" for text in group.hosts]
    lines += ["", *document.left_out] if document.left_out else []
    return "\n".join(lines)
