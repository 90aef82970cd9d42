"""The samples of one look, by metric. What nobody knows is left out, and never written as 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from obatchd.counters import Histogram
from obatchd.metrics.catalogue import KINDS, Kind

Labels = Mapping[str, str]
_NONE: Labels = {}
_ENCODED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Sheet:
    """Filled by the parts that read the daemon; labels of one thing are one mapping, which is written once."""

    def __init__(self) -> None:
        self._families = {kind.name: Metric(_family(kind), kind.help, kind.type) for kind in KINDS}

    def put(self, name: str, value: float | None, labels: Labels = _NONE) -> None:
        if value is not None:
            self._families[name].samples.append(Sample(name, labels, value))  # type: ignore[arg-type]

    def one_of(self, name: str, value: str, every: Iterable[str], label: str, labels: Labels = _NONE) -> None:
        """1 for ``value`` of the label, 0 for all the others that it may have."""
        for each in every:
            self.put(name, 1.0 if each == value else 0.0, {**labels, label: each})

    def counts(self, name: str, counts: Mapping[str, int], label: str, labels: Labels = _NONE) -> None:
        for each, count in counts.items():
            self.put(name, count, {**labels, label: each})

    def histogram(self, name: str, found: Histogram, labels: Labels = _NONE) -> None:
        samples, reached = self._families[name].samples, 0
        for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
            reached += count
            samples.append(Sample(f"{name}_bucket", {**labels, "le": _number(bound)}, reached))
        samples.append(Sample(f"{name}_count", labels, reached))  # type: ignore[arg-type]
        samples.append(Sample(f"{name}_sum", labels, found.sum))  # type: ignore[arg-type]

    def metrics(self) -> list[Metric]:
        """Those with samples, as the library has them."""
        return [family for family in self._families.values() if family.samples]


def _family(kind: Kind) -> str:
    return kind.name.removesuffix("_total") if kind.type == "counter" else kind.name


def written(metrics: Sequence[Metric]) -> bytes:
    """Prometheus' text format, version 0.0.4: as the library's ``generate_latest`` writes it, in a part of the time.

    Labels that are one mapping in many samples are written out once.
    """
    lines: list[str] = []
    texts: dict[int, str] = {}  # by identity of the mapping
    for metric in metrics:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"# HELP {name} {metric.documentation}\n# TYPE {name} {metric.type}\n")
        for sample in metric.samples:
            labels = sample.labels
            if (text := texts.get(id(labels))) is None:
                text = texts[id(labels)] = _labels(labels)
            value = sample.value
            lines.append(f"{sample.name}{text} {_SHORT.get(value) or _number(value)}\n")
    return "".join(lines).encode()


def _number(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


_SHORT = {float(number): f"{number}.0" for number in range(100)}


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    named = ",".join(f'{name}="{labels[name].translate(_ENCODED)}"' for name in sorted(labels))
    return f"{{{named}}}"
