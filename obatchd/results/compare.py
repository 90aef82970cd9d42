"""Two results of the same requests, compared: agreement, lengths, speed, JSON, and answers that are known."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from attrs import define, field

from obatchd.errors import ResultsError
from obatchd.results.answers import Parsed
from obatchd.results.asked import prompts_differ, settings_that_differ, titles, unfinished
from obatchd.results.export import data_of
from obatchd.results.rates import LIKENESSES, Likeness, Rate, likeness, meaning
from obatchd.results.repeats import Agreement, Prompts, text_of
from obatchd.results.rows import Record, ResultSet, Row, read_object
from obatchd.results.table import as_text
from obatchd.words import counted

_SIDES = ("a", "b")
_UNLIKE = "no"  # in the table, where nothing stands for what cannot be told


class Pair(NamedTuple):
    """One request in both results; None where it is in one alone."""

    a: Row | None
    b: Row | None

    @property
    def rows(self) -> tuple[Row | None, Row | None]:
        return self.a, self.b

    @property
    def any(self) -> Row:
        found = self.a or self.b
        assert found is not None
        return found

    def first(self, name: str) -> Any:
        """The field of the first of both that has it: a request that a crash ended has neither prompt nor input."""
        return next((row.record[name] for row in self.rows if row is not None and row.record.get(name)), None)

    @property
    def inputs(self) -> list[Record]:
        """The fields that obatchd did not use, where there are any."""
        given = [row.record.get("input") for row in self.rows if row is not None]
        return [fields for fields in given if isinstance(fields, dict)]

    @property
    def both(self) -> bool:
        """Whether both have an answer."""
        return all(row is not None and row.succeeded for row in self.rows)


@define(eq=False)
class Side:
    """The figures of one of the two."""

    name: str  # the job's id, else the place
    title: str = ""  # what people call it
    unfinished: str = ""  # how far the job is, where it is not over
    models: Counter[str] = field(factory=Counter)
    rows: int = 0
    answered: int = 0
    json: int = 0  # answers that are JSON
    characters: list[int] = field(factory=list)
    tokens: list[int] = field(factory=list)
    tokens_per_s: list[float] = field(factory=list)  # of each answer
    job_tokens_per_s: float | None = None  # of all, over the time from acceptance to the last answer
    right: Counter[str] = field(factory=Counter)  # rows with a known answer, by how theirs is like it
    repeats: Agreement = field(factory=Agreement)  # of prompts that were answered several times

    def add(self, row: Row, parsed: Parsed) -> None:
        self.rows += 1
        record = row.record
        if model := record.get("model"):
            self.models[str(model)] += 1
        if not row.succeeded:
            return
        self.answered += 1
        self.json += parsed.found
        if record.get("response"):
            self.characters.append(len(text_of(row)))
        if isinstance(tokens := record.get("response_tokens"), int):
            self.tokens.append(tokens)
        if isinstance(speed := record.get("tokens_per_s"), int | float) and not record.get("copied_from"):
            self.tokens_per_s.append(speed)

    def rights(self, known: int) -> dict[str, Rate]:
        """Right answers, exactly, then also but for case, then also as numbers, of the ``known`` ones."""
        counts = [self.right[kind] for kind in LIKENESSES]
        return {kind: Rate(sum(counts[: place + 1]), known) for place, kind in enumerate(LIKENESSES)}

    def document(self, known: int | None) -> dict[str, Any]:
        """The same as JSON."""
        rights = {} if known is None else {kind: rate.document() for kind, rate in self.rights(known).items()}
        return {
            "name": self.name, "models": list(self.models), "rows": self.rows, "answered": self.answered,
            "json": self.json, "characters_median": middle(self.characters), "tokens_median": middle(self.tokens),
            "tokens_per_s_median": middle(self.tokens_per_s), "job_tokens_per_s": self.job_tokens_per_s,
            "right": rights or None, "repeats": self.repeats.document(), "complete": not self.unfinished,
        }  # fmt: skip


@define(eq=False)
class Figures:
    """What the comparison came to."""

    sides: tuple[Side, Side]
    joined: int = 0  # requests that are in both
    both: int = 0  # with an answer in both
    same: Counter[str] = field(factory=Counter)  # of these, by how alike they are
    fields: dict[str, Counter[bool]] = field(factory=dict)  # of JSON in both, by field: same or not
    known: int | None = None  # requests in both that have a known answer; None: nobody asked
    settings: dict[str, tuple[Any, Any]] = field(factory=dict)  # in which both differ
    prompts_differ: int = 0  # requests that are in both with another prompt each
    right_alone: tuple[int, int] = (0, 0)  # known answers that one of the two alone has right

    @property
    def agreement(self) -> Rate:
        return Rate(sum(self.same[kind] for kind in LIKENESSES), self.both)

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        fields = {name: Rate(same[True], same.total()).document() for name, same in self.fields.items()}
        return {
            **{side: figures.document(self.known) for side, figures in zip(_SIDES, self.sides, strict=True)},
            "joined": self.joined, "both_answered": self.both, "agreement": self.agreement.document(),
            "agreement_exact": Rate(self.same["exact"], self.both).document(), "fields": fields, "known": self.known,
            "right_in_a_alone": self.right_alone[0], "right_in_b_alone": self.right_alone[1],
            "settings": {name: dict(zip(_SIDES, values, strict=True)) for name, values in self.settings.items()},
            "prompts_differ": self.prompts_differ,
        }  # fmt: skip


class Comparison:
    """Two results joined by the ids of their requests. Memory holds ids; rows of the second wait in a temporary file.

    A prompt that was answered several times is one row, by the answer that most agree on.

    Args:
        gold: the column of the input that has the known answers.
        answer: the field of JSON answers that is held against it; None: the one of that name, or the only one.
    """

    def __init__(self, a: ResultSet, b: ResultSet, gold: str | None = None, answer: str | None = None) -> None:
        self.sources = (a, b)
        self._prompts = tuple(Prompts(source, majority=True) for source in self.sources)
        self.gold = gold
        self._answer = answer

    def titles(self) -> tuple[str, str]:
        """What people call both."""
        return titles(*self.sources)

    def pairs(self) -> Iterator[Pair]:
        """Requests in the order of the first, then those that are in the second alone."""
        a, b = self._prompts
        with _Kept(b) as kept:
            for row in a.rows():
                yield Pair(row, kept.take(row.name))
            for row in kept.rest():
                yield Pair(None, row)

    def figures(self) -> Figures:
        """All sums. Raises ResultsError where the two have no request in common, or no row has the known answers."""
        names = (source.job or source.path.name for source in self.sources)
        a, b = map(Side, names, self.titles())
        figures, columns, known = Figures((a, b)), dict[str, None](), 0
        figures.settings = settings_that_differ(*self.sources)
        for pair in self.pairs():
            parsed = tuple(data_of(row) if row else Parsed() for row in pair.rows)
            for side, row, data in zip(figures.sides, pair.rows, parsed, strict=True):
                if row is not None:
                    side.add(row, data)
            if pair.a is None or pair.b is None:
                continue
            figures.joined += 1
            figures.prompts_differ += prompts_differ(*pair.rows)
            columns |= dict.fromkeys(name for fields in pair.inputs for name in fields)
            self._judge(figures, pair, parsed)
            if self.gold is not None and (right := self.right(pair)) is not None:
                known += 1
                _count_right(figures, right)
        for side, source in zip(figures.sides, self.sources, strict=True):
            side.unfinished = unfinished(source, side.title, side.answered)
        if not figures.joined:
            a_rows, b_rows = (f"{side.title} ({counted(side.rows, 'row')})" for side in figures.sides)
            reason = f"no id of {a_rows} is in {b_rows}; compare jobs of the same prompts"
            running = "; ".join(side.unfinished for side in figures.sides if side.unfinished)
            raise ResultsError(f"{running}; compare them later" if running else reason, code="nothing_common")
        if self.gold is not None:
            if not known:
                have = f"the columns of the input are {', '.join(columns)}" if columns else "the input has no columns"
                raise ResultsError(f"no row has a known answer in the column {self.gold}; {have}", code="no_gold")
            figures.known = known
        for side, source, prompts in zip(figures.sides, self.sources, self._prompts, strict=True):
            side.repeats = prompts.agreement
            speed = None if source.retries else read_object(source.path / "summary.json").get("tokens_per_s")
            side.job_tokens_per_s = speed if isinstance(speed, int | float) else None
        return figures

    def _judge(self, figures: Figures, pair: Pair, parsed: tuple[Parsed, ...]) -> None:
        if not pair.both:
            return
        figures.both += 1
        if alike := same(pair, parsed):
            figures.same[alike] += 1
        a, b = (one.data for one in parsed)
        if all(one.found for one in parsed) and isinstance(a, dict) and isinstance(b, dict):
            for name in {**a, **b}:
                equal = name in a and name in b and bool(_alike(a[name], b[name]))
                figures.fields.setdefault(name, Counter())[equal] += 1

    def known(self, pair: Pair) -> Any:
        """The known answer; None where there is none."""
        given = [fields.get(self.gold) for fields in pair.inputs] if self.gold is not None else []
        return next((value for value in given if as_text(value).strip()), None)

    def right(self, pair: Pair) -> tuple[Likeness, Likeness] | None:
        """How each answer is like the known one; None where none is known. No answer is like none."""
        if (expected := self.known(pair)) is None:
            return None
        a, b = (likeness(self._answer_of(row), expected) if row and row.succeeded else "" for row in pair.rows)
        return a, b

    def _answer_of(self, row: Row) -> Any:
        parsed = data_of(row)
        if parsed.found and isinstance(parsed.data, dict):
            if (name := self._answer or self.gold) in parsed.data:
                return parsed.data[name]
            if self._answer is None and len(parsed.data) == 1:
                return next(iter(parsed.data.values()))
        return parsed.data if parsed.found else text_of(row)

    def rows(self) -> Iterator[Row]:
        """The joined table: what both share, then each column of the first beside that of the second."""
        for pair in self.pairs():
            record: Record = {"id": pair.any.name, "line": pair.first("line"), "answered_by": _answered_by(pair)}
            record |= {"input": pair.first("input"), "prompt": pair.first("prompt")}
            parsed = tuple(data_of(row) if row else Parsed(problem=None) for row in pair.rows)
            if prompts_differ(*pair.rows):
                both = (row.record.get("prompt") if row else None for row in pair.rows)
                record |= {f"prompt_{side}": prompt for side, prompt in zip(_SIDES, both, strict=True)}
            record["same"] = (same(pair, parsed) or _UNLIKE) if pair.both else None
            if self.gold is not None:
                right = self.right(pair) or (None, None)
                told = (
                    None if row is None or how is None else how or _UNLIKE
                    for row, how in zip(pair.rows, right, strict=True)
                )
                record |= {f"right_{side}": how for side, how in zip(_SIDES, told, strict=True)}
            records = [_columns(row, data) for row, data in zip(pair.rows, parsed, strict=True)]
            for name in {**records[0], **records[1]}:
                record |= {f"{name}_{side}": one.get(name) for side, one in zip(_SIDES, records, strict=True)}
            yield Row(record)


class _Kept:
    """Rows in a temporary file, to be taken by name once."""

    def __init__(self, source: Prompts) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end of the block that this is made for
        self._places: dict[str, int] = {}
        for row in source.rows():
            self._places.setdefault(row.name, self._file.tell())
            self._file.write(json.dumps(row).encode() + b"\n")

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, name: str) -> Row | None:
        place = self._places.pop(name, None)
        if place is None:
            return None
        self._file.seek(place)
        return Row(*json.loads(self._file.readline()))

    def rest(self) -> Iterator[Row]:
        """Those that nobody took."""
        for name in list(self._places):
            if (row := self.take(name)) is not None:
                yield row


def same(pair: Pair, parsed: tuple[Parsed, ...]) -> Likeness:
    """How two answers are the same: JSON by its data, anything else by its text."""
    assert pair.a is not None and pair.b is not None
    if all(one.found for one in parsed):
        return _alike(parsed[0].data, parsed[1].data)
    return likeness(text_of(pair.a), text_of(pair.b))


def _alike(a: Any, b: Any) -> Likeness:
    if isinstance(a, dict | list) or isinstance(b, dict | list):
        return "exact" if meaning(a) == meaning(b) else ""
    return likeness(a, b)


def middle(values: list[Any]) -> float | None:
    """The median, or None of nothing."""
    return round(float(median(values)), 3) if values else None


def _count_right(figures: Figures, right: tuple[Likeness, Likeness]) -> None:
    a, b = figures.right_alone
    figures.right_alone = (a + bool(right[0] and not right[1]), b + bool(right[1] and not right[0]))
    for side, how in zip(figures.sides, right, strict=True):
        side.right[how] += 1


def _answered_by(pair: Pair) -> str:
    """Who has an answer."""
    answered = [side for side, row in zip(_SIDES, pair.rows, strict=True) if row is not None and row.succeeded]
    return "both" if len(answered) == 2 else "".join(answered) or "neither"


def _columns(row: Row | None, parsed: Parsed) -> Record:
    if row is None:
        return {}
    names = (
        "outcome", "response", "model", "response_tokens", "tokens_per_s", "answers", "agree", "code", "message",
    )  # fmt: skip
    record = {name: row.record[name] for name in names if name in row.record}
    if isinstance(parsed.data, dict):
        record |= {f"data.{name}" if name in names else name: value for name, value in parsed.data.items()}
    return record
