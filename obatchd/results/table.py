"""Results as a table: its columns and cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from obatchd.results.rows import Record, Row

Kind = Literal["empty", "bool", "int", "float", "text", "numbers", "json"]
Origin = Literal["record", "input", "data", "file"]

_FIRST = ("id", "line")
_MIDDLE = ("outcome", "prompt", "response", "think")
_APART = ("input", "data")  # spread over columns of their own
_INT64 = 2**63
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)*(?:[eE][+-]?[0-9]+)?")


class Column(NamedTuple):
    """One column: its heading, and where its cells are found."""

    heading: str
    origin: Origin
    key: str
    kind: Kind


class TableShape:
    """Learns the columns from all rows; a second pass over the rows then fills them."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Origin, str], Kind] = {}

    def learn(self, row: Row, data: Any) -> None:
        """Take note of one row's fields."""
        for origin, key, value in _cells(row, data):
            self._kinds[origin, key] = _common(self._kinds.get((origin, key), "empty"), _kind(value))

    def columns(self) -> list[Column]:
        """Id, fields of the input, outcome and answer, fields of the answer's data, and everything else.

        A heading that is taken already gets its origin in front: ``input.model``, ``data.mrn``.
        """
        known = list(self._kinds)
        own = [key for origin, key in known if origin == "record"]
        order: list[tuple[Origin, str]] = [("record", key) for key in _FIRST if key in own]
        order += [pair for pair in known if pair[0] == "file"]
        order += [pair for pair in known if pair[0] == "input"]
        order += [("record", key) for key in _MIDDLE if key in own]
        order += [pair for pair in known if pair[0] == "data"]
        order += [pair for pair in known if pair[0] == "record" and pair not in order]
        # Fields of ours keep their names, so that a column means the same in every export.
        taken = {key for origin, key in order if origin == "record"}
        columns = []
        for origin, key in order:
            heading = key
            while origin in ("input", "data") and heading in taken:
                heading = f"{origin}.{heading}"
            taken.add(heading)
            columns.append(Column(heading, origin, key, self._kinds[origin, key]))
        return columns


def cells(row: Row, data: Any, columns: Iterable[Column]) -> list[Any]:
    """The row's value in each column, None where it has none."""
    found = {(origin, key): value for origin, key, value in _cells(row, data)}
    return [found.get((column.origin, column.key)) for column in columns]


def as_text(value: Any) -> str:
    """A cell as text: text as it is, anything else as JSON, nothing for nothing."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_cell(value: Any) -> str:
    """A cell as CSV has it: with an apostrophe before a text that a spreadsheet would run as a formula.

    Answers and fields come from models and strangers. Numbers stay numbers.
    """
    text = as_text(value)
    return f"'{text}" if text.startswith(_FORMULA_BEGINS) and not _NUMBER.fullmatch(text) else text


def _cells(row: Row, data: Any) -> Iterable[tuple[Origin, str, Any]]:
    record: Record = row.record
    if row.file:
        yield "file", "file", row.file
    given = record.get("input")
    if isinstance(given, dict):
        for key, value in given.items():
            yield "input", key, value
    for key, value in record.items():
        if key not in _APART:
            yield "record", key, value
    if isinstance(data, dict):
        for key, value in data.items():
            yield "data", key, value
    elif data is not None:
        yield "data", "data", data


def _kind(value: Any) -> Kind:
    match value:
        case None:
            return "empty"
        case bool():
            return "bool"
        case int():
            return "int" if -_INT64 <= value < _INT64 else "text"
        case float():
            return "float"
        case str():
            return "text"
        case [*numbers] if numbers and all(_kind(number) in ("int", "float") for number in numbers):
            return "numbers"
        case _:
            return "json"


def _common(one: Kind, other: Kind) -> Kind:
    if one == other or other == "empty":
        return one
    if one == "empty":
        return other
    return "float" if {one, other} == {"int", "float"} else "text"
