"""Prompts that were answered several times: how far their answers agree, and the answer that most agree on.

The answers are rows of their own, ``x#1`` to ``x#K`` with their number in ``repeat`` (``submit --repeat``), or stand
together in ``choices`` (``n`` of a request).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import groupby
from typing import Any

from attrs import define, field, frozen

from obatchd.prompts.reasoning import split_reasoning
from obatchd.results.export import Rows, data_of
from obatchd.results.rates import Rate, meaning
from obatchd.results.rows import Record, Row
from obatchd.results.table import as_text
from obatchd.words import counted

_OF_ANSWERS = ("repeat", "seed", "choices")  # and not of the prompt
_OF_ONE = ("response", "think", "data", "tool_calls", "format_tries", "ungrounded")
_DIGITS = 3  # of an interval in a table
_NO_TEXT = ("embedding", "embeddings", "tool_calls")


@frozen
class Verdict:
    """What came of one prompt."""

    asked: int
    answered: int
    alike: int  # answers that are the same as the majority's
    tied: bool  # another answer is as frequent as that one
    row: Row  # of the majority, the first of equals; the first of all where there is no answer

    @classmethod
    def of(cls, group: list[Row]) -> Verdict:
        """Of all rows of a prompt."""
        answers = [answer for row in group for answer in answers_of(row)]
        meanings: dict[Hashable, list[Row]] = {}
        for answer in answers:
            if answer.succeeded:
                meanings.setdefault(_meaning(answer), []).append(answer)
        most = max(meanings.values(), key=len, default=[])
        answered = sum(map(len, meanings.values()))
        tied = [len(alike) for alike in meanings.values()].count(len(most)) > 1
        return cls(len(answers), answered, len(most), tied, most[0] if most else answers[0])

    def majority(self, name: str) -> Row:
        """The one row of the prompt ``name``, with how many agree on it."""
        record: Record = {key: value for key, value in self.row.record.items() if key not in _OF_ANSWERS}
        interval = Rate(self.alike, self.answered).interval
        low, high = (round(end, _DIGITS) for end in interval) if interval else (None, None)
        record |= {"id": name, "answers": self.answered, "agree": self.alike, "agree_low": low, "agree_high": high}
        return self.row._replace(record=record)


@define
class Agreement:
    """Sums over the prompts that were answered several times."""

    times: Counter[int] = field(factory=Counter)  # prompts by how often they were asked
    unanimous: int = 0  # of those with two answers or more
    tied: int = 0  # prompts without a majority: several answers are equally frequent
    shares: list[float] = field(factory=list)  # of these: the part of the answers that is the majority's

    def add(self, verdict: Verdict) -> None:
        self.times[verdict.asked] += 1
        self.tied += verdict.tied
        if verdict.answered > 1:
            self.unanimous += verdict.alike == verdict.answered
            self.shares.append(verdict.alike / verdict.answered)

    @property
    def rate(self) -> Rate:
        """Prompts whose answers are all the same."""
        return Rate(self.unanimous, len(self.shares))

    @property
    def share(self) -> float | None:
        """The mean part of the answers that is the majority's."""
        return sum(self.shares) / len(self.shares) if self.shares else None

    def document(self) -> dict[str, Any] | None:
        """The same as JSON; None where no prompt was asked more than once."""
        if not self.times:
            return None
        return {
            "prompts": self.times.total(),
            "all_the_same": self.rate.document(),
            "majority_share": self.share,
            "tied": self.tied,
        }

    def lines(self) -> list[str]:
        """For people; nothing where no prompt was asked more than once."""
        if not self.times:
            return []
        least, most = min(self.times), max(self.times)
        often = counted(most, "time") if least == most else f"{least} to {counted(most, 'time')}"
        lines = [f"{counted(self.times.total(), 'prompt')} asked {often}:"]
        if self.share is not None:
            lines.append(f"  all answers the same: {self.rate.text}; in brackets the 95 % interval (Wilson's score)")
            lines.append(f"  answers that are the most frequent one of their prompt: {100 * self.share:.0f} %")
        if self.tied:
            of = f"{self.tied:,} of {counted(self.times.total(), 'prompt')}"
            lines.append(f"  no majority, so --majority takes the first of the most frequent answers: {of}")
        return lines


class Prompts:
    """Results whose repeated prompts are judged while they are read; with ``majority`` each of these has one row."""

    def __init__(self, source: Rows, *, majority: bool) -> None:
        self.agreement = Agreement()  # by the latest reading
        self._source = source
        self._majority = majority

    def rows(self) -> Iterator[Row]:
        """Rows of prompts that were asked once stay as they are."""
        self.agreement = Agreement()
        for _, numbered in groupby(enumerate(self._source.rows()), key=lambda pair: _prompt(pair[1]) or pair[0]):
            group = [row for _, row in numbered]
            prompt = _prompt(group[0])
            if prompt is None and not group[0].choices:
                yield group[0]
                continue
            verdict = Verdict.of(group)
            self.agreement.add(verdict)
            if self._majority:
                yield verdict.majority(prompt[1] if prompt else group[0].name)
            else:
                yield from group


def _prompt(row: Row) -> tuple[object, str] | None:
    """What the rows of one prompt share; None of a row that is not repeated."""
    number, name = row.record.get("repeat"), row.name
    if not isinstance(number, int) or not name.endswith(f"#{number}"):
        return None
    return row.record.get("line"), name.removesuffix(f"#{number}")


def answers_of(row: Row) -> Iterator[Row]:
    """Each answer of a request as a row: its choices, else itself."""
    if not (choices := row.choices):
        yield row
        return
    shared = {name: value for name, value in row.record.items() if name not in _OF_ONE}
    yield from (row._replace(record={**shared, **choice}) for choice in choices)


def text_of(row: Row) -> str:
    """The text of an answer, without the reasoning before it; vectors and calls of functions as JSON."""
    if isinstance(response := row.record.get("response"), str) and response:
        return split_reasoning(response)[0].strip()
    return as_text(next((row.record[name] for name in _NO_TEXT if row.record.get(name)), None))


def _meaning(row: Row) -> Hashable:
    """The same for answers that are alike: JSON by its data, anything else by its number or its words."""
    parsed = data_of(row)
    return meaning(parsed.data if parsed.found else text_of(row))
