"""The samples of one look, by metric. What nobody knows is left out, and never written as 0.

A large host has thousands of them, so neither samples nor labels are objects of their own at each look: labels are kept
with their text, and text is written from lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.utils import floatToGoString

from obatchd.counters import Histogram
from obatchd.metrics.catalogue import KINDS, Kind

_ENCODED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_MOST_KEPT = 50_000  # labels below one; then they are made anew


class Labels(dict[str, str]):
    """Labels with their text; those with one more are kept with it."""

    __slots__ = ("_more", "text")

    def __init__(self, labels: Mapping[str, str]) -> None:
        super().__init__(labels)
        named = ",".join(f'{name}="{labels[name].translate(_ENCODED)}"' for name in sorted(labels))
        self.text = f"{{{named}}}" if named else ""
        self._more: dict[tuple[str, str], Labels] = {}

    def and_(self, name: str, value: str) -> Labels:
        """These and one more."""
        found = self._more.get((name, value))
        if found is None:
            if len(self._more) >= _MOST_KEPT:
                self._more.clear()
            found = self._more[name, value] = Labels({**self, name: value})
        return found


NONE = Labels({})


class _Family:
    """The samples of one metric; the name is not always its own (``_bucket``)."""

    __slots__ = ("kind", "labels", "names", "values")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.names: list[str] = []
        self.labels: list[Labels] = []
        self.values: list[float] = []


class Sheet:
    """Filled by the parts that read the daemon."""

    def __init__(self) -> None:
        self._families = {kind.name: _Family(kind) for kind in KINDS}

    def put(self, name: str, value: float | None, labels: Labels = NONE) -> None:
        if value is not None:
            self._add(self._families[name], name, value, labels)

    @staticmethod
    def _add(family: _Family, name: str, value: float, labels: Labels) -> None:
        family.names.append(name)
        family.labels.append(labels)
        family.values.append(value)

    def one_of(self, name: str, value: str, every: Iterable[str], label: str, labels: Labels = NONE) -> None:
        """1 for ``value`` of the label, 0 for all the others that it may have."""
        family = self._families[name]
        for each in every:
            self._add(family, name, 1 if each == value else 0, labels.and_(label, each))

    def counts(self, name: str, counts: Mapping[str, int], label: str, labels: Labels = NONE) -> None:
        for each, count in counts.items():
            self.put(name, count, labels.and_(label, each))

    def histogram(self, name: str, found: Histogram, labels: Labels = NONE) -> None:
        family, reached = self._families[name], 0
        for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
            reached += count
            self._add(family, f"{name}_bucket", reached, labels.and_("le", _number(bound)))
        self._add(family, f"{name}_count", reached, labels)
        self._add(family, f"{name}_sum", found.sum, labels)

    def metrics(self) -> Iterable[Metric]:
        """Those with samples, as the library has them."""
        for family in self._families.values():
            if family.names:
                kind = family.kind
                metric = Metric(kind.name.removesuffix("_total"), kind.help, kind.type)
                for name, labels, value in zip(family.names, family.labels, family.values, strict=True):
                    metric.add_sample(name, labels, value)
                yield metric

    def written(self) -> bytes:
        """Prometheus' text format, version 0.0.4: as the library writes it, in a part of the time."""
        lines: list[str] = []
        for family in self._families.values():
            if family.names:
                kind = family.kind
                lines.append(f"# HELP {kind.name} {kind.help}\n# TYPE {kind.name} {kind.type}\n")
                lines += [
                    f"{name}{labels.text} {_SHORT.get(value) or _number(value)}\n"
                    for name, labels, value in zip(family.names, family.labels, family.values, strict=True)
                ]
        return "".join(lines).encode()


def _number(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


_SHORT = {float(number): f"{number}.0" for number in range(1000)}
