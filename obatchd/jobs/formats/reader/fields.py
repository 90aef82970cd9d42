"""The fields of one JSON object. Each is decoded when it is asked for; the others keep their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from obatchd.jobs.formats.source import raw_fields
from obatchd.jobs.model import MOST_REPEATS, RequestRefused
from obatchd.words import not_json

# Beside an object of a retry: the numbers of its answers that are asked for again.
PASSED_REPEATS = "input_repeats"
IF_DATA = "; if the lines are data, submit them with --text-column or --template: no field is a setting then"
_SHOWN_CHARACTERS = 60
_NAMES_SHOWN = 12
_NAME_CHARACTERS = 100
# Patterns for lines of many megabytes: one match does not take long, and nothing is kept for what stays as it is. They
# repeat no group possessively: Python before 3.11.5 goes on from where such a group failed (gh-106052).
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(  # with one beginning for both, which is found much faster than two
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!%b)|(?<!%b\\u[dD])[c-fC-F][0-9a-fA-F]{2})" % (_LOW, _HIGH)
)
_TEXT_OR_NO_NUMBER = re.compile(rb'"[^"]*+"?|(-?(?:NaN|Infinity)\b)')
_LABEL = rb'"(?:%b)"\s*+:\s*+(?:"((?:[^"\\]|\\.){1,200}+)"|(-?[0-9][0-9.eE+-]{0,200}+))'
# Names of ids, the first one first, and the object beside which one counts: those of lines of batch files.
_LABELS = (("custom_id", "body"), ("id", None), ("custom_id", None), ("recordId", "modelInput"), ("key", "request"))
# Before the names of odd fields that do not stand beside the prompt.
OPTION, LEFT_OUT, OUTSIDE = "options.", "body.", "line."
_value = msgspec.json.Decoder().decode
_string = msgspec.json.Decoder(str).decode
_numbers = msgspec.json.Decoder(list[int]).decode
_encode = msgspec.json.Encoder().encode


class Fields:
    """Fields of a request, or of the body in a line of a batch file; those that are ``taken`` are used already.

    ``notes`` are for its author. Where it is ``strict``, as batch files are, what cannot be done is refused; elsewhere
    it is noted. ``odd`` names those that may be meant otherwise.
    """

    __slots__ = ("_taken", "_values", "notes", "odd", "raw", "strict")

    def __init__(
        self, raw: dict[str, msgspec.Raw], notes: list[str], taken: Iterable[str] = (), *, strict: bool = False
    ) -> None:
        self.raw = raw
        self.notes = notes
        self.strict = strict
        self.odd: tuple[str, ...] = ()
        self._taken = set(taken)
        self._values: dict[str, Any] = {}

    def peek(self, name: str) -> Any:
        """The value of ``name``; None where there is none, or it is null."""
        if name not in self._values:
            if name not in self.raw:
                return None
            self._values[name] = value_of(self.raw[name])
        return self._values[name]

    def take(self, name: str) -> Any:
        """As :meth:`peek`; the field is used then, and does not come back with the result."""
        self._taken.add(name)
        return self.peek(name) if name in self.raw else None

    def give_back(self, name: str) -> None:
        """A field that was taken is data after all."""
        self._taken.discard(name)

    def rest(self) -> dict[str, msgspec.Raw]:
        """The fields that nobody took, byte for byte."""
        return {name: value for name, value in self.raw.items() if name not in self._taken}

    def wrong(self, name: str, must_be: str, value: Any) -> RequestRefused:
        """The refusal of a field whose value has another kind than it ``must_be``."""
        return RequestRefused(
            "wrong_type", f"{name} must be {must_be}, not {shown(value)}" + ("" if self.strict else IF_DATA)
        )

    def cannot(self, name: str, why: str) -> None:
        """Something asked for that Ollama cannot do."""
        if self.strict:
            raise RequestRefused("not_supported", f"{name} is not supported: {why}")
        self.notes.append(f"{name} is left out: {why}")


def value_of(raw: msgspec.Raw) -> Any:
    """The value in the bytes of a field."""
    try:
        return _value(raw)
    except msgspec.ValidationError:  # a number that is too large for us: it is passed on as it is, or refused
        return math.inf


def fields_of(raw: bytes) -> tuple[dict[str, msgspec.Raw], list[str]]:
    """The fields of one JSON object, and notes on what had to be mended in it.

    Programs write NaN, and halves of characters that they cut: no JSON, but what is meant is certain. Raises
    RequestRefused where it is no JSON object, RecursionError where it is nested too deeply.
    """
    notes: list[str] = []
    if b"\\" in raw and b"\\u" in raw and _SURROGATE.search(raw):  # one byte is found much faster than two
        raw = _mended(raw, notes)
    try:
        return raw_fields(raw), notes
    except msgspec.ValidationError:
        raise RequestRefused("wrong_type", f"it is not a JSON object, but {shown(msgspec.Raw(raw))}") from None
    except msgspec.DecodeError as error:
        if (mended := _mended(raw, notes)) != raw:
            return fields_of(mended)[0], notes
        raise RequestRefused("bad_json", not_json(error, raw)) from None


def begins_object(text: bytes) -> bool:
    """Whether a text may be the beginning of a JSON object, or of objects one after the other, as far as it goes."""
    for candidate in (text, _mended(text, [])):
        try:
            raw_fields(candidate)
        except msgspec.ValidationError:
            return False
        except msgspec.DecodeError as error:
            if "truncated" not in str(error) and "trailing" not in str(error):
                continue
        except RecursionError:
            return False
        return True
    return False


def _mended(raw: bytes, notes: list[str]) -> bytes:
    """``raw`` with U+FFFD in place of halves of characters, and null in place of NaN and infinite numbers."""
    if _SURROGATE.search(raw):
        plain = raw.replace(rb"\\", b"__")  # every other backslash begins an escape
        whole = _replaced(raw, _HALF.finditer(plain), rb"\ufffd")
        if whole != raw:
            raw = whole
            notes.append("half of a character in it is read as U+FFFD")
    if b"NaN" in raw or b"Infinity" in raw:
        plain = raw.replace(rb"\\", b"__").replace(rb"\"", b"__")  # every other quotation mark begins or ends a text
        whole = _replaced(raw, (found for found in _TEXT_OR_NO_NUMBER.finditer(plain) if found[1]), b"null")
        if whole != raw:
            raw = whole
            notes.append("NaN or Infinity in it is read as null")
    return raw


def _replaced(raw: bytes, found: Iterable[re.Match[bytes]], by: bytes) -> bytes:
    """``raw`` with ``by`` in the places of what was found in a text as long as it."""
    whole, end = bytearray(), 0
    for match in found:
        whole += raw[end : match.start()]
        whole += by
        end = match.end()
    whole += raw[end:]
    return bytes(whole)


def label_of(fields: dict[str, msgspec.Raw]) -> str | None:
    """The author's id of a request; None where there is none. Raises RequestRefused where it can be none."""
    for name, beside in _LABELS:
        raw = fields.get(name)
        if raw is None or (beside is not None and not is_object(fields.get(beside))):
            continue
        given = bytes(raw)
        if given.startswith(b'"'):
            if label := _string(given):
                return label
            continue
        if given.startswith((b"{", b"[")):
            raise RequestRefused("wrong_type", f"{name} must be a text or a number, not {shown(raw)}")
        if given != b"null":
            return given.decode()
    return None


def again_of(fields: dict[str, msgspec.Raw]) -> tuple[int, ...]:
    """The numbers of the answers that a retry asks for; none where the line says nothing of them."""
    raw = fields.get(PASSED_REPEATS)
    if raw is None:
        return ()
    try:
        return tuple(sorted({number for number in _numbers(raw) if 0 < number <= MOST_REPEATS}))
    except (ValueError, RecursionError):
        return ()  # a field of the author's that happens to be called so


def label_in(raw: bytes) -> str | None:
    """The id in a line that may be no request, as far as it can be made out."""
    try:
        return label_of(fields_of(raw)[0])
    except (ValueError, RecursionError):
        return label_within(raw, ("custom_id", "id", "recordId"))


def label_within(raw: bytes, names: Iterable[str]) -> str | None:
    """The first value of one of the fields ``names`` in what is no whole JSON object."""
    match = re.search(_LABEL % b"|".join(re.escape(name.encode()) for name in names), raw)
    if match is None:
        return None
    if match[2] is not None:
        return match[2].decode()
    try:
        return _string(b'"' + match[1].decode("utf-8", "replace").encode() + b'"') or None
    except ValueError:
        return None


def parsed(text: str) -> Any:
    """JSON in a text, as cells of tables hold it; else the text."""
    try:
        return _value(text)
    except (ValueError, RecursionError):
        return text


def is_object(raw: msgspec.Raw | None) -> bool:
    """Whether a value that was not decoded is a JSON object."""
    return raw is not None and bytes(memoryview(raw)[:1]) == b"{"


def shown(value: Any) -> str:
    """A value as JSON, for a message; a long one is cut."""
    text = _encode(value).decode("utf-8", "replace")
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def quoted(names: Iterable[str]) -> str:
    """Names of fields for a message."""
    names = list(names)
    listed = ", ".join(f'"{name[:_NAME_CHARACTERS]}"' for name in names[:_NAMES_SHOWN])
    return (listed + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")) or "none"
