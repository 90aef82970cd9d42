"""How long a scrape takes in a daemon with many jobs and GPUs.

    python bench/metrics.py [--jobs 10000] [--gpus 128] [--models 3] [--rounds 50]

The engine, the monitor and the fleet are real, in one process; servers and workers are those of the unit
tests. Measured is the processor time of a scrape as Prometheus gets it, of its part that reads, and of counting.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from copy import copy
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "unit"))

import msgspec
import pytest
from harness import finish, table
from operations_support import Desk, desk

from obatchd.counters import WorkByModel
from obatchd.gpus.model import Reading, SlowReading, XidEvent
from obatchd.jobs.lane import Lane, Pending
from obatchd.live.job import LiveJob

GOAL_MS = 20.0
_READING = {"utilisation_percent": 90, "temp_c": 60, "memory_temp_c": 70, "power_w": 300.0, "power_limit_w": 350.0,
            "memory_used_bytes": 2**34, "memory_total_bytes": 2**36, "clock_mhz": 1980, "energy_j": 1e7}  # fmt: skip


def fill(there: Desk, models: int) -> None:
    """Every GPU tells all it can, and every server has answered with some models."""
    monitor, now_s = there.policy.monitor, time.time()
    limits = {"temp_max_c": 87, "temp_slowdown_c": 92, "temp_shutdown_c": 97}
    monitor.identities([msgspec.structs.replace(track.identity, **limits) for track in monitor.tracks.values()])
    monitor.readings([Reading(gpu.uuid, now_s, **_READING) for gpu in there.gpus])
    names = [name for name in SlowReading.__struct_fields__ if name not in ("uuid", "at_s", "errors", "trouble")]
    healthy: dict[str, Any] = dict.fromkeys(names, 0)
    monitor.slow_readings([SlowReading(gpu.uuid, now_s, **healthy) for gpu in there.gpus])
    monitor.xids([XidEvent(13, time.time(), gpu.uuid) for gpu in there.gpus])
    for link in there.engine.dispatcher.links.values():
        for number in range(models):
            link.work.recent.extend((f"model-{number}", 100, 200, 3.0, 2.5, 60.0))
        link.faults["server", "stalled"] += 1


async def add_jobs(there: Desk, count: int) -> None:
    """Jobs of one request each that wait; of all but the first only what is in memory."""
    first = await there.take("what is it?")
    [lane] = first.lanes.values()
    for number in range(1, count):
        row = copy(first.row)
        row.key = first.key + number
        live = there.work.jobs[row.key] = LiveJob(row, first.outbox)
        live.requests, live.indexed = 1, True
        more = Lane(row.key, 0, row.owner + number % 50, lane.profile, "normal", row.accepted_s)
        live.lanes[0] = there.engine.queue.add_lane(more)
        there.engine.queue.extend(more, 1, [Pending(1, b"{}")])


def cost_us() -> float:
    """Of counting one answer."""
    work, count = WorkByModel(), 200_000
    begun_s = time.process_time()
    for _ in range(count):
        work.recent.extend(("model", 100, 200, 3.0, 2.5, 60.0))
        work.fold(1000)
    return (time.process_time() - begun_s) / count * 1e6


async def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, float]:
    Desk.cards = arguments.gpus
    with pytest.MonkeyPatch.context() as patch:
        async with desk(patch, directory) as there:
            there.work.holds.hold("paused")
            await add_jobs(there, arguments.jobs)
            fill(there, arguments.models)
            text = there.metrics.text()
            library = there.metrics._registry
            assert library is not None
            whole, reading = [], []
            for _ in range(arguments.rounds):
                begun_s = time.thread_time()
                there.metrics.text()
                whole.append(1000 * (time.thread_time() - begun_s))
                begun_s = time.thread_time()
                library._collector.look()
                reading.append(1000 * (time.thread_time() - begun_s))
                await asyncio.sleep(0)
            series = sum(1 for line in text.splitlines() if not line.startswith(b"#"))
            assert b"obatch_requests_queued %d.0\n" % arguments.jobs in text
            there.work.jobs.clear()  # the store knows of one alone
    return {
        "scrape_ms": statistics.median(whole),
        "scrape_best_ms": min(whole),
        "of_it_reading_ms": statistics.median(reading),
        "series": series,
        "kilobytes": len(text) / 1000,
        "answer_us": min(cost_us() for _ in range(5)),
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=128)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(measure(arguments, Path(directory)))
    title = f"A scrape with {arguments.jobs:,} jobs and {arguments.gpus} GPUs"
    table(title, [(name, f"{value:,.3f}") for name, value in figures.items()])
    return finish("metrics", figures, {"scrape_ms": ("<=", GOAL_MS), "answer_us": ("<=", 1.0)})


if __name__ == "__main__":
    sys.exit(main())
