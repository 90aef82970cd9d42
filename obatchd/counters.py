"""What is counted while the daemon runs: plain numbers that only grow. :mod:`obatchd.metrics` reads them.

They begin at zero with the daemon, and a reload leaves them as they are. Whatever happens once for each request costs a
fraction of a microsecond here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

# Upper ends of buckets, in seconds.
WORK_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WAIT_S = (1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 86_400.0, 604_800.0)
DISK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
OTHER = "other"  # all models beyond the most that are counted by name
_MOST_MODELS = 50  # of one server, by name
_TOGETHER = 1000  # answers that are added up at once


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

    def merge(self, other: Histogram) -> None:
        """Add the values of another one with the same bounds."""
        if not any(other.counts):
            return
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


class ModelWork:
    """The work of one server with one model: tokens of all attempts that tell them, times of the answers.

    Call ``fold`` before you read it.
    """

    __slots__ = ("_unfolded", "first_token", "load", "prompt_tokens", "queue", "request", "response_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.response_tokens = 0
        self.request = Histogram()  # in its slot
        self.first_token = Histogram()  # from the slot to the beginning of the answer, where the server tells it
        self.queue = Histogram(WAIT_S)  # from the acceptance of the job to the first slot
        self.load = Histogram()
        self._unfolded: list[tuple[int, int, float, float, float]] = []

    def answered(
        self, prompt_tokens: int, response_tokens: int, duration_s: float, generating_s: float, waited_s: float
    ) -> None:
        """An answer has come; 0 of the last two: not known. A half microsecond, its part of ``fold`` included."""
        self._unfolded.append((prompt_tokens, response_tokens, duration_s, generating_s, waited_s))
        if len(self._unfolded) >= _TOGETHER:
            self.fold()

    def fold(self) -> None:
        """Add up what has come since the last time."""
        if not self._unfolded:
            return
        prompts, responses, durations, generating, waits = zip(*self._unfolded, strict=True)
        self._unfolded.clear()
        self.prompt_tokens += sum(prompts)
        self.response_tokens += sum(responses)
        self.request.add(*durations)
        pairs = zip(durations, generating, strict=True)
        self.first_token.add(*[max(0.0, all_s - generating_s) for all_s, generating_s in pairs if generating_s])
        self.queue.add(*[waited_s for waited_s in waits if waited_s > 0.0])


class WorkByModel(dict[str, ModelWork]):
    """The work of one server, by model; of only so many by name, because users name models."""

    def __missing__(self, model: str) -> ModelWork:
        name = model if len(self) < _MOST_MODELS else OTHER
        if name not in self:
            self[name] = ModelWork()
        return self[name]


class JobCounters:
    """What became of requests and jobs since the daemon began."""

    __slots__ = ("failures", "jobs", "requests")

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()  # by outcome, as soon as that is durable
        self.failures: Counter[str] = Counter()  # failed requests by code
        self.jobs: Counter[str] = Counter()  # by the word of :func:`obatchd.words.job_ending`
