"""The report as one HTML page that opens without a network and prints with one page per GPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from datetime import datetime
from html import escape
from typing import Any

from obatchd.burnin.report import plots
from obatchd.burnin.report.figures import (
    THE_HEAD,
    TOO_SHORT,
    called,
    fastest_precision,
    host_of,
    is_too_short,
    load_words,
    most_power_percent,
    nvlink_errors,
    pcie_link,
    products,
    scaled,
    slowest_link,
)
from obatchd.burnin.report.plots import Axes
from obatchd.burnin.report.style import STYLE
from obatchd.documents.burnin.loads import StressLoads
from obatchd.documents.burnin.report import BurninGpuPages, BurninReport
from obatchd.times import duration, epoch_s
from obatchd.words import binary_size, counted, energy, three_digits

_CAUSES = {"hw_slowdown": "hardware", "hw_thermal": "hardware, heat", "hw_power_brake": "hardware, power brake",
           "sw_thermal": "driver, heat"}  # fmt: skip
_MOST_WRONG = 12  # told on the page
_MARKED = ("fail", "inconclusive", "warn")


def render(report: BurninReport) -> str:
    """The page of a report."""
    axes = Axes(report)
    title = f"Burn-in {report.run}"
    pages = "".join(_gpu(axes, number) for number in range(len(report.gpus)))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: {report.verdict}'
        f'</title><meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{plots.definitions(axes)}{_front(axes, title)}{pages}</body></html>\n"
    )


def _front(axes: Axes, title: str) -> str:
    report = axes.report
    host, plan = report.host, report.plan
    load = next((gpu.load for gpu in report.gpus if gpu.load.model), None)
    model = load.model if load else plan.model
    facts = {
        "Host": host.hostname,
        "Machine": host.machine,
        "Began": _time(report.started_at),
        "Ended": _time(report.ended_at) or f"not yet ({report.state})",
        "Load asked for": f"{duration(report.asked_s)} ({plan.profile})",
        "Recorded": duration(report.elapsed_s),
        "Load": load_words(plan).replace(plan.model, f"generated prompts for {model}") if model else load_words(plan),
        "Phases": _phases(axes),
        "Driver": host.driver,
        "Ollama": load.ollama if load else None,
        "obatchd": report.version,
    }
    notes = [
        f"Gap of {duration(epoch_s(gap.until) - epoch_s(gap.since))} from {_time(gap.since)}: {gap.reason}"
        for gap in report.gaps
    ]
    notes += [f"{_time(event.at)}: {event.text}" for event in report.events if event.consequence != "note"]
    notes += [f"{host.host or THE_HEAD}: {host.reason}" for host in report.hosts or () if host.reason]
    listed = "".join(f"<li>{escape(note)}</li>" for note in [*notes, *(report.outliers or ())])
    legend = "".join(
        f'<span class="named">{plots.key(number)} GPU {called(gpu)}</span> ' for number, gpu in enumerate(report.gpus)
    )
    wanted = [plot for plot in plots.shown_plots(axes) if not plot.column.startswith("errors_")]
    wanted = [plot for plot in wanted if any(axes.has(plot, gpu) for gpu in report.gpus)]
    return (
        f"<header><h1>{escape(title)} {_badge(report.verdict)}</h1><p>{escape(report.meaning)}</p>"
        f"{_facts(facts)}{f'<ul>{listed}</ul>' if listed else ''}</header>"
        f"{_table(report)}{_stressed_table(report)}"
        f'<h2>All GPUs</h2><p class="legend">Time since the load began. {legend}</p>'
        f'<div class="plots">{"".join(plots.overlay(axes, plot) for plot in wanted)}</div>'
    )


def _badge(verdict: str) -> str:
    return f'<span class="badge {escape(verdict)}">{escape(verdict.replace("_", " "))}</span>'


def _facts(facts: dict[str, Any]) -> str:
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in known.items())
    return f"<dl>{pairs}</dl>"


def _table(report: BurninReport) -> str:
    names: Iterable[str] = ()
    rows = []
    for number, gpu in enumerate(report.gpus):
        stress, reasons = gpu.stress, [r for r in gpu.reasons if r.consequence in _MARKED or r.signal == "low_stress"]
        numbers = {
            "tokens/s": _figure(gpu.work.tokens_per_s),
            "tokens/J": _per_joule(gpu),
            "Utilisation": _figure(stress.utilisation_percent, " %"),
            "Power (% of limit)": _figure(stress.power_percent, " %"),
            "Hottest": _figure(stress.temp_c, " °C", 0),
            "SM clock": _figure(stress.clock_mhz, " MHz", 0),
            "Slots busy": _figure(stress.slots_busy_percent, " %"),
        }
        names = numbers.keys()
        rows.append(
            f'<tr><td><a href="#gpu-{number}">{called(gpu)}</a> <span class="soft">{escape(gpu.name)}</span></td>'
            f"<td>{_badge(gpu.verdict)}</td>{''.join(f'<td class=n>{text}</td>' for text in numbers.values())}"
            f"<td>{escape(reasons[0].text) if reasons else ''}</td></tr>"
        )
    head = "".join(f"<th class=n>{name}</th>" for name in names)
    return (
        f"<table><thead><tr><th>GPU</th><th>Verdict</th>{head}<th>First reason</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _phases(axes: Axes) -> str:
    """What ran from when on."""
    begun, told = axes.report.phases, list[str]()
    for number, phase in enumerate(begun):
        if not number or phase.number != begun[number - 1].number:
            after = "from the start" if not told else f"from {duration(epoch_s(phase.at) - axes.start_s)} on"
            told.append(f"{' + '.join(phase.loads)} {after}")
    return "; ".join(told)


def _stressed_table(report: BurninReport) -> str:
    """The loads beside the model, where there were any."""
    if not any(gpu.stress_loads.products or gpu.stress_loads.memory or gpu.stress_loads.links for gpu in report.gpus):
        return ""
    precision = fastest_precision(products(gpu.stress_loads) for gpu in report.gpus)
    names: Iterable[str] = ()
    rows = []
    for number, gpu in enumerate(report.gpus):
        loads, memory = gpu.stress_loads, gpu.stress_loads.memory
        numbers = {
            f"TFLOP/s {precision}".strip(): scaled(products(loads).get(precision), 1e12),
            "Memory, GB/s": scaled(memory.bytes_per_s if memory else None, 1e9),
            "Covered": binary_size(memory.covered_bytes) if memory else "–",
            "of what was free": _figure(memory.covered_percent if memory else None, " %"),
            "Host, GB/s": scaled(slowest_link(loads, "to_host", "from_host"), 1e9),
            "Peers, GB/s": scaled(slowest_link(loads, "to_peer"), 1e9),
            "Most power": _figure(most_power_percent(gpu), " %"),
            "Wrong": str(loads.wrong_tiles + loads.wrong_words or "none"),
        }
        names = numbers.keys()
        cells = "".join(f"<td class=n>{text}</td>" for text in numbers.values())
        rows.append(f'<tr><td><a href="#gpu-{number}">{called(gpu)}</a></td>{cells}</tr>')
    head = "".join(f"<th class=n>{name}</th>" for name in names)
    return (
        "<h3>Matrix products, memory, links</h3>"
        f"<table><thead><tr><th>GPU</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        + (f"<p>{TOO_SHORT}</p>" if is_too_short(gpu.stress_loads for gpu in report.gpus) else "")
    )


def _figure(value: float | None, unit: str = "", digits: int = 1) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}{unit}" if abs(value) >= 100 and unit != " %" else f"{value:.{digits}f}{unit}"


def _per_joule(gpu: BurninGpuPages) -> str:
    tokens = gpu.work.tokens_per_j
    return "–" if tokens is None else three_digits(tokens)


def _gpu(axes: Axes, number: int) -> str:
    report, gpu = axes.report, axes.report.gpus[number]
    figures = "".join(plots.overlay(axes, plot, number) for plot in plots.shown_plots(axes))
    return (
        f'<section class="gpu" id="gpu-{number}">'
        f"<h2>GPU {called(gpu)}: {escape(gpu.name)} {_badge(gpu.verdict)}</h2>"
        f'<p class="soft">Burn-in {escape(report.run)} on {escape(host_of(report, gpu).hostname)}</p>'
        f"{_identity(gpu)}{_reasons(gpu)}"
        f'<p class="action"><b>What to do:</b> {_commands(gpu.action)}</p>'
        f'<p class="legend"><span class="swatch" style="background:#0b57a4"></span>this GPU'
        f'<span class="swatch" style="background:#b9c0c8"></span>other GPUs of the run'
        f'<span class="swatch" style="background:#f6b26b;height:9px"></span>slowed down'
        f'<span class="swatch" style="background:#d5d8dc;height:9px"></span>daemon not running</p>'
        f'<div class="plots">{figures}</div>{_measures(gpu, report)}</section>'
    )


def _identity(gpu: BurninGpuPages) -> str:
    identity = gpu.identity
    facts = {
        "UUID": gpu.uuid,
        "Serial number": identity.serial or "unknown",
        "Bus id": identity.pci_bus_id,
        "Slot": identity.slot,
        "Board part": identity.board_part_number,
        "VBIOS": identity.vbios,
        "InfoROM": identity.inforom,
        "ECC": None if identity.ecc is None else "on" if identity.ecc else "off",
    }
    return _facts(facts)


def _reasons(gpu: BurninGpuPages) -> str:
    if not gpu.reasons:
        return "<p>Nothing was found against it.</p>"
    numbers = {id(reason): number for number, reason in enumerate(plots.marked(gpu), start=1)}
    lines = {event.signal: event.verbatim for event in reversed(gpu.events) if event.verbatim}
    items = []
    for reason in gpu.reasons:
        number = f"<b>{numbers[id(reason)]}</b> " if id(reason) in numbers else ""
        at = f' <span class="soft">first at {_time(reason.at)}</span>' if reason.at else ""
        line = f"<br><code>{escape(lines[reason.signal])}</code>" if reason.signal in lines else ""
        kind = reason.consequence
        items.append(f'<li>{number}<span class="tag {kind}">{kind}</span> {escape(reason.text)}{at}{line}</li>')
    return f'<h3>Why</h3><ul class="reasons">{"".join(items)}</ul>'


def _commands(text: str) -> str:
    """Text, with parts between backquotes as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def _of_others(gpu: BurninGpuPages, report: BurninReport) -> str:
    """Tokens per joule beside those of the GPUs that did the same work."""
    loads = [(other.name, other.load.model, other.load.context_length, other.load.slots) for other in report.gpus]
    mine = loads[report.gpus.index(gpu)]
    others = [
        other.work.tokens_per_j
        for other, load in zip(report.gpus, loads, strict=True)
        if other is not gpu and load == mine and other.work.tokens_per_j
    ]
    if not others or not gpu.work.tokens_per_j:
        return ""
    percent = 100 * gpu.work.tokens_per_j / statistics.median(others)
    return f" ({percent:.1f} % of the median of {counted(len(others), 'GPU')} like it)"


def _measures(gpu: BurninGpuPages, report: BurninReport) -> str:
    stress, work, canary = gpu.stress, gpu.work, gpu.canary
    throttled = ", ".join(f"{_CAUSES.get(c, c)} {duration(s)}" for c, s in gpu.throttle_s.items() if s > 0)
    facts = {
        "Under load": duration(stress.loaded_s),
        "Readings for": duration(stress.seen_s),
        "Slots": gpu.load.slots,
        "Context": counted(gpu.load.context_length, "token") if gpu.load.context_length else None,
        "Slots busy": _figure(stress.slots_busy_percent, " %"),
        "Utilisation": _figure(stress.utilisation_percent, " %"),
        "Power, median": f"{_figure(stress.power_w, ' W')} ({_figure(stress.power_percent, ' % of the limit')})",
        "Hottest": f"{_figure(stress.temp_c, ' °C', 0)}, memory {_figure(stress.memory_temp_c, ' °C', 0)}",
        "PCIe": _pcie(gpu),
        "NVLink errors": None if (errors := nvlink_errors(gpu)) is None else f"{errors:,}",
        "Memory filled": _figure(stress.vram_percent, " %"),
        "Answers": f"{work.requests:,} with {counted(work.tokens, 'token')}, {work.failed:,} failed",
        "Speed, last hour": _figure(work.tokens_per_s, " tokens/s"),
        "Energy under load": energy(work.energy_j) if work.energy_j is not None else None,
        "Tokens per joule": f"{_per_joule(gpu)}{_of_others(gpu, report)}" if work.tokens_per_j else None,
        "Slowed down": throttled or "never",
        "Output check": f"{canary.text}; {counted(canary.checks, 'check')}, {canary.mismatches} differed",
    }
    changed = {
        name.replace("_", " "): f"{counter.start:,} → {counter.end:,} ({counter.change:+,})"
        for name, counter in gpu.counters.items()
        if counter.change
    }
    counters = f"<h3>Counters that changed</h3>{_facts(changed)}" if changed else ""
    return f"<h3>Measured</h3>{_facts(facts)}{_stressed(gpu.stress_loads, report)}{_by_phase(gpu)}{counters}"


def _pcie(gpu: BurninGpuPages) -> str | None:
    """The link as it was, beside the best that the card can have."""
    (generation, lanes), card = pcie_link(gpu), gpu.identity
    if generation is None or lanes is None:
        return None
    best, most = (f" of {limit}" if limit else "" for limit in (card.pcie_gen_max, card.pcie_width_max))
    return f"generation {generation}{best}, lanes {lanes}{most}"


def _stressed(loads: StressLoads, report: BurninReport) -> str:
    """Everything about the loads beside the model."""
    facts: dict[str, Any] = {"Library": loads.library, "Ended early": loads.ended}
    for product in loads.products:
        facts[product.precision] = (
            f"{scaled(product.operations_per_s, 1e12)} TFLOP/s{_median(product.of_median_percent)}"
        )
    if (memory := loads.memory) is not None:
        share = f" ({memory.covered_percent:g} % of what was free)" if memory.covered_percent is not None else ""
        facts["Memory covered"] = f"{binary_size(memory.covered_bytes)}{share}"
        facts["Memory read back"] = (
            f"{binary_size(memory.checked_bytes)}, {counted(memory.passes, 'whole pass', 'whole passes')}"
        )
        facts["Memory speed"] = f"{scaled(memory.bytes_per_s, 1e9)} GB/s{_median(memory.of_median_percent)}"
    for link in loads.links:
        if link.kind != "to_peer":
            name = "To the host" if link.kind == "to_host" else "From the host"
            facts[name] = f"{scaled(link.bytes_per_s, 1e9)} GB/s{_median(link.of_median_percent)}"
    peers = sorted((link for link in loads.links if link.kind == "to_peer"), key=lambda link: link.bytes_per_s)
    if peers:
        name = next((f"GPU {called(gpu)}" for gpu in report.gpus if gpu.uuid == peers[0].peer), peers[0].peer)
        slowest = f"{scaled(peers[0].bytes_per_s, 1e9)} GB/s{_median(peers[0].of_median_percent)} to {name}"
        facts["To peers"] = f"{counted(len(peers), 'GPU')}, the slowest {slowest}"
    for each in loads.outside:
        facts[each.program] = f"{each.outcome}{f': {each.text}' if each.text else ''}"
    known = {name: value for name, value in facts.items() if value}
    if not known:
        return ""
    wrong = "".join(
        f"<li>{_time(each.at)}: {escape(each.place)} <span class=soft>({escape(each.pattern)})</span> "
        f"<code>{escape(each.found)}</code>, not <code>{escape(each.expected)}</code></li>"
        for each in loads.wrong[:_MOST_WRONG]
    )
    total = loads.wrong_tiles + loads.wrong_words
    listed = f"<h3>Wrong results: {total:,}, the first of them</h3><ul>{wrong}</ul>" if wrong else ""
    return f"<h3>Matrix products, memory, links</h3>{_facts(known)}{listed}"


def _median(percent: float | None) -> str:
    return "" if percent is None else f" ({percent:.1f} % of the median)"


def _by_phase(gpu: BurninGpuPages) -> str:
    rows = "".join(
        f"<tr><td>{escape(' + '.join(phase.loads))}</td><td class=n>{duration(phase.loaded_s)}</td>"
        f"<td class=n>{_figure(phase.utilisation_percent, ' %')}</td><td class=n>{_figure(phase.power_w, ' W')}</td>"
        f"<td class=n>{_figure(phase.power_percent, ' %')}</td><td class=n>{_figure(phase.clock_mhz, ' MHz', 0)}</td>"
        f"<td class=n>{_figure(phase.temp_c, ' °C', 0)}</td>"
        f"<td class=n>{_figure(phase.memory_temp_c, ' °C', 0)}</td></tr>"
        for phase in gpu.phases
    )
    names = ("Under load", "Utilisation", "Power", "of the limit", "SM clock", "Hottest", "Memory, hottest")
    head = "".join(f"<th class=n>{name}</th>" for name in names)
    return (
        f"<h3>By load</h3><table><thead><tr><th>Load</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
        if rows
        else ""
    )


def _time(instant: str | None) -> str:
    return "" if instant is None else datetime.fromisoformat(instant).strftime("%Y-%m-%d %H:%M:%S UTC")
