"""What the figures of a soak have to be: slots at work, and nothing that grows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

OCCUPANCY = 0.98
FEWEST = 5  # minutes that can be judged
# The most that may be added in an hour, by figure.
MOST_AN_HOUR = {
    "head_mib": 8.0,
    "hosts_mib": 56.0,
    "workers_mib": 56.0,
    "head_descriptors": 10.0,
    "hosts_descriptors": 14.0,
    "segments": 30.0,  # some for each 64 MiB of jobs, whose requests are kept for a week; of 64 at most
    "head_threads": 2.0,
    "hosts_threads": 7.0,
    "wal_mib": 16.0,
    "log_kib": 60.0,  # which the logs take in a minute
}


class Judged(NamedTuple):
    """One figure over all minutes: in words, and whether it is as it has to be."""

    words: str
    good: bool


def judged(figures: Sequence[dict[str, float]]) -> Iterator[Judged]:
    """Every figure of these minutes, without the first fifth, in which everything is still warming up."""
    settled = figures[len(figures) // 5 :]
    if len(figures) < FEWEST:
        yield Judged(f"{len(figures)} minutes are too few to judge, {FEWEST} are the fewest", good=False)
        return
    occupancy = statistics.fmean(each["occupancy"] for each in settled)
    least = min(each["occupancy"] for each in settled)
    words = f"occupancy: {occupancy:.4f}, in the worst minute {least:.4f} (at least {OCCUPANCY} in the mean)"
    yield Judged(words, occupancy >= OCCUPANCY)
    for name in MOST_AN_HOUR:
        yield _grown(name, settled)
    wrong = sum(int(each["violations"]) for each in figures[-1:])
    yield Judged(f"{wrong} answers or calls were wrong", wrong == 0)


def _grown(name: str, settled: Sequence[dict[str, float]]) -> Judged:
    """By the line through all minutes; in less than an hour as much may be added as in one."""
    minutes, values = [each["minute"] for each in settled], [each[name] for each in settled]
    hours = (minutes[-1] - minutes[0]) / 60
    an_hour = 60 * statistics.linear_regression(minutes, values).slope
    most = MOST_AN_HOUR[name]
    words = (
        f"{name}: {an_hour:+.2f} an hour for {hours:.2f} h, from {values[0]:.1f} to {values[-1]:.1f} "
        f"(at most {most:g} an hour)"
    )
    return Judged(words, an_hour * hours <= most * max(1.0, hours))
