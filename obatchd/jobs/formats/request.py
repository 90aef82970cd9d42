"""One request as its author wrote it."""

from __future__ import annotations

from typing import Any

import msgspec

from obatchd.jobs.formats.openai import batch_fields, embed_problem, is_batch_line
from obatchd.jobs.formats.source import raw_fields

# An object that comes back under ``input`` as it is, whatever its names are: how records are passed on.
PASSED_ON = "input_fields"


class _Asked(msgspec.Struct, frozen=True):
    """Fields that a parsed request has as they stand."""

    system: str | None = None
    model: str | None = None
    priority: str | None = None
    context_length: int | None = None
    max_response_tokens: int | None = None
    format: str | dict[str, Any] | None = None
    in_source: list[str] | None = None
    think: bool | str | None = None
    keep_alive: Any = None  # of no effect; its author is told so


class _Label(msgspec.Struct):
    id: str | int | float | bool | None = None
    custom_id: str | int | float | bool | None = None


class Known(_Asked, frozen=True):
    """The fields that are ours, as they stand."""

    id: str | int | float | bool | None = None
    custom_id: str | int | float | bool | None = None
    prompt: str | None = None
    content: str | None = None
    role: str | None = None
    messages: list[dict[str, Any]] | None = None
    options: dict[str, Any] | None = None
    images: list[str] | None = None
    urls: list[str] | None = None
    files: list[str] | None = None


class Request(_Asked, frozen=True):
    """A parsed request. ``input`` holds the fields that are not ours, as JSON; they come back in the result."""

    id: str | None = None
    prompt: str = ""
    role: str = "user"
    messages: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    images: list[str] = []
    embed: str | list[str] | None = None  # texts to be made into vectors instead of answered
    dimensions: int | None = None  # of the vectors
    encoding: str = ""  # of vectors in the lines of a batch file: float or base64
    tools: list[dict[str, Any]] = []  # functions that the model may ask for; of batch files
    url: str = ""  # of a line of an OpenAI batch file
    urls: list[str] = []  # sources to be put in front of the prompt
    files: list[str] = []  # the same, of the dropped folder
    input: dict[str, msgspec.Raw] = {}


_OURS = frozenset(Known.__struct_fields__)
_EMBEDDED = _OURS | {"input"}
whole_fields = msgspec.json.Decoder(Known).decode
_SHARED = frozenset({"system", "format", "response_format", "think", "options", "tools"})
_OF_ONE = frozenset({"messages", "input", "prompt", "user", "metadata"})  # in the body of a batch line
_sorted = msgspec.json.Encoder(order="sorted").encode
_label = msgspec.json.Decoder(_Label)


def label_of(known: Known | _Label) -> str | None:
    """The author's id of a request; None when it has none."""
    given = known.id if known.id is not None else known.custom_id
    return None if given is None else str(given) or None


def request_id(raw: bytes) -> str | None:
    """The id in one line of a request file, None where there is none or the line is no request."""
    try:
        return label_of(_label.decode(raw))
    except (ValueError, RecursionError):
        return None


def parse_request(raw: bytes) -> Request:
    """The request in one line of a request file: the full parse, done by the worker process.

    Fields that are not ours are passed on byte for byte: a number too large for us comes back as it was. Raises
    ValueError where the line is not a request (msgspec.DecodeError is one).
    """
    whole = whole_fields(raw)
    messages = whole.messages or []
    prompt = whole.prompt or whole.content
    embed: str | list[str] | None = None
    if prompt is None:
        if not messages:
            fields = raw_fields(raw)
            if is_batch_line(fields):
                return parse_batch_request(raw)
            embed = embed_texts(fields)
        prompt = embed if isinstance(embed, str) else _last_said(messages)
    return Request(
        id=label_of(whole),
        prompt=prompt or "",
        role=whole.role or "user",
        messages=messages,
        options=whole.options or {},
        images=whole.images or [],
        embed=embed,
        urls=whole.urls or [],
        files=whole.files or [],
        input=_input(raw, _EMBEDDED if embed is not None else _OURS),
        **{name: getattr(whole, name) for name in _Asked.__struct_fields__},
    )


def _last_said(messages: list[dict[str, Any]]) -> str:
    return next((str(m.get("content", "")) for m in reversed(messages) if m.get("role") == "user"), "")


def parse_batch_request(raw: bytes) -> Request:
    """The request in one line of an OpenAI batch file. Raises RequestRefused where it is none."""
    given = {name: value for name, value in batch_fields(raw).items() if value is not None}
    text = given.get("embed")
    prompt = text if isinstance(text, str) else _last_said(given.get("messages", []))
    return Request(**{"prompt": prompt, **given})


def embed_texts(fields: dict[str, msgspec.Raw]) -> str | list[str] | None:
    """The texts of a request for vectors, ``{"input": …}``; None where it is none.

    Raises ValueError where it is one, and they cannot be embedded.
    """
    if "input" not in fields:
        return None
    texts = msgspec.json.decode(fields["input"])
    if problem := embed_problem(texts):
        raise ValueError(problem)
    found: str | list[str] = texts
    return found


def _input(raw: bytes, ours: frozenset[str] = _OURS) -> dict[str, msgspec.Raw]:
    fields = {name: value for name, value in raw_fields(raw).items() if name not in ours}
    passed_on = fields.get(PASSED_ON)
    if passed_on is not None and bytes(passed_on).startswith(b"{"):
        del fields[PASSED_ON]
        fields |= raw_fields(passed_on)
    return fields


def shared_settings(raw: bytes) -> bytes:
    """The settings in one line of a request file that other lines may have as well, as JSON.

    The same settings give the same bytes; empty where it has none or is no request.
    """
    try:
        fields = raw_fields(raw)
        if is_batch_line(fields):
            body = raw_fields(fields["body"])
            fields = {name: value for name, value in body.items() if name not in _OF_ONE}
        else:
            fields = {name: value for name, value in fields.items() if name in _SHARED}
    except (ValueError, RecursionError):
        return b""
    return _sorted(fields) if fields else b""


def request_prompt(raw: bytes) -> str:
    """The prompt in one line of a request file; empty where it has none or is no request."""
    try:
        return parse_request(raw).prompt
    except (ValueError, RecursionError):
        return ""


def unused_fields(raw: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a line that come back in its result; none where it is no JSON object."""
    try:
        raw.decode("utf-8")
        return _input(raw)
    except (ValueError, RecursionError):
        return {}
