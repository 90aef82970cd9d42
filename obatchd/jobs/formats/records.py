"""Records that are no requests of ours, made into requests: by a template, or by naming the field that is the prompt.

A record is data: none of its fields is taken for a setting, whatever it is called, and all come back with the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from obatchd.errors import ConfigError
from obatchd.jobs.formats.request import PASSED_ON
from obatchd.jobs.formats.source import decoded, raw_fields
from obatchd.jobs.model import RequestRefused
from obatchd.prompts.template import template_parts

_TEXT_FIELDS = ("prompt", "text", "content")
_ID_FIELDS = ("id", "custom_id")
_NAMES_SHOWN = 12
_NAME_CHARACTERS = 100
_encode = msgspec.json.Encoder().encode
_text = msgspec.json.Decoder(str)

Record = Mapping[str, str | msgspec.Raw]


class RecordRules(msgspec.Struct, frozen=True):
    """How a job's records become requests; none of them given, lines are requests of ours."""

    template: str | None = None
    text_column: str | None = None
    id_column: str | None = None

    @property
    def given(self) -> bool:
        return self != RecordRules()


class RecordMaker:
    """Makes the requests of one drop, each of ``max_bytes`` at most; ``columns`` where all records have the same.

    Raises ConfigError where the rules name a field that is not among the columns, or no column can be taken for the
    prompt.
    """

    def __init__(self, rules: RecordRules, max_bytes: int, columns: Sequence[str] | None = None) -> None:
        self._max_bytes = max_bytes
        self._id_fields = (rules.id_column,) if rules.id_column else _ID_FIELDS
        self._fixed = rules.text_column
        self._parts = template_parts(rules.template) if rules.template else []
        if columns is not None:
            self._check(rules, columns)

    def _check(self, rules: RecordRules, columns: Sequence[str]) -> None:
        wanted = {field for _, field in self._parts if field} | {rules.text_column, rules.id_column} - {None}
        if missing := sorted(name for name in wanted if name and name not in columns):
            raise ConfigError(f"it has no column {_quoted(missing)}; it has {_quoted(columns)}", code="columns")
        if not self._parts and not self._fixed:
            self._fixed = _text_column(columns)

    def of_json(self, raw: bytes) -> bytes:
        """The request made of one JSON object. Raises RequestRefused where it is none, or lacks a field."""
        try:
            decoded(raw)  # fields that are passed on unread are not checked otherwise
            record = raw_fields(raw)
        except msgspec.ValidationError:
            raise RequestRefused("wrong_type", "it is not a JSON object") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise RequestRefused("bad_json", str(error)) from None
        return self.request(record, record)

    def request(self, record: Record, passed_on: Record) -> bytes:
        """The request made of ``record``, as a line of a request file; ``passed_on`` comes back with the result.

        Raises RequestRefused where it lacks a field.
        """
        return _encode({"prompt": self._prompt(record), PASSED_ON: passed_on} | self._id(record))

    def refused(self, record: Record | msgspec.Raw) -> bytes:
        """A line of a request file for a refused record: its id, and the fields that come back with the failure."""
        try:
            fields = raw_fields(record) if isinstance(record, msgspec.Raw) else record
        except (ValueError, RecursionError):
            fields = {}
        return passed_on_alone(record, self._id(fields))

    def _id(self, record: Record) -> dict[str, str]:
        label = next((label for name in self._id_fields if (label := _label(record.get(name)))), None)
        return {} if label is None else {"id": label}

    def _prompt(self, record: Record) -> str:
        if not self._parts:
            return self._value(record, self._fixed or next((f for f in _TEXT_FIELDS if f in record), _TEXT_FIELDS[0]))
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
            raise RequestRefused("missing_field", f'there is no field "{field}" in it; it has {_quoted(list(record))}')
        if not isinstance(value, str) and bytes(value) == b"null":
            raise RequestRefused("missing_field", f'the field "{field}" is null')
        try:
            return _as_text(value)
        except msgspec.DecodeError as error:
            raise RequestRefused("bad_json", f'the field "{field}": {error}') from None


def passed_on_alone(record: Record | msgspec.Raw, more: Mapping[str, str] | None = None) -> bytes:
    """A line of a request file for a piece that is refused: the fields that come back with the failure."""
    return _encode({PASSED_ON: record, **(more or {})})


def _text_column(columns: Sequence[str]) -> str:
    by_name = {name.lower(): name for name in reversed(columns)}
    for wanted in _TEXT_FIELDS:
        if wanted in by_name:
            return by_name[wanted]
    if len(columns) == 1:
        return columns[0]
    raise ConfigError(
        f"it has the columns {_quoted(columns)}: say which one is the prompt with --text-column, or text_column or "
        "template in job.toml",
        code="columns",
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


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name[:_NAME_CHARACTERS]}"' for name in names[:_NAMES_SHOWN])
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "") if names else "none"
