"""GPUs and work over some time, as lines of little bars in a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click

from obatchd.cli.command import Document, Invocation, clean
from obatchd.cli.views.text import NOTHING, Painted, duration, gpu_name, size, table, wrapped
from obatchd.times import clock

_BARS = "▁▂▃▄▅▆▇█"
_GAP = " "
_DAY_S = 86_400
_EVENTS_SHOWN = 10


class Value(NamedTuple):
    """What a line of bars is made of."""

    column: str
    words: str
    unit: str
    most: float | None  # that a whole bar is; None: the highest there is
    mean: str = ""  # another column, for mean and latest: this one has the highest of each step


VALUES = {
    "utilisation": Value("utilisation_percent", "utilisation", " %", 100.0),
    "temperature": Value("temp_max_c", "temperature", " °C", None, "temp_c"),
    "power": Value("power_w", "power", " W", None),
    "memory": Value("memory_used_bytes", "memory", "", None),
    "clock": Value("clock_mhz", "clock", " MHz", None),
    "slowed": Value("slowed_percent", "slowed down", " %", 100.0),
}
_OF_WORK = (
    Value("tokens_per_s", "tokens/s", "", None),
    Value("in_flight", "in flight", "", None),
    Value("queued", "queued", "", None),
)
RUN_VALUES = {  # of a burn-in
    "tokens": Value("tokens_per_s", "tokens/s", "", None),
    "utilisation": VALUES["utilisation"],
    "temperature": Value("temp_c", "temperature", " °C", None),
    "memory-temperature": Value("memory_temp_c", "memory temp.", " °C", None),
    "power": VALUES["power"],
    "memory": VALUES["memory"],
    "clock": VALUES["clock"],
    "slowed": Value("throttled_percent", "slowed down", " %", 100.0),
    "errors": Value("errors_uncorrected", "memory errors", "", None),
}
_BESIDE_BARS = 44  # characters of the other columns
_STEPS_FOR_PROGRAMS = 720
# Of several in one step, the gravest is shown.
_MARKS = {"quarantine": "Q", "xid": "x", "crash": "x", "finding": "!", "lend": "l", "return": "r", "release": "r"}
_MEANINGS = {"Q": "quarantine", "x": "XID or crash", "!": "finding", "l": "lent", "r": "back"}


def bars(values: Sequence[float | None], most: float | None = None) -> str:
    """One character for each value, from nothing (or below) to ``most``; a gap where nothing is known."""
    top = most or max((value for value in values if value is not None), default=0.0) or 1.0
    last = len(_BARS) - 1
    return "".join(_GAP if value is None else _BARS[min(last, max(0, round(last * value / top)))] for value in values)


def steps_shown(invocation: Invocation) -> int:
    """So many bars fit into a line; a program gets more."""
    columns = shutil.get_terminal_size().columns
    return _STEPS_FOR_PROGRAMS if invocation.json else max(12, min(columns, 180) - _BESIDE_BARS)


def history(document: Document, work: Document, shown: Sequence[str]) -> Iterator[str]:
    """One GPU in several lines or many in one each, their events below, and the work of the host."""
    yield _heading(document)
    if not document["gpus"]:
        yield "No reading of a GPU is kept of that time."
    for gpu in document["gpus"] if len(shown) > 1 else ():
        yield from ["", click.style(_called(gpu), bold=True)]
        yield from table(("", "HISTORY", ">MEAN", ">MOST", ">LATEST"), _lines(gpu, shown, document))
    if len(shown) == 1 and document["gpus"]:
        value = VALUES[shown[0]]
        rows = [row for gpu in document["gpus"] for row in _one_line(gpu, value, document)]
        yield from ["", *table((">GPU", value.words.upper(), ">MEAN", ">MOST", ">LATEST"), rows)]
    if any(value is not None for value in work["host"]["tokens_per_s"]):
        rows = [[each.words, *_cells(work["host"], each)] for each in _OF_WORK]
        yield from ["", *table(("WORK", "HISTORY", ">MEAN", ">MOST", ">LATEST"), rows)]
    yield from _events(document)


def run_series(document: Document, shown: Sequence[str]) -> Iterator[str]:
    """A burn-in: one GPU in several lines, or many in one each."""
    at_s, gpus = document["at_s"], document["gpus"]
    yield f"burn-in {clean(document['run'])}: {clean(document['state'])}, {_done(document)}"
    if not at_s:
        yield "Nothing is recorded yet."
        return
    every = duration((at_s[-1] - at_s[0]) / (len(at_s) - 1)) if len(at_s) > 1 else "all of it"
    form = "%d %b %H:%M" if at_s[-1] - at_s[0] > _DAY_S else "%H:%M:%S"
    yield f"{clock(at_s[0], form)} to {clock(at_s[-1], form)}, a bar is {every}"
    headings = (">MEAN", ">MOST", ">LATEST")
    if len(shown) > 1:
        for gpu in gpus:
            yield from ["", click.style(f"GPU {gpu_name(gpu)}  {clean(gpu['name'])}  {clean(gpu['uuid'])}", bold=True)]
            told = [RUN_VALUES[name] for name in shown]
            known = [value for value in told if any(one is not None for one in gpu[value.column])]
            yield from table(("", "HISTORY", *headings), [[value.words, *_cells(gpu, value)] for value in known])
        return
    value = RUN_VALUES[shown[0]]
    rows = [[gpu_name(gpu), *_cells(gpu, value)] for gpu in gpus]
    yield from ["", *table((">GPU", value.words.upper(), *headings), rows)]


def _done(document: Document) -> str:
    return f"{duration(document['elapsed_s'])} of {duration(document['asked_s'])}"


def _heading(document: Document) -> str:
    at_s, step_s = document["at_s"], document["step_s"]
    form = "%H:%M" if len(at_s) * step_s <= _DAY_S else "%d %b %H:%M"
    until_s = at_s[-1] + step_s
    return f"{clock(at_s[0], form)} to {clock(until_s, form)}, a bar is {duration(step_s)}"


def _called(gpu: Document) -> str:
    on = f" from {gpu['host']}" if gpu.get("host") else ""
    name = f"GPU {gpu_name(gpu)}" if gpu["index"] is not None else f"a GPU that is gone{on}"
    told = (name, clean(gpu["name"]), clean(gpu["uuid"]), gpu["serial"] and f"serial {clean(gpu['serial'])}")
    return "  ".join(filter(None, told))


def _lines(gpu: Document, shown: Sequence[str], document: Document) -> Iterator[list[object]]:
    for name in shown:
        value = VALUES[name]
        if name == "memory" and gpu["memory_total_bytes"]:
            value = value._replace(most=gpu["memory_total_bytes"])
        yield [value.words, *_cells(gpu, value)]
    if marks := _marks(gpu, document):
        yield ["events", Painted(marks, "yellow"), "", "", ""]


def _one_line(gpu: Document, value: Value, document: Document) -> Iterator[list[object]]:
    yield ["gone" if gpu["index"] is None else gpu_name(gpu), *_cells(gpu, value)]
    if marks := _marks(gpu, document):
        yield ["", Painted(marks, "yellow"), "", "", ""]


def _cells(columns: Document, value: Value) -> list[object]:
    highest, means = (
        [one for one in columns[name] if one is not None] for name in (value.column, value.mean or value.column)
    )
    told = (sum(means) / len(means), max(highest), means[-1]) if highest and means else (None, None, None)
    return [bars(columns[value.column], value.most), *(_told(one, value) for one in told)]


def _told(one: float | None, value: Value) -> str:
    if one is None:
        return NOTHING
    if value.column == "memory_used_bytes":
        return size(one)
    return f"{one:,.0f}{value.unit}" if one >= 10 or one == 0 or value.unit else f"{one:.1f}"


def _marks(gpu: Document, document: Document) -> str:
    """A mark below each step in which something happened to a GPU; nothing where nothing did."""
    at_s, step_s = document["at_s"], document["step_s"]
    marks = [_GAP] * len(at_s)
    order = [_GAP, *reversed(dict.fromkeys(_MARKS.values()))]
    for event in document["events"]:
        mark = _MARKS.get(event["kind"])
        place = int((event["at_s"] - at_s[0]) // step_s)
        if mark and _card(event) == _card(gpu) and 0 <= place < len(marks):
            marks[place] = max(marks[place], mark, key=order.index)
    return "".join(marks).rstrip()


def _card(named: Document) -> tuple[str, str]:
    """Which card an entry is about; stand-ins have the same UUIDs on all hosts."""
    return named.get("host") or "", named["uuid"]


def _events(document: Document) -> Iterator[str]:
    """The meaning of the marks, and the latest events in words."""
    found = [event for event in document["events"] if event["kind"] in _MARKS]
    used = dict.fromkeys(_MARKS[event["kind"]] for event in found)
    if not used:
        return
    yield from ["", ", ".join(f"{mark} {words}" for mark, words in _MEANINGS.items() if mark in used)]
    names = {_card(gpu): gpu_name(gpu) for gpu in document["gpus"] if gpu["index"] is not None}
    for event in found[-_EVENTS_SHOWN:]:
        name = names.get(_card(event))
        called = clean(event["uuid"]) if name is None else f"GPU {name}"
        mark, when = _MARKS[event["kind"]], clock(event["at_s"], "%d %b %H:%M")
        yield from wrapped(event["text"], f"  {mark} {when}  {called}  ")
    if len(found) > _EVENTS_SHOWN or document["more_events"]:
        yield "  all of them:  obatchctl gpus events"
