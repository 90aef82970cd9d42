"""Records that are no requests of ours, made into requests: by a template, or by naming the field that is the prompt.

A record is data: none of its fields is taken for a setting, whatever it is called, and all come back with the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from obatchd.errors import ConfigError
from obatchd.jobs.formats.reader.fields import fields_of, label_within, quoted
from obatchd.jobs.formats.reader.said import MATERIAL, TEXT_NAMES, instructed_columns
from obatchd.jobs.formats.request import PASSED_NOTES, PASSED_ON
from obatchd.jobs.formats.source import decoded, raw_fields
from obatchd.jobs.model import RequestRefused
from obatchd.prompts.template import template_parts
from obatchd.words import not_json

_ID_FIELDS = ("id", "custom_id")
_DOCUMENTED = ("prompt", "text", "content")
_encode = msgspec.json.Encoder().encode
_text = msgspec.json.Decoder(str)

Record = Mapping[str, str | msgspec.Raw]


class RecordRules(msgspec.Struct, frozen=True):
    """How a job's records become requests; none of the first three given, lines are requests of ours."""

    template: str | None = None
    text_column: str | None = None
    id_column: str | None = None
    encoding: str | None = None  # of texts without a byte-order mark
    lines: bool | None = None  # whether each line of a text is a prompt; None: nobody said

    @property
    def given(self) -> bool:
        return not (self.template is self.text_column is self.id_column is None)


class RecordMaker:
    """Makes the requests of one drop, each of ``max_bytes`` at most; ``columns`` where all records have the same.

    Raises ConfigError where the rules name a field that is not among the columns, or no column can be taken for the
    prompt.
    """

    def __init__(self, rules: RecordRules, max_bytes: int, columns: Sequence[str] | None = None) -> None:
        self._max_bytes = max_bytes
        self._id_fields = [rules.id_column] if rules.id_column else list(_ID_FIELDS)
        self._parts = template_parts(rules.template) if rules.template else []
        self._texts = [rules.text_column] if rules.text_column else []  # the fields that make the prompt
        self._notes: list[str] = []
        if columns is not None:
            self._check(rules, columns)

    def _check(self, rules: RecordRules, columns: Sequence[str]) -> None:
        wanted = {field for _, field in self._parts if field} | {rules.text_column, rules.id_column} - {None}
        if missing := sorted(name for name in wanted if name and name not in columns):
            raise ConfigError(f"it has no column {quoted(missing)}; it has {quoted(columns)}", code="columns")
        by_name = {name.lower(): name for name in reversed(columns)}
        if not rules.id_column:
            self._id_fields = [by_name[name] for name in _ID_FIELDS if name in by_name]
        if self._parts or self._texts:
            return
        self._texts = _text_columns(by_name, columns)
        others = [name for name in columns if name not in (*self._texts, *self._id_fields)]
        if others and self._texts[0].lower() not in _DOCUMENTED and len(columns) > 1:
            made = f"the prompt is {quoted(self._texts)}"
            self._notes = [f"{made}; --template puts other columns into it: {quoted(others)}"]

    def of_json(self, raw: bytes) -> bytes:
        """The request made of one JSON object. Raises RequestRefused where it is none, or lacks a field."""
        decoded(raw)  # fields that are passed on unread are not checked otherwise
        try:
            record, notes = fields_of(raw)
        except RecursionError as error:
            raise RequestRefused("bad_json", str(error)) from None
        return self.request(record, record, notes)

    def request(self, record: Record, passed_on: Record, notes: Sequence[str] = ()) -> bytes:
        """The request made of ``record``, as a line of a request file; ``passed_on`` comes back with the result, and
        ``notes`` with it.

        Raises RequestRefused where it lacks a field.
        """
        made = {"prompt": self._prompt(record), PASSED_ON: passed_on} | self._id(record)
        return _encode(made | {PASSED_NOTES: [*self._notes, *notes]} if self._notes or notes else made)

    def refused(self, record: Record | msgspec.Raw) -> bytes:
        """A line of a request file for a refused record: its id, and the fields that come back with the failure."""
        if not isinstance(record, msgspec.Raw):
            return passed_on_alone(record, self._id(record))
        try:
            return passed_on_alone(record, self._id(raw_fields(record)))
        except (ValueError, RecursionError):
            label = label_within(bytes(record), self._id_fields)
            return passed_on_alone({}, {"id": label} if label else None)

    def refused_row(self, cells: Mapping[str, str]) -> bytes:
        """The same for cells of a row that has too many or too few: an id counts where it is the first one."""
        first = next(iter(cells), "")
        return passed_on_alone(cells, self._id(cells) if first in self._id_fields else None)

    def _id(self, record: Record) -> dict[str, str]:
        label = next((label for name in self._id_fields if (label := _label(record.get(name)))), None)
        return {} if label is None else {"id": label}

    def _prompt(self, record: Record) -> str:
        if not self._parts:
            fields = self._texts or _asked(record)
            return "\n\n".join(filter(None, (self._value(record, field) for field in fields)))
        pieces, size = [], 0
        for literal, field in self._parts:
            piece = literal if field is None else self._value(record, field)
            size += len(piece)
            if size > self._max_bytes:
                raise RequestRefused("line_too_long", f"the prompt is longer than max_line_bytes ({self._max_bytes})")
            pieces.append(piece)
        return "".join(pieces)

    def _value(self, record: Record, field: str) -> str:
        value = record.get(field)
        if value is None:
            raise RequestRefused("missing_field", f'there is no field "{field}" in it; it has {quoted(list(record))}')
        if not isinstance(value, str) and bytes(value) == b"null":
            raise RequestRefused("missing_field", f'the field "{field}" is null')
        try:
            return _as_text(value)
        except msgspec.DecodeError as error:
            raise RequestRefused("bad_json", f'the field "{field}": {not_json(error)}') from None


def passed_on_alone(record: Record | msgspec.Raw, more: Mapping[str, str] | None = None) -> bytes:
    """A line of a request file for a piece that is refused: the fields that come back with the failure."""
    return _encode({PASSED_ON: record, **(more or {})})


def _text_columns(by_name: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    """The columns that make the prompt where nobody says which."""
    for wanted in TEXT_NAMES:
        if wanted in by_name:
            return instructed_columns(by_name) if wanted == "instruction" else [by_name[wanted]]
    if len(columns) == 1:
        return list(columns)
    raise ConfigError(
        f"it has the columns {quoted(columns)}: say which one is the prompt with --text-column, or text_column or "
        "template in job.toml",
        code="columns",
    )


def _asked(record: Record) -> list[str]:
    """The fields that make the prompt of a record where nobody says which; the reader of lines takes the same."""
    filled = {name: name for name in (*TEXT_NAMES, *MATERIAL) if _is_filled(record.get(name))}
    found = next(
        (name for name in TEXT_NAMES if name in filled), "instruction" if "instruction" in record else "prompt"
    )
    return instructed_columns(filled | {found: found}) if found == "instruction" else [found]


def _is_filled(value: str | msgspec.Raw | None) -> bool:
    return (
        bool(value) if value is None or isinstance(value, str) else bytes(value) not in (b"null", b'""', b"[]", b"{}")
    )


def _label(value: str | msgspec.Raw | None) -> str:
    """An id as text; empty where there is none, or no plain one."""
    if value is None or (not isinstance(value, str) and bytes(value).startswith((b"{", b"[", b"null"))):
        return ""
    try:
        return _as_text(value)
    except msgspec.DecodeError:
        return ""


def _as_text(value: str | msgspec.Raw) -> str:
    """A text as it is, any other value as its JSON."""
    if isinstance(value, str):
        return value
    text = bytes(value)
    return _text.decode(text) if text.startswith(b'"') else text.decode()
