"""The energy of one server's GPUs, shared among the jobs that it worked for. No clock: times are given, monotonic.

The counter is read every few seconds. Between two readings lies a *span*, whose energy is shared by the tokens that
were made in it: those of an answer are spread evenly over the time that it took. So a span can be shared when all
that ran in it has ended; until then it is kept. After a minute, or to a job that is over, parts are given before
that, with an estimate of the tokens that requests still running have made by then. What a token took lately stands
for the last seconds of a job, which no reading covers yet, up to the highest power seen. Energy is given away once:
the parts of a span are together no more than the span, and what was given by such a guess too much is taken off the
next spans.

The time in which nothing ran is nobody's: for it the power that the server takes when idle is taken off, where a span
without any work has shown it; else the span is cut in proportion to time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from obatchd.live.models import EnergyReading

# Tokens of a prompt are computed many at once, those of an answer one after another, so that they cost more. How much
# more depends on model, card and slots; this factor is a round number, no measurement (docs/decisions.md).
PROMPT_TOKEN = 0.1
_LATE_S = 5.0  # a result may be told so long after its end, where the disk is slow
_SOON_S = 60.0  # after it parts are given, although something that ran in the span runs still
_MOST_SPANS = 64  # above it the older ones are joined in pairs
_KEPT = 0.7  # of a mean, at each reading


def weighed(prompt_tokens: int, response_tokens: int) -> float:
    """Tokens by what they cost: one of an answer is 1."""
    return response_tokens + PROMPT_TOKEN * prompt_tokens


class Share(NamedTuple):
    """A part of the energy, and the weighed tokens that it is for."""

    energy_j: float
    tokens: float

    def plus(self, other: Share) -> Share:
        return Share(self.energy_j + other.energy_j, self.tokens + other.tokens)


NOTHING = Share(0.0, 0.0)


class Running(NamedTuple):
    """A request that has a slot."""

    job: int
    began_s: float


class _Span(msgspec.Struct):
    """The time between two readings; the last one is open."""

    began_s: float
    ended_s: float = math.inf
    energy_j: float | None = None  # None: not told
    given_j: float = 0.0
    made: float = 0.0  # weighed tokens
    unshared: float = 0.0  # of it those that got no part yet
    left: dict[int, float] = {}  # the same by job

    def overlap_s(self, began_s: float, ended_s: float) -> float:
        return max(0.0, min(ended_s, self.ended_s) - max(began_s, self.began_s))

    def add(self, job: int, tokens: float) -> None:
        self.made += tokens
        self.unshared += tokens
        self.left[job] = self.left.get(job, 0.0) + tokens


class ServerShares:
    """One server. Jobs are named by their keys."""

    def __init__(self) -> None:
        self._reading: EnergyReading | None = None
        self._spans: list[_Span] = []
        self._seen_s = -math.inf  # until then it is known when it worked
        self._idle: list[tuple[float, float]] = []  # when it did not, in order
        self._idle_w: float | None = None
        self._price: float | None = None  # J for a weighed token, lately
        self._most_w = 0.0  # the highest power of a span so far
        self._made = self._slot_s = 0.0  # lately: weighed tokens, and the time of slots that they took

    @property
    def read_s(self) -> float:
        """When the counter was read last."""
        return self._reading.at_s if self._reading else -math.inf

    def answered(self, job: int, began_s: float, ended_s: float, tokens: float) -> None:
        """A request of a job was answered with so many weighed tokens."""
        # Comes once for each answer: nearly all take the shortest way.
        if began_s > self._seen_s or (self._idle and self._idle[-1][1] > began_s):
            self._worked(began_s, ended_s)
        elif ended_s > self._seen_s:
            self._seen_s = ended_s
        self._made += tokens
        self._slot_s += ended_s - began_s
        if not self._spans:
            return
        last = self._spans[-1]
        if began_s >= last.began_s:
            last.made += tokens
            last.unshared += tokens
            left = last.left
            left[job] = left.get(job, 0.0) + tokens
            return
        per_s = tokens / max(ended_s - began_s, 1e-9)
        for span in reversed(self._spans):
            if overlap_s := span.overlap_s(began_s, ended_s):
                span.add(job, per_s * overlap_s)
            if span.began_s <= began_s:
                break

    def read(self, reading: EnergyReading, running: Iterable[Running]) -> dict[int, Share]:
        """The counter was read: the parts of jobs that are certain now."""
        running = list(running)
        before, self._reading = self._reading, reading
        if before is None:
            self._spans, self._seen_s = [_Span(reading.at_s)], max(self._seen_s, reading.at_s)
            return {}
        span = self._spans[-1]
        span.ended_s = reading.at_s
        if reading.breaks == before.breaks:
            span.energy_j = reading.energy_j - before.energy_j
            self._most_w = max(self._most_w, span.energy_j / (reading.at_s - before.at_s))
        oldest_s = min((request.began_s for request in running), default=math.inf)
        self._worked(min(oldest_s, reading.at_s), reading.at_s)
        self._made *= _KEPT
        self._slot_s *= _KEPT
        found = self._settled(min(oldest_s, reading.at_s - _LATE_S))
        for old in self._spans:
            if old.ended_s < reading.at_s - _SOON_S:
                for job in list(old.left):
                    found[job] = found.get(job, NOTHING).plus(self._give(old, job, running))
        self._spans.append(_Span(reading.at_s))
        if len(self._spans) > _MOST_SPANS:
            self._join()
        return found

    def take(self, job: int, running: Iterable[Running] = ()) -> Share:
        """The part of a job that is over: it gets no other from what was until now."""
        others, found = [request for request in running if request.job != job], NOTHING
        for span in self._spans:
            found = found.plus(self._give(span, job, others))
        return found

    def owes(self, job: int) -> bool:
        """Whether a job has not got its whole part."""
        return any(job in span.left for span in self._spans)

    def jobs(self) -> set[int]:
        """Those that have not got their whole part."""
        return {job for span in self._spans for job in span.left}

    def _give(self, span: _Span, job: int, running: list[Running]) -> Share:
        """The part of a job in a span, beside requests that are not over."""
        mine = span.left.get(job, 0.0)
        if not mine or (part_j := self._part_j(span, mine, running)) is None:
            return NOTHING
        del span.left[job]
        span.unshared -= mine
        span.given_j += part_j
        return Share(part_j, mine)

    def _part_j(self, span: _Span, mine: float, others: list[Running]) -> float | None:
        """The energy for ``mine`` weighed tokens of a span; None where it is not known."""
        if span.ended_s == math.inf:  # what it took is not read yet: by what tokens took until now
            price = self._price if self._price is not None else self._first_price(others)
            most_j = self._most_w * max(0.0, self._seen_s - span.began_s) - span.given_j
            return None if price is None else max(0.0, min(price * mine, most_j))
        if span.energy_j is None:
            return None
        work_j, unfinished = self._of_work_j(span), self._unfinished(span, others)
        left_j = max(0.0, work_j - span.given_j) * mine / (max(mine, span.unshared) + unfinished)
        return min(left_j, work_j * mine / (span.made + unfinished))  # nobody pays for what was guessed too low

    def _unfinished(self, span: _Span, running: Iterable[Running]) -> float:
        """Weighed tokens that running requests made in a span, as many as answers took lately."""
        if not self._slot_s:
            return 0.0
        return sum(span.overlap_s(r.began_s, self.read_s) for r in running) * self._made / self._slot_s

    def _first_price(self, running: list[Running]) -> float | None:
        """The price of a token while no span is shared."""
        told = [s for s in self._spans if s.energy_j is not None and s.made]
        made = sum(span.made + self._unfinished(span, running) for span in told)
        return sum(map(self._of_work_j, told)) / made if made else None

    def _of_work_j(self, span: _Span) -> float:
        """The energy of the time in which anything ran."""
        energy_j, length_s = span.energy_j or 0.0, span.ended_s - span.began_s
        idle_s = sum(span.overlap_s(*gap) for gap in self._idle)
        least_j = energy_j * max(0.0, 1 - idle_s / length_s)
        return least_j if self._idle_w is None else max(least_j, energy_j - self._idle_w * idle_s)

    def _settled(self, until_s: float) -> dict[int, Share]:
        """Share the spans that ended before ``until_s``."""
        found: dict[int, Share] = {}
        while self._spans and self._spans[0].ended_s <= until_s:
            span = self._spans.pop(0)
            self._learn(span)
            if span.energy_j is None:
                continue
            for job in list(span.left):
                found[job] = found.get(job, NOTHING).plus(self._give(span, job, []))
            too_much_j = span.given_j - self._of_work_j(span)
            if too_much_j > 0 and self._spans:  # by guesses: the next jobs get less
                self._spans[0].given_j += too_much_j
        begun_s = self._spans[0].began_s if self._spans else self.read_s
        self._idle = [gap for gap in self._idle if gap[1] > begun_s]
        return found

    def _learn(self, span: _Span) -> None:
        """The idle power and the price of a token, from a span that is over."""
        if span.energy_j is None:
            return
        length_s = span.ended_s - span.began_s
        if span.made:
            price = self._of_work_j(span) / span.made
            self._price = price if self._price is None else (1 - _KEPT) * price + _KEPT * self._price
        elif sum(span.overlap_s(*gap) for gap in self._idle) >= 0.999 * length_s:
            self._idle_w = span.energy_j / length_s

    def _worked(self, began_s: float, ended_s: float) -> None:
        """Something ran from ``began_s`` on; both are told in the order of the ends."""
        while self._idle and self._idle[-1][1] > began_s:
            from_s, _ = self._idle.pop()
            if from_s < began_s:
                self._idle.append((from_s, began_s))
        if began_s > self._seen_s > -math.inf:
            self._idle.append((self._seen_s, began_s))
        self._seen_s = max(self._seen_s, ended_s)

    def _join(self) -> None:
        """Halve the number of the older spans; the sums stay."""
        older, newer = self._spans[: _MOST_SPANS // 2], self._spans[_MOST_SPANS // 2 :]
        joined = []
        for one, other in zip(older[::2], older[1::2], strict=True):
            one.ended_s, one.given_j = other.ended_s, one.given_j + other.given_j
            one.made, one.unshared = one.made + other.made, one.unshared + other.unshared
            told = one.energy_j is not None and other.energy_j is not None
            one.energy_j = (one.energy_j or 0.0) + (other.energy_j or 0.0) if told else None
            for job, tokens in other.left.items():
                one.left[job] = one.left.get(job, 0.0) + tokens
            joined.append(one)
        self._spans = [*joined, *newer]
