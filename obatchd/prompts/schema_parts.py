"""Small questions about a JSON Schema, for :mod:`obatchd.prompts.grammar`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

Schema = dict[str, Any]

FORMATS = re.compile(r"date|time|date-time|uuid[1-5]?")  # of strings, that grammar makers know
_KINDS = ("object", "array", "string", "number", "integer", "boolean", "null")
_encode = msgspec.json.Encoder().encode


def kinds_of(given: Schema) -> Sequence[str]:
    """The types of values that are allowed; none where that is all of them."""
    named = given.get("type")
    kinds = [named] if isinstance(named, str) else as_list(named)
    if kinds:
        return [kind for kind in dict.fromkeys(kinds) if kind in _KINDS]
    if given.get("properties") or given.get("required") or not _is_open(given.get("additionalProperties", True)):
        return ["object"]
    if "items" in given or "prefixItems" in given:
        return ["array"]
    if any(key in given for key in ("pattern", "minLength", "maxLength")) or FORMATS.fullmatch(
        str(given.get("format", ""))
    ):
        return ["string"]
    return []


def _is_open(others: Any) -> bool:
    return others is True or others == {}


def merged(*schemas: Mapping[str, Any]) -> Schema:
    """Schemas that all hold, as one: the first that says something of a thing is told."""
    made: Schema = {}
    for schema in schemas:
        for key, value in schema.items():
            if key == "properties" and isinstance(value, dict):
                known = as_dict(made.get(key))
                made[key] = {**known, **{name: part for name, part in value.items() if name not in known}}
            elif key == "required" and isinstance(value, list):
                made[key] = [*as_list(made.get(key)), *value]
            else:
                made.setdefault(key, value)
    return made


def whole(bound: Any, rounded: Any) -> int | None:
    """A bound as a whole number; None where there is none."""
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return None
    return int(rounded(bound)) if isinstance(bound, int) or math.isfinite(bound) else None


def as_dict(value: Any) -> Schema:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def grammar_size(schema: Schema) -> int:
    """Bytes of the grammar that is made of such a schema, at most."""
    return sum(_rule_sizes(schema, "")) + sum(
        size for name, part in schema.get("$defs", {}).items() for size in _rule_sizes(part, f"ref--defs-{name}")
    )


def _rule_sizes(schema: Schema, name: str) -> Iterator[int]:
    """Of the rules for a schema: each has its name in it, and stands by name in the rule above it."""
    yield 150 + 6 * len(name)
    if "enum" in schema:
        yield 2 * len(_encode(schema["enum"])) + 10 * len(schema["enum"])
    yield 3 * len(schema.get("pattern", "").encode())
    inner: Iterable[tuple[str, Any]] = [("alternative-00", each) for each in schema.get("anyOf", ())]
    inner = [*inner, *schema.get("properties", {}).items(), ("tuple-000", schema.get("items"))]
    inner += [("tuple-000", each) for each in schema.get("prefixItems", ())]
    inner += [("additional-value", schema.get("additionalProperties"))]
    for key, part in inner:
        yield 200 + 12 * (len(name) + 6 * len(key))
        if isinstance(part, dict):
            yield from _rule_sizes(part, f"{name}-{key}")
