"""Which number of slots is measured next, and which is the best: a function of the numbers measured so far.

The search goes up from the first number in steps of two while that gains, then down, then looks at the numbers of the
ladder beside the best one. It ends when two steps gain less than 3 %, but not before one larger and one smaller number
were measured, where they fit, and after 8 windows at the latest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

LADDER = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
MOST_WINDOWS = 8
GAIN = 0.03  # a step that gains less than this share of the tokens per second gains nothing
_KNOWN_WELL = 0.01  # a spread above which a narrow win is measured again
_SURE = 3  # times the spread of a difference: more is no noise
_MOST_OF_ONE = 2  # windows of one number


class Tried(msgspec.Struct):
    """A number of slots with its speed, of all slots together and for the mix of tokens of the search."""

    slots: int
    tokens_per_s: float  # of prompts and answers
    prompt_tokens_per_s: float = 0.0  # while prompts are read
    answer_tokens_per_s: float = 0.0  # while answers are written
    spread: float = 0.0  # standard error of ``tokens_per_s``, as a share of it
    answers: int = 0  # that were measured
    windows: int = 1
    at_s: float = 0.0  # since the epoch; when the latest window ended

    def at(self, prompt_tokens: float, response_tokens: float) -> float:
        """Tokens per second for answers with so many tokens; as measured, where the server does not tell its times."""
        if not self.answer_tokens_per_s:
            return self.tokens_per_s
        prompt_s = prompt_tokens / self.prompt_tokens_per_s if self.prompt_tokens_per_s else 0.0
        return (prompt_tokens + response_tokens) / max(1e-9, prompt_s + response_tokens / self.answer_tokens_per_s)

    def with_more(self, other: Tried) -> Tried:
        """This and another window of the same number together, weighed by their answers."""
        answers = self.answers + other.answers
        share = self.answers / answers if answers else 0.5

        def mean(one: float, two: float) -> float:
            return share * one + (1 - share) * two

        return Tried(
            self.slots,
            mean(self.tokens_per_s, other.tokens_per_s),
            mean(self.prompt_tokens_per_s, other.prompt_tokens_per_s),
            mean(self.answer_tokens_per_s, other.answer_tokens_per_s),
            math.hypot(share * self.spread, (1 - share) * other.spread),
            answers,
            self.windows + other.windows,
            other.at_s,
        )


def best_of(tried: Mapping[int, Tried]) -> Tried:
    """The fastest; of equals the one with fewer slots."""
    return min(tried.values(), key=lambda one: (-one.tokens_per_s, one.slots))


def following(start: int, tried: Mapping[int, Tried], fitting: Sequence[int]) -> int | None:
    """The number of slots to measure next; None where the search is over.

    ``start`` is the number that it began with, ``fitting`` are the numbers of the ladder that may be tried, ascending.
    """
    if start not in tried:
        return start
    if sum(one.windows for one in tried.values()) >= MOST_WINDOWS:
        return None
    sides = ((max(tried), _above), (min(tried), below))
    for end, further in sides:
        if end == start and (beyond := further(start, fitting)) is not None:
            return beyond
    for (end, further), ascending in zip(sides, (False, True), strict=True):
        speeds = [tried[slots].tokens_per_s for slots in sorted(tried, reverse=not ascending)]
        if _goes_on(speeds) and (beyond := further(end, fitting)) is not None:
            return beyond
    return _beside_best(tried, fitting) or _doubtful(tried)


def _above(slots: int, fitting: Sequence[int]) -> int | None:
    """Twice as many, or as many as fit."""
    larger = [other for other in fitting if slots < other <= 2 * slots] or [o for o in fitting if o > slots][:1]
    return larger[-1] if larger else None


def below(slots: int, fitting: Sequence[int]) -> int | None:
    """Half as many, or the next smaller number."""
    smaller = [other for other in fitting if slots / 2 <= other < slots] or [o for o in fitting if o < slots][-1:]
    return smaller[0] if smaller else None


def _goes_on(speeds: Sequence[float]) -> bool:
    """Whether it pays to go on at the end that ``speeds`` begins with."""
    end, inner = speeds[0], max(speeds[1:])
    if end >= inner * (1 + GAIN):
        return True
    if end < inner * (1 - GAIN) or len(speeds) < 3:
        return False
    return max(speeds[:2]) >= max(speeds[2:]) * (1 + GAIN)  # a level step: one more, unless the one before was level


def _beside_best(tried: Mapping[int, Tried], fitting: Sequence[int]) -> int | None:
    """A number next to the best on the ladder that was not measured; first on the side that is faster further on."""
    best = best_of(tried).slots
    larger = next((slots for slots in fitting if slots > best), None)
    smaller = next((slots for slots in reversed(fitting) if slots < best), None)
    candidates = [slots for slots in (larger, smaller) if slots is not None and slots not in tried]

    def beyond(slots: int) -> float:
        side = [other for other in tried if (other > best) == (slots > best) and other != best]
        return tried[min(side, key=lambda other: abs(other - best))].tokens_per_s if side else 0.0

    return max(candidates, key=beyond, default=None)


def _doubtful(tried: Mapping[int, Tried]) -> int | None:
    """The best or the second best, where noise may have decided between them."""
    first = best_of(tried)
    others = {slots: one for slots, one in tried.items() if slots != first.slots}
    if not others:
        return None
    second = best_of(others)
    spread = math.hypot(first.spread, second.spread)
    if spread < _KNOWN_WELL or second.tokens_per_s < first.tokens_per_s * (1 - _SURE * spread):
        return None
    again = min((first, second), key=lambda one: (one.windows, one is second))
    return again.slots if again.windows < _MOST_OF_ONE else None
