"""What is counted while the daemon runs: plain numbers that only grow, which :mod:`obatchd.metrics` reads, and rates.

They begin at zero with the daemon, and a reload leaves them as they are. Whatever happens once for each request costs a
fraction of a microsecond here.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from itertools import compress
from typing import Any

# Upper ends of buckets, in seconds.
WORK_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WAIT_S = (1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 86_400.0, 604_800.0)
DISK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
OTHER = "other"  # all models beyond the most that are counted by name
_MOST_MODELS = 50  # of one server, by name
_VALUES = 6  # of one answer


class Histogram:
    """How many values fell into each bucket, and their sum. The last count is of those above all ``bounds``."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = WORK_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, *values: float) -> None:
        """Many at once cost a tenth of what they cost one by one."""
        ordered, before = sorted(values), 0
        for place, bound in enumerate(self.bounds):
            reached = bisect_right(ordered, bound, before)
            self.counts[place] += reached - before
            before = reached
        self.counts[-1] += len(ordered) - before
        self.sum += sum(ordered)

    def add_one(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def merge(self, other: Histogram) -> None:
        """Add the values of another one with the same bounds."""
        if not any(other.counts):
            return
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


class ModelWork:
    """The work of one server with one model: tokens of all attempts that tell them, times of the answers."""

    __slots__ = ("first_token", "load", "prompt_tokens", "queue", "request", "response_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.response_tokens = 0
        self.request = Histogram()  # in its slot
        self.first_token = Histogram()  # from the slot to the beginning of the answer, where the server tells it
        self.queue = Histogram(WAIT_S)  # from the acceptance of the job to the first slot
        self.load = Histogram()

    def add(
        self,
        prompts: Sequence[int],
        responses: Sequence[int],
        durations_s: Sequence[float],
        generating_s: Sequence[float],
        waited_s: Sequence[float],
    ) -> None:
        """Answers: tokens of their prompts and their own; of the last two times, 0 is not known."""
        self.prompt_tokens += sum(prompts)
        self.response_tokens += sum(responses)
        self.request.add(*durations_s)
        pairs = zip(durations_s, generating_s, strict=True)
        self.first_token.add(*[max(0.0, all_s - generated_s) for all_s, generated_s in pairs if generated_s])
        self.queue.add(*[one_s for one_s in waited_s if one_s > 0.0])


class WorkByModel(dict[str, ModelWork]):
    """The work of one server, by model; of only so many by name, because users name models.

    ``recent`` has what is not added up yet: of each answer its model, and then what ``ModelWork.add`` takes. Whoever
    has an answer extends that flat list: so an answer costs a third of a microsecond, and the garbage collector has
    nothing to do. Call ``fold`` before you read, and now and then.
    """

    def __init__(self) -> None:
        self.recent: list[Any] = []

    def __missing__(self, model: str) -> ModelWork:
        name = model if len(self) < _MOST_MODELS else OTHER
        if name not in self:
            self[name] = ModelWork()
        return self[name]

    def fold(self, least: int = 0) -> None:
        """Add up what has come, where that is more than ``least`` answers."""
        recent = self.recent
        if len(recent) <= _VALUES * least:
            return
        models, *columns = [recent[place::_VALUES] for place in range(_VALUES)]
        recent.clear()
        if models.count(models[0]) == len(models):  # as nearly always
            self[models[0]].add(*columns)
            return
        for model in dict.fromkeys(models):
            of_model = [one == model for one in models]
            self[model].add(*[list(compress(column, of_model)) for column in columns])


class JobCounters:
    """What became of requests and jobs since the daemon began."""

    __slots__ = ("failures", "jobs", "requests")

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()  # by outcome, as soon as that is durable
        self.failures: Counter[str] = Counter()  # failed requests by code
        self.jobs: Counter[str] = Counter()  # by the word of :func:`obatchd.words.job_ending`


class RateMeter:
    """How many of something happened per second of late: over the last ``window_s`` seconds, kept per second."""

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._buckets: deque[list[float]] = deque(maxlen=window_s + 1)  # [second, count]
        self._begun_s: float | None = None

    def add(self, count: float) -> None:
        """``count`` more happened just now."""
        now_s = time.monotonic()
        if self._begun_s is None:
            self._begun_s = now_s
        second = int(now_s)
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1][1] += count
        else:
            self._buckets.append([second, count])

    def per_s(self) -> float:
        """The mean over the window, or over the time since the first count where that is shorter."""
        if self._begun_s is None:
            return 0.0
        now_s = time.monotonic()
        recent = sum(count for second, count in self._buckets if second > now_s - self._window_s)
        return recent / min(float(self._window_s), max(now_s - self._begun_s, 1.0))
