"""A stretch of batch work on one server with one number of slots, and the speed that follows from it."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import NamedTuple

from obatchd.dispatch.protocol import ResultItem
from obatchd.dispatch.tuning.search import Tried

_ENOUGH_S = 60.0
_ENOUGH_ANSWERS = 200
_LEAST_ANSWERS = 24
_LEAST_OF_A_SLOT = 2


class Mix(NamedTuple):
    """Mean tokens of an answer and its prompt, for which the windows of one search are compared."""

    prompt_tokens: float
    response_tokens: float


class _Sample(NamedTuple):
    prompt_s: float  # of slot time, everything but generating
    eval_s: float
    prompt_tokens: int
    response_tokens: int


class Window:
    """Takes answers until it has seen 60 s with every slot busy, or 200 answers, and two of each slot.

    Time is slot time: an answer that kept one of eight slots for 8 s is one second of the server. So pauses in which
    slots were free count nothing, wherever they lie. Slots that are kept free for people count as what they are: idle.

    Where a server works with another number since just now, ``settled`` is false: what is in flight ran beside more or
    fewer than that, so it does not count.
    """

    def __init__(self, slots: int, *, settled: bool = True) -> None:
        self.slots = slots
        self.full = False
        self.settled = settled
        self._before: Set[tuple[int, int]] = frozenset()  # jobs and lines that do not count
        self._samples: list[_Sample] = []
        self._slot_s = 0.0
        self._busy = 0  # slots, summed over the answers
        self._least = max(_LEAST_ANSWERS, _LEAST_OF_A_SLOT * slots)

    def settle(self, in_flight: Set[tuple[int, int]]) -> None:
        """No more are at work than belong to it: from now on answers count, but for these, by job and line."""
        self.settled, self._before = True, in_flight

    def add(self, item: ResultItem, slot_s: float, kept: int = 0) -> None:
        """An answer that occupied slots for ``slot_s`` in all; one beside a free slot says nothing, nor do vectors.

        ``kept`` slots are not given to batches: they may be free.
        """
        if not self.settled or (self._before and (item.job, item.line) in self._before):
            return
        if self.full or item.active < max(1, self.slots - kept) or item.vectors or slot_s <= 0:
            return
        self._busy += min(item.active, self.slots)
        eval_s = min(item.eval_s, slot_s)
        self._samples.append(_Sample(slot_s - eval_s, eval_s, item.prompt_tokens, item.response_tokens))
        self._slot_s += slot_s
        enough = self.seconds >= _ENOUGH_S or len(self._samples) >= _ENOUGH_ANSWERS
        self.full = enough and len(self._samples) >= self._least

    @property
    def answers(self) -> int:
        return len(self._samples)

    @property
    def seconds(self) -> float:
        """How long every slot was busy that batches may have."""
        return self._slot_s / self._mean_busy

    @property
    def _mean_busy(self) -> float:
        return self._busy / len(self._samples) if self._samples else self.slots

    def mix(self) -> Mix:
        """The tokens of its answers."""
        count = max(1, len(self._samples))
        return Mix(
            sum(sample.prompt_tokens for sample in self._samples) / count,
            sum(sample.response_tokens for sample in self._samples) / count,
        )

    def speed(self, mix: Mix, at_s: float) -> Tried:
        """Tokens per second of all slots, as if its answers had the tokens of ``mix``.

        Seconds of slot time for a prompt token and for an answer token are measured apart. Where the server does not
        tell how long it generated, both kinds of tokens take alike.
        """
        own, count, busy = self.mix(), max(1, len(self._samples)), self._mean_busy
        eval_s = sum(sample.eval_s for sample in self._samples) / count
        prompt_s = sum(sample.prompt_s for sample in self._samples) / count
        if eval_s:
            parts = (prompt_s * _ratio(mix.prompt_tokens, own.prompt_tokens),
                     eval_s * _ratio(mix.response_tokens, own.response_tokens))  # fmt: skip
        else:
            parts = (prompt_s * _ratio(sum(mix), sum(own)), 0.0)
        cost_s = max(1e-9, sum(parts))
        return Tried(
            self.slots,
            tokens_per_s=busy * sum(mix) / cost_s,
            prompt_tokens_per_s=busy * own.prompt_tokens / prompt_s if prompt_s else 0.0,
            answer_tokens_per_s=busy * own.response_tokens / eval_s if eval_s else 0.0,
            spread=self._spread(own, prompt_s, eval_s),
            answers=len(self._samples),
            at_s=at_s,
        )

    def _spread(self, own: Mix, prompt_s: float, eval_s: float) -> float:
        """The standard error of the slot time of an answer, beside what its tokens explain, as a share of it."""
        count, mean_s = len(self._samples), prompt_s + eval_s
        if count < 2 or not mean_s:
            return 1.0
        squares = 0.0
        for sample in self._samples:
            expected_s = prompt_s * _ratio(sample.prompt_tokens, own.prompt_tokens)
            expected_s += eval_s * _ratio(sample.response_tokens, own.response_tokens)
            squares += (sample.prompt_s + sample.eval_s - expected_s) ** 2
        return math.sqrt(squares / (count - 1) / count) / mean_s


def _ratio(tokens: float, of: float) -> float:
    return tokens / of if of else 1.0
