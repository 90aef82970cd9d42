"""``obatchctl gpus history``: bars, gaps, marks and words."""

from __future__ import annotations

from typing import Any

import click
import pytest

from obatchd.cli.views import text as text_module
from obatchd.cli.views.history import RUN_VALUES, bars, history, run_series

ONE = ("utilisation",)


@pytest.mark.parametrize(
    ("values", "most", "drawn"),
    [
        ([0, 50, 100], 100.0, "▁▅█"),
        ([None, 5.0, 10.0, None], None, " ▅█ "),
        ([0.0, 0.0], None, "▁▁"),
        ([150.0, -3.0], 100.0, "█▁"),
        ([], None, ""),
    ],
)
def test_a_value_is_a_bar_and_nothing_is_a_gap(values: list[float | None], most: float | None, drawn: str) -> None:
    assert bars(values, most) == drawn


def gpu(index: int | None, **columns: list[float | None]) -> dict[str, Any]:
    names = (
        "utilisation_percent",
        "temp_c",
        "temp_max_c",
        "power_w",
        "memory_used_bytes",
        "clock_mhz",
        "slowed_percent",
    )
    none = {name: [None] * 4 for name in names}
    about = {"uuid": f"GPU-{index}", "index": index, "name": "H\x1b[31m100", "serial": "", "memory_total_bytes": 2**30}
    return {**about, **none, **columns}


def shown(
    gpus: list[dict[str, Any]],
    *events: tuple[float, str, int],
    values: tuple[str, ...] = ("utilisation",),
    words: str = "",
) -> str:
    told = [
        {"at_s": at_s, "kind": kind, "uuid": f"GPU-{index}", "text": words or f"{kind} \x07"}
        for at_s, kind, index in events
    ]
    document = {"at_s": [0, 60, 120, 180], "step_s": 60, "gpus": gpus, "events": told, "more_events": False}
    work = {"host": {name: [None] * 4 for name in ("tokens_per_s", "in_flight", "queued")}}
    return "\n".join(click.unstyle(line).rstrip() for line in history(document, work, values))


def test_the_gravest_event_of_a_step_stands_below_its_gpu() -> None:
    text = shown(
        [gpu(0, utilisation_percent=[0, 50, 100, None]), gpu(1)],
        (10, "finding", 0), (70, "finding", 0), (75, "quarantine", 0), (80, "xid", 0), (500, "xid", 0),
        (70, "share", 1),
    )  # fmt: skip
    lines = text.splitlines()
    [row] = [place for place, line in enumerate(lines) if "▁▅█" in line]
    bars_at = lines[row].index("▁")
    assert lines[row].split() == ["0", "▁▅█", "50", "%", "100", "%", "100", "%"]
    assert lines[row + 1][bars_at : bars_at + 4].rstrip() == "!Q"
    assert lines[row + 2].split() == ["1", "–", "–", "–"]
    assert "Q quarantine, x XID or crash, ! finding" in text and "share" not in text
    assert "tokens/s" not in text and "\x07" not in text and "\x1b" not in text


def test_one_gpu_has_a_line_for_each_value_with_its_unit() -> None:
    values = ("utilisation", "memory", "power", "clock")
    half = [float(2**29)] * 4
    text = shown([gpu(3, memory_used_bytes=half, power_w=[1.0, 2.0, 3.0, 4.0], clock_mhz=[1980.0] * 4)], values=values)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "GPU 3  H�[31m100" in text
    assert "▅▅▅▅" in lines["memory"] and "512.0 MiB" in lines["memory"]  # of all it has
    assert lines["power"].split()[-2:] == ["4", "W"] and "1,980 MHz" in lines["clock"]


def test_the_mean_of_a_temperature_is_not_that_of_its_peaks() -> None:
    columns: dict[str, list[float | None]] = {
        "temp_c": [40.0, 44.0, 50.0, None],
        "temp_max_c": [71.0, 70.0, 60.0, None],
    }
    text = shown([gpu(3, **columns)], values=("temperature", "power"))
    [line] = [line for line in text.splitlines() if line.startswith("temperature")]
    assert line.split()[-6:] == ["45", "°C", "71", "°C", "50", "°C"]


def test_what_happened_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "_width", lambda: 40)
    lines = shown(
        [gpu(0)], (70, "finding", 0), words="slowed down by hardware in 1 of the last 10 minutes"
    ).splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(lines).count("minutes") == 1


def test_a_time_without_readings_is_said() -> None:
    assert "No reading of a GPU is kept of that time." in shown([])
    assert shown([gpu(None, utilisation_percent=[1, 1, 1, 1])]).splitlines()[-1].split()[0] == "gone"


def test_a_burn_in_in_progress_is_drawn_for_one_gpu_and_for_many() -> None:
    names = [value.column for value in RUN_VALUES.values()]
    none: dict[str, Any] = {name: [None] * 3 for name in names}
    gpus = [
        {
            **none,
            "index": n,
            "name": "H100",
            "uuid": f"GPU-{n}",
            "tokens_per_s": [50.0, 100.0, 100.0],
            "temp_c": [60, 70, 80],
        }
        for n in (0, 3)
    ]
    document = {
        "run": "r1",
        "state": "loading",
        "at_s": [10.0, 20.0, 30.0],
        "elapsed_s": 30,
        "asked_s": 60.0,
        "gpus": gpus,
    }
    lines = [click.unstyle(line) for line in run_series(document, ["temperature"])]
    assert lines[0] == "burn-in r1: loading, 30 s of 1 min" and lines[1].endswith("a bar is 10 s")
    assert [line.split() for line in lines[4:]] == [
        [index, "▆▇█", "70", "°C", "80", "°C", "80", "°C"] for index in ("0", "3")
    ]
    lines = [click.unstyle(line) for line in run_series({**document, "gpus": gpus[:1]}, [*RUN_VALUES])]
    assert [line.split()[0] for line in lines[5:]] == ["tokens/s", "temperature"], "of the others nothing is known"
    [_, nothing] = run_series({**document, "at_s": []}, ["tokens"])
    assert nothing == "Nothing is recorded yet."
