"""Figures and words of a report that terminal, page and vendor's file share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from obatchd.documents.burnin import Plan
from obatchd.documents.burnin_loads import StressLoads
from obatchd.words import three_digits

LOADS = {
    "model": "model",
    "compute": "matrix products",
    "memory": "patterns in memory",
    "dcgm": "dcgmi diag",
    "gpu-burn": "gpu-burn",
    "jobs": "jobs",
}


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
