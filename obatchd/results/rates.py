"""Rates with their intervals, and how alike two answers are."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Hashable
from decimal import Decimal
from typing import Any, Literal

from attrs import frozen

from obatchd.results.table import as_text

Z_95 = 1.959963984540054  # the 97.5 % point of the normal distribution: intervals of 95 %
Likeness = Literal["exact", "folded", "numeric", ""]
LIKENESSES: tuple[Likeness, ...] = ("exact", "folded", "numeric")  # each is looked for where those before it fail
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?")


@frozen
class Rate:
    """So many of so many."""

    count: int
    of: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the proportion, by Wilson's score; None of nothing.

        E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927) 209-212;
        recommended for any number by L. D. Brown, T. T. Cai and A. DasGupta, Interval estimation for a binomial
        proportion, Statistical Science 16 (2001) 101-133.
        """
        if not self.of:
            return None
        p, n, z2 = self.count / self.of, self.of, Z_95**2
        middle, half = p + z2 / (2 * n), Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        low, high = ((middle + side) / (1 + z2 / n) for side in (-half, half))
        return (0.0 if self.count == 0 else low), (1.0 if self.count == self.of else high)

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        low, high = self.interval or (None, None)
        rate = self.count / self.of if self.of else None
        return {"count": self.count, "of": self.of, "rate": rate, "low": low, "high": high}

    @property
    def text(self) -> str:
        """For people: ``31 of 40, 78 % (62–88 %)``, with the interval in brackets."""
        return f"{self.count:,} of {self.of:,}" + (f", {self.percent}" if self.of else "")

    @property
    def percent(self) -> str:
        """The same without the counts."""
        low, high = self.interval or (0.0, 1.0)
        rate = f"{100 * self.count / self.of:.0f} %" if self.of else "–"
        return f"{rate} ({100 * low:.0f}–{100 * high:.0f} %)"


def likeness(answer: Any, other: Any) -> Likeness:
    """How two answers are the same: letter for letter, but for case and white space, as numbers, or not at all."""
    texts = [as_text(value).strip() for value in (answer, other)]
    if texts[0] == texts[1]:
        return "exact"
    if _folded(texts[0]) == _folded(texts[1]):
        return "folded"
    return "numeric" if canonical(texts[0]) == canonical(texts[1]) else ""


def canonical(text: str) -> str | Decimal:
    """The same for texts that are alike: the number that a text is, without commas between thousands, or its words."""
    folded = _folded(text)
    is_number = folded[-1:].isdigit() and _NUMBER.fullmatch(folded)
    return Decimal(folded.replace(",", "")) if is_number else folded


def meaning(value: Any) -> Hashable:
    """The same for data that are alike: objects and lists by all that is in them, anything else as ``canonical``."""
    if not isinstance(value, dict | list):
        return canonical(as_text(value))
    # A number is one however it is written, and true is none: Python takes 1 and True for the same.
    return (json.dumps(json.loads(json.dumps(value), parse_float=_number), sort_keys=True),)  # no text is a tuple


def _number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
