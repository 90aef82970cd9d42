"""The answers of the stand-in.

Text that begins with a digest of the prompt, so that a test can tell whose answer it is.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec

from obatchd.simulator import grammar
from obatchd.simulator.config import Distribution

_TEXT = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or had by hot word "
    "but what some we can out other were all there when up use your how said an each she which do their time if will"
)
_WORDS = _TEXT.split()
_DEPTH_LIMIT = 32


def digest(prompt: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the last user message."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def tokens(prompt_digest: str, seed: object, length: Distribution, format_: Any) -> list[str]:
    """The pieces of the answer to a prompt, the same for the same prompt, seed and settings.

    Args:
        prompt_digest: from :func:`digest`.
        seed: the request's ``seed`` option.
        length: how many tokens the answer has; at least one.
        format_: the request's ``format``: ``None``, ``"json"`` or a JSON Schema that :func:`valid_schema` accepts.
    """
    key = f"{prompt_digest}/{seed}"
    words = filler(key, max(1, round(length.draw(key))) - 1)
    plain = [f"digest:{prompt_digest}", *(f" {word}" for word in words)]
    if format_ is None:
        return plain
    text = "".join(plain)
    value = {"answer": text} if format_ == "json" else instance(format_, format_, text)
    pieces = msgspec.json.encode(value).decode().split(" ")
    return [pieces[0], *(f" {piece}" for piece in pieces[1:])]


def tool_call(tool: Any, prompt: str) -> dict[str, Any]:
    """A call of ``tool`` whose arguments fit its parameters."""
    function = _object(_object(tool).get("function"))
    schema = _object(function.get("parameters"))
    return {"name": str(function.get("name", "")), "arguments": instance(schema, schema, f"digest:{digest(prompt)}")}


def filler(key: str, count: int) -> list[str]:
    """``count`` words that depend on ``key`` only."""
    stream = hashlib.shake_128(key.encode()).digest(count) if count > 0 else b""
    return [_WORDS[byte % len(_WORDS)] for byte in stream]


def valid_schema(schema: dict[str, Any]) -> bool:
    """Whether Ollama's grammar maker takes it, or dies of it, instead of refusing it."""
    return grammar.trouble(schema) != "refused"


def instance(schema: Any, root: dict[str, Any], text: str, depth: int = 0) -> Any:
    """A value that satisfies ``schema``, with ``text`` wherever a free string is wanted."""
    if not isinstance(schema, dict) or depth > _DEPTH_LIMIT:
        return text
    if "$ref" in schema:
        return instance(_resolved(schema["$ref"], root), root, text, depth + 1)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return instance(schema[key][0], root, text, depth + 1)
    return _of_type(schema, root, text, depth)


def _of_type(schema: dict[str, Any], root: dict[str, Any], text: str, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = _object(schema.get("properties"))
        return {name: instance(part, root, text, depth + 1) for name, part in properties.items()}
    if kind == "array":
        count = max(1, int(schema.get("minItems", 1)))
        return [instance(schema.get("items"), root, text, depth + 1) for _ in range(count)]
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("maximum", 1))
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    if isinstance(pattern := schema.get("pattern"), str):
        written = grammar.text_for(pattern, random.Random(text))
        return msgspec.json.decode(f'"{written}"'.encode("utf-8", "surrogatepass"))
    least = int(schema.get("minLength", 0))
    return text[: schema.get("maxLength")].ljust(least)


def _resolved(reference: str, root: dict[str, Any]) -> Any:
    part: Any = root
    for key in reference.lstrip("#/").split("/"):
        part = _object(part).get(key)
    return part


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
