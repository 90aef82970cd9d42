"""Plots of a report as inline SVG: one line per GPU over time, its siblings thin behind it.

Each line is drawn once, as a path with an id, and every page refers to it: a report of 28 GPUs stays small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from obatchd.documents.burnin.report import BurninGpuPages, BurninReason, BurninReport
from obatchd.times import epoch_s

_WIDTH, _HEIGHT = 360, 104
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 6, 8, 20
_POINTS = 360  # of a line at most
_BREAK = 3.0  # a step longer than so many usual ones interrupts the line
_TICKS = 4
_MOST_MARKS = 12
_KEY = 34  # width of a line in the legend
# Found by a search for the largest least distance of any two, of all colours with a contrast of 3.3 to 9.6 on white:
# ΔE*ab 41, and 31 with Machado's simulations of eyes without red, green or blue cones. Each has the most distance to
# those before it.
_COLOURS = ("#5a00ff", "#ff4b0f", "#780f87", "#3c9669", "#871e00", "#e13cf0", "#2d4b4b", "#b478b4")
_NEAR = 12  # units of the picture that a number takes
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TIME_STEPS_S = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600, 43200, 86400, 172800)


class Plot(NamedTuple):
    """One kind of plot: the column of the report's series, its title, and its scale."""

    column: str
    title: str
    unit: str
    factor: float = 1.0
    floor: float | None = 0.0  # lowest end of the scale; None: the lowest value
    least_top: float = 1.0
    smooth: bool = False
    optional: bool = False  # left out where no GPU has it


PLOTS = (
    Plot("utilisation_percent", "Utilisation", "%", least_top=100),
    Plot("power_w", "Power", "W"),
    Plot("temp_c", "Temperature", "°C", floor=None),
    Plot("clock_mhz", "SM clock", "MHz"),
    Plot("tokens_per_s", "Answered tokens per second", "", smooth=True),
    Plot("memory_used_bytes", "Memory in use", "GiB", factor=1 / 2**30),
    Plot("operations_per_s", "Matrix products", "TFLOP/s", factor=1e-12, smooth=True, optional=True),
    Plot("checked_bytes_per_s", "Memory read back", "GB/s", factor=1e-9, smooth=True, optional=True),
    Plot("covered_bytes", "Memory covered in the phase", "GiB", factor=1 / 2**30, optional=True),
    Plot("errors_uncorrected", "Uncorrectable errors since the start", "", least_top=4),
    Plot("errors_corrected", "Corrected errors and replays since the start", "", least_top=4),
)


class Axes:
    """The scales that all GPUs of a report share, so that pages can be laid side by side."""

    def __init__(self, report: BurninReport) -> None:
        self.report = report
        self.times = [epoch_s(at) for at in report.at]
        start = report.loading_at or report.started_at
        self.start_s = min([epoch_s(start), *self.times[:1]])
        self.end_s = max([*self.times[-1:], self.start_s + 1.0])
        steps = sorted(b - a for a, b in zip(self.times, self.times[1:], strict=False))
        self._break_s = _BREAK * steps[len(steps) // 2] if steps else math.inf
        self.scales = {plot.column: self._scale(plot) for plot in PLOTS}

    def x(self, at_s: float) -> float:
        share = (at_s - self.start_s) / (self.end_s - self.start_s)
        return _LEFT + min(1.0, max(0.0, share)) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, plot: Plot, value: float) -> float:
        low, *_, high = self.scales[plot.column]
        return _TOP + (1 - (value - low) / (high - low)) * (_HEIGHT - _TOP - _BOTTOM)

    def has(self, plot: Plot, gpu: BurninGpuPages) -> bool:
        """Whether there is anything to draw."""
        return any(value is not None for value in getattr(gpu.series, plot.column))

    def _scale(self, plot: Plot) -> list[float]:
        values = [
            value * plot.factor
            for gpu in self.report.gpus
            for value in _smoothed(plot, getattr(gpu.series, plot.column))
            if value is not None
        ]
        low = min(values, default=0.0) if plot.floor is None else plot.floor
        high = max([*values, plot.least_top if plot.floor is not None else low + plot.least_top])
        return _nice(low, high)

    def path(self, plot: Plot, gpu: BurninGpuPages) -> str:
        """The line of one GPU as path data, with breaks where nothing is known."""
        column = _smoothed(plot, getattr(gpu.series, plot.column))
        stride = max(1, math.ceil(len(column) / _POINTS))
        parts: list[str] = []
        last_s: float | None = None
        for begin in range(0, len(column), stride):
            known = [v * plot.factor for v in column[begin : begin + stride] if v is not None]
            at_s = self.times[min(begin + stride // 2, len(self.times) - 1)]
            if not known:
                last_s = None
                continue
            joined = last_s is not None and at_s - last_s <= self._break_s * stride
            parts.append(f"{'L' if joined else 'M'}{self.x(at_s):.1f} {self.y(plot, sum(known) / len(known)):.1f}")
            last_s = at_s
        return "".join(parts)


def definitions(axes: Axes) -> str:
    """All lines, to be referred to; invisible itself."""
    paths = [
        f'<path id="{_id(plot, number)}" d="{axes.path(plot, gpu)}"/>'
        for plot in PLOTS
        for number, gpu in enumerate(axes.report.gpus)
        if axes.has(plot, gpu)
    ]
    return f'<svg class="lines" width="0" height="0" aria-hidden="true"><defs>{"".join(paths)}</defs></svg>'


def overlay(axes: Axes, plot: Plot, number: int | None = None) -> str:
    """One plot as SVG: the line of GPU ``number`` in front of all others, or all alike when it is None."""
    gpus = axes.report.gpus
    shown = [index for index, gpu in enumerate(gpus) if axes.has(plot, gpu)]
    unit = f" ({plot.unit})" if plot.unit else ""
    head = f"<figcaption>{escape(plot.title)}{unit}</figcaption>"
    if number is not None and number not in shown:
        return f'<figure>{head}<p class="none">unknown: this GPU or its driver does not tell it</p></figure>'
    if number is None:
        lines = [f'<use href="#{_id(plot, i)}" class="line" style="{line_style(i)}"/>' for i in shown]
    else:
        lines = [f'<use href="#{_id(plot, i)}" class="sibling"/>' for i in shown if i != number]
        lines.append(f'<use href="#{_id(plot, number)}" class="line own"/>')
    marks = "" if number is None else _marks(axes, plot, gpus[number])
    gaps = [_span(axes, "gap", epoch_s(gap.since), epoch_s(gap.until)) for gap in axes.report.gaps]
    return (
        f'<figure>{head}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(plot.title)}">'
        f"{''.join(gaps)}{'' if number is None else _throttled(axes, gpus[number])}{_grid(axes, plot)}"
        f"{''.join(lines)}{marks}</svg></figure>"
    )


def shown_plots(axes: Axes) -> list[Plot]:
    """Those for the page of a GPU."""
    return [plot for plot in PLOTS if not plot.optional or any(axes.has(plot, gpu) for gpu in axes.report.gpus)]


def line_style(number: int) -> str:
    """The style of the line of GPU ``number``, no other's: eight colours, then the same with ever longer dashes."""
    dashes = number // len(_COLOURS)
    pattern = " ".join(["6 2.5", *["1.5 2.5"] * (dashes - 1)])
    return f"stroke:{_COLOURS[number % len(_COLOURS)]}" + (f";stroke-dasharray:{pattern}" if dashes else "")


def key(number: int) -> str:
    """A piece of that line, for a legend."""
    line = f'<path class="line" d="M0 4H{_KEY}" style="{line_style(number)}"/>'
    return f'<svg class="key" width="{_KEY}" height="8" aria-hidden="true">{line}</svg>'


def marked(gpu: BurninGpuPages) -> list[BurninReason]:
    """The reasons with a time: they are marked in the plots; the mark is the place in this list, from 1."""
    return [reason for reason in gpu.reasons if reason.at and reason.consequence != "note"][:_MOST_MARKS]


def _id(plot: Plot, number: int) -> str:
    return f"{plot.column}-{number}"


def _smoothed(plot: Plot, column: Sequence[float | None]) -> Sequence[float | None]:
    """A running mean for values that come in lumps: an answer's tokens are counted when it ends."""
    if not plot.smooth or len(column) < 8:
        return column
    half = max(2, len(column) // 120)
    out: list[float | None] = []
    for place, value in enumerate(column):
        known = [v for v in column[max(0, place - half) : place + half + 1] if v is not None]
        out.append(sum(known) / len(known) if known and value is not None else None)
    return out


def _nice(low: float, high: float) -> list[float]:
    """Round ticks from at most ``low`` to at least ``high``."""
    raw = max(high - low, 1e-9) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in _STEPS if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(last, first + 1) + 1)]


def _clock(seconds: float, step_s: float) -> str:
    if step_s >= 3600 or seconds >= 36000:
        return f"{seconds / 3600:g} h"
    if step_s >= 60:
        return f"{seconds / 60:g} min"
    return f"{seconds:g} s"


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _grid(axes: Axes, plot: Plot) -> str:
    parts = []
    for value in axes.scales[plot.column]:
        y = axes.y(plot, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{_number(value)}</text>')
    span_s = axes.end_s - axes.start_s
    step_s = next((step for step in _TIME_STEPS_S if span_s / step <= 7), _TIME_STEPS_S[-1])
    for seconds in range(0, int(span_s) + 1, step_s):
        x, label = axes.x(axes.start_s + seconds), _clock(seconds, step_s)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        if x < _WIDTH - 14:
            parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 7}" text-anchor="middle">{label}</text>')
    for begun in axes.report.phases[1:]:
        x = axes.x(epoch_s(begun.at))
        parts.append(f'<path class="phase" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
    return "".join(parts)


def _span(axes: Axes, kind: str, from_s: float, until_s: float) -> str:
    left, right = axes.x(from_s), axes.x(until_s)
    height = _HEIGHT - _TOP - _BOTTOM
    width = max(0.7, right - left)
    return f'<rect class="{kind}" x="{left:.1f}" y="{_TOP}" width="{width:.1f}" height="{height}"/>'


def _throttled(axes: Axes, gpu: BurninGpuPages) -> str:
    """Shaded where the GPU was slowed down, neighbouring buckets joined."""
    spans: list[list[float]] = []
    shares = gpu.series.throttled_percent
    for place, (at_s, share) in enumerate(zip(axes.times, shares, strict=True)):
        if share > 0:
            begin_s = axes.times[place - 1] if place else axes.start_s
            if spans and begin_s <= spans[-1][1] + 1:
                spans[-1][1] = at_s
            else:
                spans.append([begin_s, at_s])
    return "".join(_span(axes, "throttled", *span) for span in spans)


def _marks(axes: Axes, plot: Plot, gpu: BurninGpuPages) -> str:
    """A line for each mark; marks that fall together share their numbers."""
    places: list[tuple[float, str, list[int]]] = []
    for number, reason in enumerate(marked(gpu), start=1):
        assert reason.at is not None
        x = axes.x(epoch_s(reason.at))
        near = next((place for place in places if abs(place[0] - x) < _NEAR), None)
        if near is None:
            places.append((x, reason.consequence, [number]))
        else:
            near[2].append(number)
    return "".join(
        f'<path class="mark {kind}" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        f'<text class="mark-number {kind}" x="{x + 2:.1f}" y="{_TOP + 8}">{",".join(map(str, numbers))}</text>'
        for x, kind, numbers in places
    )
