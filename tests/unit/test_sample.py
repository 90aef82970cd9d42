"""A sample is random, repeatable, and in the order of the drop."""

from __future__ import annotations

from collections import Counter

from obatchd.intake.sample import Reservoir
from obatchd.jobs.model import Entry


def sampled(count: int, size: int, seed: str) -> list[int]:
    sample = Reservoir(size, seed)
    for line in range(1, count + 1):
        sample.offer(Entry(line, 0, 0, 0))
    assert sample.seen == count
    return [entry.line for entry in sample.entries()]


def test_the_same_seed_chooses_the_same_in_order() -> None:
    chosen = sampled(1000, 20, "job")
    assert chosen == sampled(1000, 20, "job") == sorted(set(chosen))
    assert len(chosen) == 20
    assert chosen != sampled(1000, 20, "other")
    assert sampled(5, 20, "job") == [1, 2, 3, 4, 5]


def test_every_request_has_the_same_chance() -> None:
    times = Counter(line for seed in range(4000) for line in sampled(10, 2, str(seed)))
    assert set(times) == set(range(1, 11))
    assert all(650 < count < 950 for count in times.values()), times  # 800 expected; 5.9 standard deviations
