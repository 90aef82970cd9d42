"""When a job's first request will be asked: its position in the queue, and the expected time.

Owners share the servers, so the earlier jobs of the same owner are ahead of a job; every owner's next job is
about to start. The time follows from the speed of the last half minute, so it is a guess until something has run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from obatchd.jobs.model import PRIORITY_CLASS
from obatchd.live.job import LiveJob, Turn


def forecast(live_jobs: Iterable[LiveJob], in_flight: Mapping[int, int]) -> None:
    """Set the ``turn`` of every job."""
    waiting: dict[int, list[LiveJob]] = defaultdict(list)
    left: dict[int, int] = defaultdict(int)  # requests of jobs that run, by owner
    rate_per_s = 0.0
    for live in live_jobs:
        rate_per_s += live.requests_per_s()
        live.turn = None
        if live.finished or in_flight.get(live.key):
            left[live.row.owner] += live.requests - live.finished
        elif not live.paused and not live.ending:
            waiting[live.row.owner].append(live)
    share_per_s = rate_per_s / max(1, len(waiting.keys() | left.keys()))
    ranked: list[tuple[int, int, LiveJob, float | None]] = []
    now_s = time.time()
    for owner, jobs in waiting.items():
        jobs.sort(key=lambda live: (-PRIORITY_CLASS[live.frozen.priority], live.key))
        for rank, live in enumerate(jobs):
            starts_s = now_s + left[owner] / share_per_s if share_per_s else None
            ranked.append((rank, live.key, live, starts_s))
            left[owner] += live.requests
    ranked.sort(key=lambda entry: entry[:2])
    for position, (_, _, live, starts_s) in enumerate(ranked, start=1):
        live.turn = Turn(position, starts_s)
