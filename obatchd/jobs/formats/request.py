"""One request as its author wrote it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from obatchd.jobs.formats.reader.batch import batch_request, envelope, responses
from obatchd.jobs.formats.reader.fields import (
    OPTION,
    PASSED_REPEATS,
    Fields,
    again_of,
    fields_of,
    is_object,
    label_in,
    label_of,
    value_of,
)
from obatchd.jobs.formats.reader.said import BESIDE_PROMPTS, is_prompt, last_said, said
from obatchd.jobs.formats.reader.settings import KNOWN, settings
from obatchd.jobs.formats.source import raw_fields
from obatchd.jobs.model import RequestRefused

if TYPE_CHECKING:
    from obatchd.jobs.formats.field_notes import FieldNotes

# An object that comes back under ``input`` as it is, whatever its names are: how records are passed on.
PASSED_ON = "input_fields"
# Notes for the author of a record, beside it.
PASSED_NOTES = "input_notes"
_LABELS = ("id", "custom_id")
# A line with none of these fields has nothing but ids, a prompt and data: most have.
_SPECIAL = BESIDE_PROMPTS | KNOWN | {PASSED_ON, PASSED_REPEATS}
_SIMPLE = (*_LABELS, "prompt")
# Fields of ours that a refused line has; the others come back with the failure.
_OURS = frozenset(
    {*_LABELS, "prompt", "content", "role", "messages", "options", "images", "urls", "files", "system", "model",
     "priority", "context_length", "max_response_tokens", "format", "in_source", "think", "keep_alive"}
)  # fmt: skip
_OF_RESPONSES = frozenset({"instructions", "max_output_tokens", "reasoning", "text"})
_NO_RESPONSES = frozenset({"prompt", "messages", "content", "instruction", "question"})


class Request(msgspec.Struct, frozen=True):
    """A parsed request. ``input`` holds the fields that are not ours, as JSON; they come back in the result."""

    id: str | None = None
    system: str | None = None
    model: str | None = None
    priority: str | None = None
    context_length: int | None = None
    max_response_tokens: int | None = None
    format: str | dict[str, Any] | None = None
    in_source: list[str] | None = None
    think: bool | str | None = None
    keep_alive: Any = None  # of no effect; its author is told so
    prompt: str = ""
    role: str = "user"
    messages: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    images: list[str] = []
    embed: str | list[str] | None = None  # texts to be made into vectors instead of answered
    dimensions: int | None = None  # of the vectors
    encoding: str = ""  # of vectors in the lines of a batch file: float or base64
    tools: list[dict[str, Any]] = []  # functions that the model may ask for
    n: int = 1  # answers to the prompt, which are one result
    again: tuple[
        int, ...
    ] = ()  # of a retry: the numbers of its answers that are asked for; else all of its job's ``repeat``
    url: str = ""  # of a line of a batch file
    urls: list[str] = []  # sources to be put in front of the prompt
    files: list[str] = []  # the same, of the dropped folder
    input: dict[str, msgspec.Raw] = {}
    notes: list[str] = []  # for its author: what was left out, or may be meant otherwise


_SHARED = frozenset({"system", "format", "response_format", "think", "options", "tools"})
_OF_ONE = frozenset({"messages", "input", "prompt", "user", "metadata"})  # in the body of a batch line
_sorted = msgspec.json.Encoder(order="sorted").encode


def request_id(raw: bytes) -> str | None:
    """The id in one line of a request file, as far as it can be made out; None where there is none."""
    return label_in(raw)


def parse_request(raw: bytes, field_notes: FieldNotes | None = None) -> Request:
    """The request in one line of a request file, plain or of a batch file: the one reader of all lines.

    ``field_notes`` hear of fields that may be meant otherwise. Fields that are not ours are passed on byte for byte: a
    number too large for us comes back as it was. Raises RequestRefused where the line is not a request, RecursionError
    where it is nested too deeply.
    """
    fields, notes = fields_of(raw)
    if "prompt" in fields:
        known = field_notes is not None and fields.keys() <= field_notes.data
        if (known or _SPECIAL.isdisjoint(fields)) and is_prompt(prompt := value_of(fields["prompt"])):
            data = {name: value for name, value in fields.items() if name not in _SIMPLE}
            if field_notes is not None and not known:
                field_notes.look(data)
            return Request(id=label_of(fields), prompt=prompt, input=data, notes=notes)
    if (name := envelope(fields)) is not None:
        return _of_batch(fields, notes, name, field_notes)
    return _plain(Fields(fields, notes, _LABELS), field_notes)


def parse_batch_request(raw: bytes, field_notes: FieldNotes | None = None) -> Request:
    """The request in one line of a batch file. Raises RequestRefused, with a code of that API's, where it is none."""
    try:
        fields, notes = fields_of(raw)
    except (RequestRefused, RecursionError) as error:
        raise RequestRefused("invalid_json_line", str(error)) from None
    return _of_batch(fields, notes, envelope(fields), field_notes)


def _of_batch(
    fields: dict[str, msgspec.Raw], notes: list[str], name: str | None, field_notes: FieldNotes | None
) -> Request:
    found = batch_request(fields, notes, name, field_notes)
    return Request(**{name: value for name, value in found.items() if value is not None})


def _plain(fields: Fields, field_notes: FieldNotes | None) -> Request:
    label = label_of(fields.raw)
    given = settings(fields)
    given |= responses(fields) if is_of_responses(fields) else said(fields)
    if "messages" in given:
        given["prompt"] = last_said(given["messages"])
        if given.get("system") and any(message["role"] == "system" for message in given["messages"]):
            fields.notes.append('"system" is left out: the messages have a system message of their own')
    if again := again_of(fields.raw):
        fields.take(PASSED_REPEATS)
    data = _input(fields)
    if field_notes is not None and (data or fields.odd) and PASSED_ON not in fields.raw:
        if data and not data.keys() <= field_notes.data:
            field_notes.look(data.keys() - _SPECIAL)  # a name of these is no data in every line
        # Bodies of chats have settings under such names.
        odd = fields.odd if "messages" not in given else tuple(name for name in fields.odd if name.startswith(OPTION))
        if odd:
            field_notes.odd(odd)
    return Request(id=label, input=data, notes=fields.notes, again=again, **given)


def is_of_responses(fields: Fields) -> bool:
    """Whether the line is the body of a call of ``/v1/responses``, whose prompt is called ``input``."""
    raw = fields.raw
    if "input" not in raw or not raw.keys() & _OF_RESPONSES or raw.keys() & _NO_RESPONSES:
        return False
    return "text" not in raw or is_object(raw["text"])  # a text is the prompt of a row of data


def _input(fields: Fields) -> dict[str, msgspec.Raw]:
    found = fields.rest()
    passed_on = found.get(PASSED_ON)
    if passed_on is not None and is_object(passed_on):
        del found[PASSED_ON]
        notes = fields.peek(PASSED_NOTES)
        if isinstance(notes, list) and all(isinstance(note, str) for note in notes):
            del found[PASSED_NOTES]
            fields.notes += notes
        found |= raw_fields(passed_on)
    return found


def with_repeats(raw: bytes, numbers: Iterable[int]) -> bytes:
    """The request in ``raw``, one line of a request file, for a job that asks only for these of its answers."""
    return raw.rstrip()[:-1] + b',"%b":%b}' % (PASSED_REPEATS.encode(), _sorted([*numbers]))


def shared_settings(raw: bytes) -> bytes:
    """The settings in one line of a request file that other lines may have as well, as JSON.

    The same settings give the same bytes; empty where it has none or is no request.
    """
    try:
        fields = fields_of(raw)[0]
        if body := envelope(fields):
            fields = {name: value for name, value in raw_fields(fields[body]).items() if name not in _OF_ONE}
        else:
            fields = {name: value for name, value in fields.items() if name in _SHARED}
    except (ValueError, RecursionError):
        return b""
    return _sorted(fields) if fields else b""


def request_prompt(raw: bytes) -> str:
    """The prompt in one line of a request file, be the rest of it wrong; empty where it has none."""
    with contextlib.suppress(ValueError, RecursionError):
        return parse_request(raw).prompt
    with contextlib.suppress(ValueError, RecursionError):
        found = said(Fields(fields_of(raw)[0], []))
        return str(found.get("prompt") or last_said(found.get("messages", [])))
    return ""


def unused_fields(raw: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a line that come back in its result; none where it is no JSON object."""
    try:
        raw.decode("utf-8")
        fields = Fields(fields_of(raw)[0], [], _OURS)
    except (ValueError, RecursionError):
        return {}
    try:
        return parse_request(raw).input
    except (ValueError, RecursionError):
        return _input(fields)
