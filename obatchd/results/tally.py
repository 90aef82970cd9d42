"""The end of every export: the sum, the failures by cause, the answers that are not JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from obatchd.results.rows import ResultSet, Row
from obatchd.words import LINES_TOLD, counted, to_mend

_EXAMPLE_CHARACTERS = 160
_OUTCOMES = ("failed", "cancelled", "expired")
DOUBTS = ("truncated", "ungrounded")  # of answers that count as success: fields of their records
# Codes of lines that were refused when the drop was read, as ours and as lines of batch files have them.
_REFUSED = frozenset({
    "bad_image", "bad_json", "bad_row", "duplicate_custom_id", "duplicate_id", "invalid_json_line", "invalid_request",
    "invalid_utf8", "line_too_long", "missing_field", "missing_prompt", "missing_required_parameter", "model_mismatch",
    "not_supported", "too_many_requests", "too_many_tasks", "unsupported_parameter", "url_mismatch", "wrong_type",
})  # fmt: skip


class Tally:
    """Counts rows as they go by."""

    def __init__(self, *, data_only: bool = False) -> None:
        self._data_only = data_only  # then an answer that is no JSON is nowhere else
        self.outcomes: Counter[str] = Counter()
        self.doubts: Counter[str] = Counter()
        self.failures: dict[str, tuple[int, str]] = {}  # by code: how many, and the message of the first
        self.refused = 0  # failures that never ran, for nobody can ask what is not there: a retry leaves them out
        self.refused_lines: list[int] = []  # the first of them
        self.not_json: list[tuple[str, str]] = []  # name of each success whose answer is no JSON, and why
        self.json = 0  # successes whose answer is JSON
        self.answered_by: Counter[str] = Counter()  # successes by job, where there are retries
        self.shown: tuple[int, int] | None = None  # answers on a page, of so many
        self.cut = 0  # texts that were too long for a cell of a workbook

    def add(self, row: Row, problem: str | None) -> None:
        """Count one row; ``problem`` says why its answer is no JSON, "" that it is, None that nobody looked."""
        outcome = str(row.record.get("outcome"))
        self.outcomes[outcome] += 1
        if not row.succeeded:
            code = str(row.record.get("code") or outcome)
            count, example = self.failures.get(code, (0, str(row.record.get("message") or "")))
            self.failures[code] = (count + 1, example)
            if code in _REFUSED and not row.record.get("attempts"):
                self._add_refused(row.record.get("line"))
            return
        if job := row.record.get("attempt_job"):
            self.answered_by[str(job)] += 1
        self.doubts.update(name for name in DOUBTS if row.record.get(name))
        if problem:
            self.not_json.append((row.name, problem))
        elif problem is not None:
            self.json += 1

    def _add_refused(self, line: Any) -> None:
        self.refused += 1
        if isinstance(line, int) and len(self.refused_lines) < LINES_TOLD:
            self.refused_lines.append(line)

    @property
    def can_be_retried(self) -> bool:
        """Whether there is a failure of a request that ran."""
        return sum(count for count, _ in self.failures.values()) > self.refused

    def unanswered(self, source: ResultSet) -> int:
        """Requests of a running job that have no result yet."""
        return max(0, (source.asked or 0) - self.outcomes.total()) if not source.complete else 0

    def document(self, source: ResultSet) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "job": source.job or None,
            "in": self.outcomes.total() + self.unanswered(source),
            "succeeded": self.outcomes["succeeded"],
            **{outcome: self.outcomes[outcome] for outcome in _OUTCOMES},
            "unanswered": self.unanswered(source),
            **{name: self.doubts[name] for name in DOUBTS},
            "json": self.json,
            "not_json": [{"id": name, "reason": problem} for name, problem in self.not_json],
            "failures": {code: {"requests": n, "example": example} for code, (n, example) in self.failures.items()},
            "retry": _retry(source) if self.can_be_retried else None,
            "retries": [
                {"job": retry.job, "succeeded": self.answered_by[retry.job], "complete": retry.complete}
                for retry in source.retries
            ],
        }

    def cut_lines(self) -> list[str]:
        """What a workbook has no room for; nothing where it has all."""
        texts = counted(self.cut, "text")
        return [f"Cut: {texts}, too long for a cell of a workbook; .csv and .json have all."] if self.cut else []

    def misses_json(self, source: ResultSet) -> bool:
        """Whether it matters that answers are no JSON: it was asked for, or else most answers are JSON; where nobody
        knows what was asked, any answer that is JSON says that it was."""
        if source.json_asked or self._data_only:
            return True
        return self.json > len(self.not_json) if source.json_asked is False else self.json > 0

    def _not_json_lines(self) -> list[str]:
        if not self.not_json:
            return []
        if not self.json:
            return [f"No answer is JSON: {counted(len(self.not_json), 'text')} instead."]
        heading = f"Not JSON: {counted(len(self.not_json), 'answer')}, whose text is in the column response:"
        return [heading, *(f"  {name}: {problem}" for name, problem in self.not_json)]

    def lines(self, source: ResultSet) -> list[str]:
        """The end of an export, for people."""
        lines = [*(self._not_json_lines() if self.misses_json(source) else []), *self.cut_lines()]
        waiting = self.unanswered(source)
        parts = [f"{self.outcomes['succeeded']:,} answered"]
        parts += [f"{self.outcomes[name]:,} {name}" for name in _OUTCOMES if self.outcomes[name] or name == "failed"]
        parts += [f"{waiting:,} not answered yet"] if waiting else []
        total = f"{counted(self.outcomes.total() + waiting, 'request')} = {' + '.join(parts)}"
        told = [retry.job for retry in source.retries if self.answered_by[retry.job]]
        told = told or [retry.job for retry in source.retries[-1:]]
        of_retries = [f"{self.answered_by[job]:,}{' of them' if job == told[0] else ''} in {job}" for job in told]
        lines.append(", ".join([total, *of_retries]))
        for code, (count, example) in sorted(self.failures.items(), key=lambda item: -item[1][0]):
            line = " ".join(example.split())
            line = line if len(line) <= _EXAMPLE_CHARACTERS else f"{line[: _EXAMPLE_CHARACTERS - 1]}…"
            lines.append(f"  {count:,} {code}: {line}")
        lines += [f"  {note}" for note in source.notes()]
        if self.can_be_retried and (command := _retry(source)):
            lines.append(f"  try these again:  {command}")
        if self.refused and source.job:
            lines.append(f"  {to_mend(self.refused, self.refused_lines)}")
        return lines


def _retry(source: ResultSet) -> str | None:
    over = source.complete and all(retry.complete for retry in source.retries)
    return f"obatchctl retry {source.job}" if source.job and over else None
