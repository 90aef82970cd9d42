"""Figures and words of a report that terminal, page and vendor's file share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from obatchd.documents.burnin.loads import StressLoads
from obatchd.documents.burnin.plan import Host, Plan
from obatchd.documents.burnin.report import BurninGpu, BurninReport, GpuSeries, ListedGpu
from obatchd.words import three_digits

TOO_SHORT = "Each precision had less than 10 s of products: too short to tell how fast they were."

THE_HEAD = "the head's own machine"

LOADS = {
    "model": "model",
    "compute": "matrix products",
    "memory": "patterns in memory",
    "dcgm": "dcgmi diag",
    "gpu-burn": "gpu-burn",
    "jobs": "jobs",
}


def called(gpu: BurninGpu | GpuSeries | ListedGpu) -> str:
    """A GPU in tables and sentences; of a host that joined with its name."""
    return f"{gpu.host}/{gpu.index}" if gpu.host else str(gpu.index)


def host_of(report: BurninReport, gpu: BurninGpu) -> Host:
    """The machine of a GPU."""
    return next((each.machine for each in report.hosts or () if each.host == (gpu.host or "")), report.host)


def load_words(plan: Plan) -> str:
    """What loaded the GPUs, for people."""
    if plan.with_jobs:
        return "jobs"
    names = [LOADS.get(load, load) for load in plan.loads if load != "model"]
    if "model" in plan.loads or not plan.phases:
        names.insert(0, plan.model)
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def products(loads: StressLoads) -> dict[str, float]:
    """Operations per second by precision, as far as they were measured."""
    return {each.precision: each.operations_per_s for each in loads.products if each.operations_per_s}


def fastest_precision(every: Iterable[Mapping[str, float]]) -> str:
    """The precision with the most operations per second on any GPU; empty where none was measured."""
    speeds = [(speed, precision) for known in every for precision, speed in known.items()]
    return max(speeds, default=(0.0, ""))[1]


def slowest_link(loads: StressLoads, *kinds: str) -> float | None:
    """Bytes per second."""
    return min((link.bytes_per_s for link in loads.links if link.kind in kinds), default=None)


def scaled(value: float | None, unit: float) -> str:
    """A figure in a larger unit, or a dash."""
    return "–" if value is None else three_digits(value / unit)


def most_power_percent(gpu: BurninGpu) -> float | None:
    """Median power, of its limit, in the phase with the most; of runs without phases that of the whole run."""
    known = [phase.power_percent for phase in gpu.phases if phase.power_percent is not None]
    return max(known, default=gpu.stress.power_percent)


def pcie_link(gpu: BurninGpu) -> tuple[int | None, int | None]:
    """Generation and lanes: the higher generation, because it falls while a card is idle, and the fewer lanes."""
    generation, lanes = gpu.counters.get("pcie_gen"), gpu.counters.get("pcie_width")
    return (
        max(generation.start, generation.end) if generation else None,
        min(lanes.start, lanes.end) if lanes else None,
    )


def nvlink_errors(gpu: BurninGpu) -> int | None:
    """New errors of all kinds on all links; None where the card tells none."""
    known = [counter.change for name, counter in gpu.counters.items() if name.startswith("nvlink_")]
    return sum(known) if known else None


def is_too_short(every: Iterable[StressLoads]) -> bool:
    """Whether products were computed, but for so short a time that no speed of theirs is told."""
    computed = [loads for loads in every if loads.products]
    return bool(computed) and not any(products(loads) for loads in computed)
