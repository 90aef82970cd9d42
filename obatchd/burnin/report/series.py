"""How a burn-in goes, in columns: for plots of the run in progress, without the judgement that a report takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Bucket, Record, Unit
from obatchd.burnin.report.report import buckets_in, elapsed_s, gaps_in, series_of, state_of
from obatchd.documents.burnin.report import BurninSeries, GpuSeries

_MEANS = (  # of the others the highest
    "utilisation_percent", "power_w", "clock_mhz", "tokens_per_s", "operations_per_s", "checked_bytes_per_s",
)  # fmt: skip


def build(records: Sequence[Record], points: int) -> BurninSeries:
    """The series of a run, finished or not; of more buckets than ``points``, neighbours are drawn together."""
    begun = journal.begun(records)
    buckets = buckets_in(records)
    together = neighbours(len(buckets), points)
    return BurninSeries(
        run=begun.plan.run,
        state=state_of(records),
        active=False,
        elapsed_s=elapsed_s(buckets),
        asked_s=begun.plan.duration_s,
        at_s=ends((bucket.at_s for bucket in buckets), together),
        gaps=gaps_in(records),
        gpus=[of_gpu(unit, buckets, together) for unit in begun.units],
    )


def of_gpu(unit: Unit, buckets: Sequence[Bucket], together: int) -> GpuSeries:
    """Columns of one GPU, in which each value stands for ``together`` neighbours."""
    columns: dict[str, Any] = msgspec.structs.asdict(series_of(unit.uuid, buckets))
    return GpuSeries(
        uuid=unit.uuid,
        index=unit.index,
        name=unit.name,
        server=unit.server,
        host=unit.host or UNSET,
        **{
            name: [_one(group, _mean if name in _MEANS else max) for group in _grouped(values, together)]
            for name, values in columns.items()
        },
    )


def neighbours(buckets: int, points: int) -> int:
    """How many of so many buckets are drawn together, so that there are no more than ``points``."""
    return max(1, -(-buckets // points))


def ends(at_s: Iterable[float], together: int) -> list[float]:
    """When each group of neighbours ends; epoch seconds."""
    return [round(group[-1], 1) for group in _grouped(list(at_s), together)]


def _grouped(values: Sequence[Any], together: int) -> list[Sequence[Any]]:
    """Neighbours, ``together`` at a time."""
    return [values[place : place + together] for place in range(0, len(values), together)]


def _one(group: Sequence[Any], of_several: Callable[[list[Any]], Any]) -> Any:
    known = [value for value in group if value is not None]
    return of_several(known) if known else None


def _mean(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else round(sum(values) / len(values), 1)
