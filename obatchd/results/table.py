"""Results as a table: its columns and cells."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from obatchd.results.rows import Row

Kind = Literal["empty", "bool", "int", "float", "text", "numbers", "json"]
Origin = Literal["record", "input", "data", "file"]

# The columns from left to right: a field of ours, or all fields of an origin that have no place of their own.
_ORDER = (
    ("record", "id"), ("record", "line"), "file", "input", ("record", "outcome"), ("record", "answered_by"),
    ("record", "prompt"), ("record", "response"), ("record", "think"), "data", "record",
)  # fmt: skip
_KINDS: dict[type, Kind] = {type(None): "empty", bool: "bool", float: "float", str: "text"}
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


def columns_of(rows: Iterable[tuple[Row, Any]]) -> list[Column]:
    """The columns of rows and their data; a second pass over the rows then fills them.

    A heading that is taken already gets its origin in front: ``input.model``, ``data.mrn``.
    """
    kinds: dict[tuple[Origin, str], set[Kind]] = defaultdict(set)
    for row, data in rows:
        for origin, key, value in _cells(row, data):
            kinds[origin, key].add(_kind(value))
    # Fields of ours keep their names, so that a column means the same in every export.
    taken = {key for origin, key in kinds if origin == "record"}
    columns = []
    for origin, key in sorted(kinds, key=lambda column: _ORDER.index(column if column in _ORDER else column[0])):
        heading = key
        while origin in ("input", "data") and heading in taken:
            heading = f"{origin}.{heading}"
        taken.add(heading)
        columns.append(Column(heading, origin, key, _common(kinds[origin, key] - {"empty"})))
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


def _cells(row: Row, data: Any) -> Iterator[tuple[Origin, str, Any]]:
    parts: dict[Origin, Any] = {
        "file": {"file": row.file} if row.file else {},
        "input": row.record.get("input"),
        "record": {key: value for key, value in row.record.items() if key not in _APART},
        "data": data if isinstance(data, dict) or data is None else {"data": data},
    }
    for origin, fields in parts.items():
        if isinstance(fields, dict):
            yield from ((origin, key, value) for key, value in fields.items())


def _kind(value: Any) -> Kind:
    if type(value) is int:
        return "int" if -_INT64 <= value < _INT64 else "text"
    if isinstance(value, list) and value and all(_kind(number) in ("int", "float") for number in value):
        return "numbers"
    return _KINDS.get(type(value), "json")


def _common(kinds: set[Kind]) -> Kind:
    if len(kinds) < 2:
        return next(iter(kinds), "empty")
    return "float" if kinds == {"int", "float"} else "text"
