"""The evidence on the loads beside the model: products, patterns in memory, links. Figures only, no judgement."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from obatchd.burnin.journal.records import (
    LinkSpeed,
    OutsideEnded,
    Record,
    Sample,
    StressEnded,
    StressOpened,
    WrongResult,
)
from obatchd.documents.burnin.loads import LinkResult, MemoryTest, OutsideResult, ProductSpeed, StressLoads, WrongPlace
from obatchd.times import instant

PRECISIONS = ("FP32", "TF32", "FP16", "BF16", "FP8")
_LEAST_S = 10.0  # of work, from which its speed is told
_MOST_PLACES = 50
_GRAVITY = ("passed", "partly", "not_done", "failed", "wrong_results")


class Phased(NamedTuple):
    """A sample and the loads of its phase."""

    loads: tuple[str, ...]
    sample: Sample

    @property
    def of_model(self) -> bool:
        """Whether it tells the speed of a model, which nothing else slows down; also in runs that knew no phases."""
        return self.loads in ((), ("model",), ("jobs",))

    @property
    def without_model(self) -> bool:
        return bool(self.loads) and "model" not in self.loads


def of(gpu: str, phased: Sequence[Phased], records: Sequence[Record]) -> StressLoads:
    """The loads beside the model on one GPU; ``phased`` has exchanges of loads, too: what is told late counts."""
    samples = [sample for _, sample in phased]
    opened = [r for r in records if isinstance(r, StressOpened) and r.gpu == gpu]
    wrong = [r for r in records if isinstance(r, WrongResult) and r.gpu == gpu]
    ended = [r for r in records if isinstance(r, StressEnded) and r.gpu == gpu]
    alone = [each.sample for each in phased if each.without_model]
    places = {load: sum(1 for place in wrong if place.load == load) for load in ("compute", "memory")}
    return StressLoads(
        library=f"{opened[-1].library} {opened[-1].version}" if opened else "",
        products=_products(alone, samples),
        memory=_memory(alone, samples),
        links=_links(r for r in records if isinstance(r, LinkSpeed) and r.gpu == gpu),
        # A place may have been told, and its count not any more.
        wrong_tiles=max(sum(s.wrong_tiles for s in samples), places["compute"]),
        wrong_words=max(sum(s.wrong_words for s in samples), places["memory"]),
        wrong=[_place(each) for each in wrong[:_MOST_PLACES]],
        ended=ended[-1].text if ended else "",
        outside=_outside(r for r in records if isinstance(r, OutsideEnded) and r.gpu == gpu),
    )  # fmt: skip


def firsts(samples: Iterable[Phased]) -> dict[str, str]:
    """The digest of the first product of each precision."""
    return {precision: first for _, sample in samples for precision, first in sample.firsts.items()}


def _place(record: WrongResult) -> WrongPlace:
    at = instant(record.at_s) or ""
    return WrongPlace(at, record.load, record.place, record.pattern, record.expected, record.found, record.times)


def _outside(ended: Iterable[OutsideEnded]) -> list[OutsideResult]:
    """The gravest of what each program said; it may have run several times."""
    gravest: dict[str, OutsideEnded] = {}
    for each in ended:
        known = gravest.setdefault(each.program, each)
        if _GRAVITY.index(each.outcome) > _GRAVITY.index(known.outcome):
            gravest[each.program] = each
    return [OutsideResult(each.program, each.outcome, each.text) for each in gravest.values()]


def _products(alone: list[Sample], samples: list[Sample]) -> list[ProductSpeed]:
    found = []
    for precision in sorted({name for s in samples for name in s.operations}, key=_rank):
        operations = sum(s.operations.get(precision, 0) for s in samples)
        done = sum(s.operations.get(precision, 0) for s in alone)
        seconds = sum(s.operating_s.get(precision, 0.0) for s in alone)
        found.append(ProductSpeed(precision, operations, done / seconds if seconds >= _LEAST_S else None))
    return found


def _rank(precision: str) -> tuple[int, str]:
    return (PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)), precision


def _memory(alone: list[Sample], samples: list[Sample]) -> MemoryTest | None:
    most = max(samples, key=lambda s: (s.covered_bytes, s.bytes_written), default=None)
    if most is None or not any(s.bytes_written for s in samples):
        return None
    moved, seconds = sum(s.bytes_written + s.bytes_checked for s in alone), sum(s.accessing_s for s in alone)
    total = next((s.memory_total_bytes for s in reversed(samples) if s.memory_total_bytes), None)
    return MemoryTest(
        covered_bytes=most.covered_bytes,
        free_bytes=most.free_bytes,
        covered_percent=round(100 * most.covered_bytes / most.free_bytes, 1) if most.free_bytes else None,
        of_card_percent=round(min(100.0, 100 * most.covered_bytes / total), 1) if total else None,
        passes=max(s.passes for s in samples),
        checked_bytes=sum(s.bytes_checked for s in samples),
        bytes_per_s=moved / seconds if seconds >= _LEAST_S else None,
    )


def _links(measured: Iterable[LinkSpeed]) -> list[LinkResult]:
    links: dict[tuple[str, str], list[float]] = {}
    for each in measured:
        links.setdefault((each.kind, each.peer), []).append(each.bytes_per_s)
    return [LinkResult(kind, peer, statistics.median(speeds)) for (kind, peer), speeds in links.items()]


# --- beside the others ------------------------------------------------------------------------------------------------


def put_beside(one: StressLoads, others: Sequence[StressLoads]) -> None:
    """Fill in how fast each thing was, of the median of GPUs like it."""
    for product in one.products:
        of_others = [_speed_of(other, product.precision) for other in others]
        product.of_median_percent = _percent(product.operations_per_s, of_others)
    if one.memory is not None:
        of_others = [other.memory.bytes_per_s if other.memory else None for other in others]
        one.memory.of_median_percent = _percent(one.memory.bytes_per_s, of_others)
    for link in one.links:
        if link.kind != "to_peer":
            link.of_median_percent = _percent(link.bytes_per_s, [_host_link(other, link.kind) for other in others])
    # Of peers the slowest with the slowest of others, and so on: there may be more links to some than to others.
    ranked = _peers(one)
    alike = [ranks for other in others if len(ranks := _peers(other)) == len(ranked)]
    for rank, link in enumerate(ranked):
        link.of_median_percent = _percent(link.bytes_per_s, [ranks[rank].bytes_per_s for ranks in alike])


def _percent(value: float | None, others: Sequence[float | None]) -> float | None:
    """Of an even number of others the lower one in the middle: nobody is slow because one of two is fast."""
    known = [speed for speed in others if speed]
    return round(100 * value / statistics.median_low(known), 1) if value and known else None


def _speed_of(loads: StressLoads, precision: str) -> float | None:
    return next((each.operations_per_s for each in loads.products if each.precision == precision), None)


def _host_link(loads: StressLoads, kind: str) -> float | None:
    return next((each.bytes_per_s for each in loads.links if each.kind == kind), None)


def _peers(loads: StressLoads) -> list[LinkResult]:
    return sorted((link for link in loads.links if link.kind == "to_peer"), key=lambda link: link.bytes_per_s)
