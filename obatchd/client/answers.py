"""Answers of a job as objects, read from its outbox one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from obatchd.client.forms import Form
from obatchd.results.answers import Parsed, parse_answer
from obatchd.results.rows import ResultSet, Row, read_object
from obatchd.words import shortened

if TYPE_CHECKING:
    import pandas
    import pyarrow

D = TypeVar("D")
_SHOWN = 60  # characters of a text where an answer is shown
NOT_VALID = "not_valid"
_LOOK = "look at its text; mend the type, or ask again with a schema that says more"


class AnswerError(NamedTuple):
    """Why there is no answer, or none that fits the type."""

    code: str  # slug, as in errors.jsonl; not_valid: the answer came, and does not fit the type
    message: str
    advice: str  # what to do


class Answer(Generic[D]):
    """What came of one request.

    ``data`` is the parsed JSON of an answer whose job asked for JSON, an instance where the schema was a type, and None
    where there is none. ``error`` is None where all is well. ``record`` has everything that is known, as in
    ``results.jsonl`` and ``errors.jsonl``.
    """

    __slots__ = ("data", "error", "record")

    def __init__(self, record: dict[str, Any], data: D | None, error: AnswerError | None) -> None:
        self.record = record
        self.data = data
        self.error = error

    def __repr__(self) -> str:
        said = self.error.code if self.error else repr(shortened(self.text, _SHOWN))
        return f"<Answer {self.id}: {said}>"

    @property
    def ok(self) -> bool:
        """It is answered, and the answer fits its type."""
        return self.error is None

    @property
    def id(self) -> str:
        """The name of the request; without one of its own it is called by its line."""
        return str(self.record.get("id") or self.record.get("line"))

    @property
    def line(self) -> int | None:
        """Its place in the drop, from 1."""
        return self.record.get("line")

    @property
    def outcome(self) -> str:
        """``succeeded``, ``failed``, ``cancelled`` or ``expired``."""
        return str(self.record["outcome"])

    @property
    def prompt(self) -> str | None:
        """As it was submitted; None where the result does not repeat it (a chat, a line of a batch file)."""
        return self.record.get("prompt")

    @property
    def text(self) -> str:
        """The text of the answer, without the reasoning before it; empty where there is none."""
        return str(self.record.get("response") or "")

    @property
    def think(self) -> str:
        """The reasoning before the answer."""
        return str(self.record.get("think") or "")

    @property
    def input(self) -> dict[str, Any]:
        """Fields of the request that obatchd did not use: your own."""
        return self.record.get("input") or {}

    @property
    def embedding(self) -> list[float] | None:
        """The vector of a request with one ``input``."""
        return self.record.get("embedding")

    @property
    def truncated(self) -> bool:
        """The answer reached its token limit."""
        return bool(self.record.get("truncated"))

    @property
    def ungrounded(self) -> list[str]:
        """Fields of ``in_source`` with a value that is not in the prompt."""
        return self.record.get("ungrounded") or []

    @property
    def prompt_tokens(self) -> int | None:
        return self.record.get("prompt_tokens")

    @property
    def response_tokens(self) -> int | None:
        return self.record.get("response_tokens")

    @property
    def duration_s(self) -> float | None:
        """Seconds of the attempt that answered."""
        return self.record.get("duration_s")

    @property
    def model(self) -> str | None:
        return self.record.get("model")

    @property
    def server(self) -> str | None:
        """The server that answered."""
        return self.record.get("server")

    @property
    def job(self) -> str | None:
        """The job that it is of, where answers of a job and of its retries are read as one."""
        return self.record.get("attempt_job")


class Results(Generic[D]):
    """Answers of a job in the order of its requests. They can be read more than once, and are never all in memory."""

    def __init__(
        self, source: ResultSet | None, form: Form[D] | None, advice: Mapping[str, str], *, failures: bool = False
    ) -> None:
        """``source`` is None where nothing is answered yet; with ``failures`` only those that are not ok are read."""
        self._source, self._form, self._advice, self._failures = source, form, advice, failures

    def __iter__(self) -> Iterator[Answer[D]]:
        return (answer for _, answer in self._read())

    def __repr__(self) -> str:
        what = "failures" if self._failures else "results"
        title = self._source.title if self._source else "a job without answers yet"
        return f"<{what} of {title}; for answer in …, .to_pandas(), .to_arrow()>"

    def to_pandas(self) -> pandas.DataFrame:
        """All of them as a data frame: your own columns, then the answer and its fields; failures have their row.

        Raises:
            ResultsError: pandas is not installed (``no_pandas``).
        """
        from obatchd.client.tables import as_pandas

        return as_pandas(self)

    def to_arrow(self) -> pyarrow.Table:
        """The same as a table of Arrow.

        Raises:
            ResultsError: pyarrow is not installed (``no_pyarrow``).
        """
        from obatchd.client.tables import as_arrow

        return as_arrow(self)

    def rows(self) -> Iterator[Row]:
        """The same as rows of an export; that an answer does not fit its type stands in their ``code``."""
        for row, answer in self._read():
            if answer.error is not None and answer.error.code == NOT_VALID:
                row = row._replace(record={**row.record, "code": NOT_VALID, "message": answer.error.message})
            yield row

    def _read(self) -> Iterator[tuple[Row, Answer[D]]]:
        for row in self._source.rows() if self._source else ():
            answer = self._answer(row)
            if not (self._failures and answer.ok):
                yield row, answer

    def _answer(self, row: Row) -> Answer[D]:
        record = row.record
        if not row.succeeded:
            code = str(record.get("code") or record.get("outcome"))
            message = str(record.get("message") or f"the request {record.get('outcome')}")
            return Answer(record, None, AnswerError(code, message, self._advice.get(code, "")))
        if self._form is None:
            return Answer(record, record.get("data"), None)
        parsed = Parsed(record["data"]) if "data" in record else parse_answer(str(record.get("response") or ""))
        try:
            if not parsed.found:
                raise ValueError(parsed.problem)
            return Answer(record, self._form.read(parsed.data), None)
        except ValueError as error:
            return Answer(record, None, AnswerError(NOT_VALID, f"the answer does not fit: {error}", _LOOK))


def advice_in(outbox: Path) -> dict[str, str]:
    """What to do about failures, by code, as a job's summary says it."""
    failures = read_object(outbox / "summary.json").get("failures")
    if not isinstance(failures, dict):
        return {}
    return {code: str(told.get("advice", "")) for code, told in failures.items() if isinstance(told, dict)}
