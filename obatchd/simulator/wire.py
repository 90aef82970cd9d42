"""Reading requests as Go's JSON decoder and Ollama's handlers do, with their error texts (v0.24)."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from obatchd.simulator import golog
from obatchd.simulator.scheduler import FOREVER_S, ServeError

_GO_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "bool"),
    (int, "number"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)
_FIELDS: dict[str, tuple[type, str]] = {
    "model": (str, "string"),
    "name": (str, "string"),
    "prompt": (str, "string"),
    "system": (str, "string"),
    "suffix": (str, "string"),
    "template": (str, "string"),
    "raw": (bool, "bool"),
    "stream": (bool, "bool"),
    "truncate": (bool, "bool"),
    "shift": (bool, "bool"),
    "messages": (list, "[]api.Message"),
    "options": (dict, "map[string]interface {}"),
}
_INTEGER = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k")
_FLOAT = ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")
_OPTIONS: dict[str, tuple[tuple[type, ...], str]] = {
    **{name: ((int, float), "integer") for name in _INTEGER},
    **{name: ((int, float), "float32") for name in _FLOAT},
    "repeat_last_n": ((int, float), "integer"),
    "use_mmap": ((bool,), "boolean"),
    "stop": ((list,), "array"),
}
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"^[-+]?((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+$")
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")


def decode(body: bytes, struct: str) -> dict[str, Any]:
    """The request as a dictionary whose known fields have the right types.

    Args:
        struct: Go's name of the request type, for the error texts.

    Raises:
        ServeError: 400 with the text of Go's decoder.
    """
    if not body.strip():
        raise ServeError(400, "missing request body")
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ServeError(400, _syntax_error(body.decode("utf-8", "replace"))) from None
    if not isinstance(asked, dict):
        raise ServeError(400, f"json: cannot unmarshal {_go_type(asked)} into Go value of type api.{struct}")
    for name, value in asked.items():
        expected = _FIELDS.get(name)
        if expected is not None and value is not None and type(value) is not expected[0]:
            where = f"Go struct field {struct}.{name} of type {expected[1]}"
            raise ServeError(400, f"json: cannot unmarshal {_go_type(value)} into {where}")
    return {name: value for name, value in asked.items() if value is not None}


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Known options only, integers as integers.

    Raises:
        ServeError: 500 for a wrong type, as Ollama says it.
    """
    known: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _OPTIONS:
            golog.slog("WARN", "types.go:992", "invalid option provided", option=name)
            continue
        types, word = _OPTIONS[name]
        if value is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ServeError(500, f'option "{name}" must be of type {word}')
        known[name] = int(value) if word == "integer" and isinstance(value, float) else value
    return known


def keep_alive_s(value: Any) -> float | None:
    """Seconds; ``None`` when the request does not say.

    Raises:
        ServeError: 400 for text that is no Go duration, or another type.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        kind = {dict: "map[string]interface {}", list: "[]interface {}", bool: "bool"}[type(value)]
        raise ServeError(400, f"Unsupported type: '{kind}'")
    seconds = go_duration_s(value) if isinstance(value, str) else float(value)
    return FOREVER_S if seconds < 0 else seconds


def go_duration_s(text: str) -> float:
    """Seconds of a Go duration such as ``1h30m``.

    Raises:
        ServeError: 400 in Go's words.
    """
    if _DURATION.match(text):
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))
        return -seconds if text.startswith("-") else seconds
    if text.strip("+-") == "0":
        return 0.0
    if re.fullmatch(r"[-+]?\d+\.?\d*", text):
        raise ServeError(400, f'time: missing unit in duration "{text}"')
    raise ServeError(400, f'time: invalid duration "{text}"')


def _syntax_error(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        if not rest.strip() or error.msg.startswith("Unterminated"):
            return "unexpected EOF"
        wanted = {
            "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
            "Expecting ':' delimiter": "after object key",
            "Expecting ',' delimiter": "after object key:value pair",
            "Extra data": "after top-level value",
        }.get(error.msg, "looking for beginning of value")
        found = '\\"' if rest[0] == "'" else rest[0]
        return f"invalid character '{found}' {wanted}"
    return "invalid character in string literal"


def _go_type(value: Any) -> str:
    return next((name for kind, name in _GO_TYPES if isinstance(value, kind)), "null")
