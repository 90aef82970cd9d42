"""Position in the queue and expected start."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

from obatchd.live.forecast import forecast
from obatchd.live.job import LiveJob


def live(key: int, owner: int, requests: int, finished: int = 0, rate: float = 0.0, **more: Any) -> LiveJob:
    return cast(
        LiveJob,
        SimpleNamespace(
            key=key, row=SimpleNamespace(owner=owner), requests=requests, finished=finished, turn=None, paused=False,
            ending=None, frozen=SimpleNamespace(priority="normal"), requests_per_s=lambda: rate, **more,
        ),
    )  # fmt: skip


def test_owners_share_and_wait_for_their_own_earlier_jobs() -> None:
    running, second, third = live(1, 7, 100, 40, rate=4.0), live(2, 7, 10), live(4, 7, 10)
    other = live(3, 8, 10)
    forecast([running, second, other, third], {1: 4})
    assert running.turn is None
    turns = [job.turn for job in (second, other, third)]
    assert [turn and turn.position for turn in turns] == [1, 2, 3]
    waits = [round((turn.starts_s or 0) - time.time()) for turn in turns if turn]
    assert waits == [30, 0, 35]  # two owners have half of 4 requests a second each: 60 left, then 10 more


def test_priority_and_pauses_and_no_speed_yet() -> None:
    low, high, paused = live(1, 7, 10), live(2, 7, 10), live(3, 7, 10)
    low.frozen, high.frozen = SimpleNamespace(priority="low"), SimpleNamespace(priority="high")  # type: ignore[assignment]
    paused.paused = True
    forecast([low, high, paused], {})
    assert low.turn is not None and high.turn is not None and paused.turn is None
    assert (high.turn.position, low.turn.position) == (1, 2)
    assert high.turn.starts_s is None
