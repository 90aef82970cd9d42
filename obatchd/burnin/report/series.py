"""How a burn-in goes, in columns: for plots of the run in progress, without the judgement that a report takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Bucket, Record
from obatchd.burnin.report.report import gaps_in, series_of, state_of
from obatchd.documents.burnin.report import BurninSeries, GpuSeries, Series

_MEANS = (  # of the others the highest
    "utilisation_percent", "power_w", "clock_mhz", "tokens_per_s", "operations_per_s", "checked_bytes_per_s",
)  # fmt: skip


def build(records: Sequence[Record], points: int) -> BurninSeries:
    """The series of a run, finished or not; of more buckets than ``points``, neighbours are drawn together."""
    begun = journal.begun(records)
    buckets = [record for record in records if isinstance(record, Bucket)]
    together = max(1, -(-len(buckets) // points))
    return BurninSeries(
        run=begun.plan.run,
        state=state_of(records),
        active=False,
        elapsed_s=round(sum(bucket.span_s for bucket in buckets if not bucket.between), 1),
        asked_s=begun.plan.duration_s,
        at_s=[round(group[-1].at_s, 1) for group in grouped(buckets, together)],
        gaps=gaps_in(records),
        gpus=[
            GpuSeries(
                uuid=unit.uuid,
                index=unit.index,
                name=unit.name,
                server=unit.server,
                **drawn_together(series_of(unit.uuid, buckets), together),
            )
            for unit in begun.units
        ],
    )


def drawn_together(series: Series, together: int) -> dict[str, Any]:
    """Columns in which each value stands for ``together`` neighbours."""
    columns: dict[str, Any] = msgspec.structs.asdict(series)
    return {
        name: [_one(group, _mean if name in _MEANS else max) for group in grouped(values, together)]
        for name, values in columns.items()
    }


def grouped(values: Sequence[Any], together: int) -> list[Sequence[Any]]:
    """Neighbours, ``together`` at a time."""
    return [values[place : place + together] for place in range(0, len(values), together)]


def _one(group: Sequence[Any], of_several: Callable[[list[Any]], Any]) -> Any:
    known = [value for value in group if value is not None]
    return of_several(known) if known else None


def _mean(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else round(sum(values) / len(values), 1)
