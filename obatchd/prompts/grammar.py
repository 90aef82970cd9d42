"""The JSON Schema that a server is given for an answer: no more of it than every server's grammar maker can take.

Ollama turns a schema into a grammar with llama.cpp's common/json-schema-to-grammar.cpp. In 0.24 this runs inside
``ollama serve`` and the grammar is read in the runner: what neither expects ends the one or the other, with everything
in flight. From 0.30 on llama-server refuses it (400 *failed to parse grammar*). So a schema is written anew, of the few
words that all of them know; the answer is checked against the whole of it anyway (:mod:`obatchd.prompts.structured`).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from obatchd.prompts.patterns import MOST_REPEATS, portable
from obatchd.prompts.schema_parts import FORMATS, Schema, as_dict, as_list, grammar_size, kinds_of, merged, whole

_DEPTH = 40  # of schemas in schemas: the grammar maker calls itself for each
_NODES = 5_000
_PARTS = 200  # of an allOf
_NOTES, _PLACE = 8, 200  # notes, and characters of a place in one
_ALTERNATIVES = 2_000  # values of an enum, say: each is tried at every token
_OPTIONAL = 200  # optional properties of an object: the grammar maker copies a list of names for each pair of them
_NAME = 500  # characters of a property's name: they are in the name of every rule below it
_ITEMS = MOST_REPEATS // 3  # of an array: a comma, space and an item, each a rule
_REPEATS = 20_000  # copies in a grammar, over all its counts
_INTEGER = 10**14  # bounds of integers: their digits are counted in a grammar, up to 15
_LEAST_GRAMMAR = 32 * 1024  # bytes of a grammar that 0.24 keeps of any schema (llama/llama.go, SchemaToGrammar) …
_BYTES_PER_BYTE = 4  # … and of a longer one as many as this times its length …
_MOST_GRAMMAR = 1024 * 1024  # … but no more: the rest is cut off, and what is left ends the runner
_SAFE_NAME = re.compile(r"[A-Za-z0-9_ ]+")  # other names next to "any other property" would spoil the grammar
_REFERENCE = b'"$ref"'
_ANYTHING: dict[str, Any] = {"type": ["object", "array", "string", "number", "boolean", "null"]}
_encode = msgspec.json.Encoder().encode


class ServerFormat(NamedTuple):
    """The ``format`` for a server, and notes on what it is not told, in words for the author of the request."""

    format: str | Schema
    notes: Sequence[str] = ()


def server_format(wanted: str | Schema) -> ServerFormat:
    """``format`` as a server can take it. Never demands anything that ``wanted`` forbids."""
    if not isinstance(wanted, dict):
        return ServerFormat(wanted)
    writer = _Writer(wanted)
    try:
        made = writer.whole()
    except RecursionError:
        writer.lose("$", "what is nested so deeply")
        made = _of_unknown(wanted)
    if (size := grammar_size(made)) > _MOST_GRAMMAR:
        writer.lose("$", "the schema, which is too large")
        made, size = _of_unknown(wanted), 0
    if size > max(_LEAST_GRAMMAR, _BYTES_PER_BYTE * len(_encode(made))):
        made["$comment"] = " " * (size // _BYTES_PER_BYTE)  # a longer schema may have a longer grammar
    notes = [
        f"format at {where[:_PLACE]}: the server does not enforce {' and '.join(sorted(lost))}; obatchd checks the "
        "answer for it"
        for where, lost in list(writer.lost.items())[:_NOTES]
    ]
    if (more := len(writer.lost) - _NOTES) > 0:
        notes.append(f"format: the same at {more:,} more places")
    return ServerFormat(made, notes)


def _of_unknown(wanted: Schema) -> Schema:
    return {"type": "object"} if wanted.get("type") == "object" or "properties" in wanted else dict(_ANYTHING)


class _Writer:
    """Writes one schema anew."""

    def __init__(self, root: Schema) -> None:
        self.lost: dict[str, set[str]] = {}  # what the server is not told, by its place
        self._root = root
        self._names: dict[str, str] = {}  # of definitions, by the pointer to what they define
        self._definitions: dict[str, Schema] = {}
        self._acyclic: set[str] = set()
        self._nodes = 0
        self._repeats = 0

    def lose(self, where: str, reason: str) -> None:
        self.lost.setdefault(where, set()).add(reason)

    def whole(self) -> Schema:
        made = self._schema(self._root, "$", 0)
        if "#" in self._names or "" in made.get("properties", {}):
            # A rule for a property without a name would have the name of the first one.
            made = self._reference("#", "$", 0)
        made = self._cut(made, ())
        for name in self._definitions:
            self._cut({"$ref": _DEFINITIONS + name}, ())
        return {**made, "$defs": self._definitions} if self._definitions else dict(made)

    def _schema(self, given: Any, where: str, depth: int) -> Schema:
        self._nodes += 1
        if not isinstance(given, dict):
            return _ANYTHING  # true; false can only be checked
        if depth > _DEPTH or self._nodes > _NODES:
            self.lose(where, "what is nested so deeply" if depth > _DEPTH else f"what comes after {_NODES:,} parts")
            return _ANYTHING
        if isinstance(reference := given.get("$ref"), str):
            return self._reference(reference, where, depth)
        given = self._merged_all(given, where)
        for key in ("const", "enum"):
            if key in given and (values := self._values(given, key, where)):
                return values
        for key in ("oneOf", "anyOf"):
            if key in given and (alternatives := self._alternatives(given, key, where, depth)):
                return alternatives
        kinds = kinds_of(given)
        made = [self._of_kind(kind, given, where, depth) for kind in kinds]
        if all(len(each) == 1 for each in made):
            return {"type": list(kinds)} if len(kinds) > 1 else made[0] if kinds else _ANYTHING
        return made[0] if len(made) == 1 else {"anyOf": made}

    # References.

    def _reference(self, reference: str, where: str, depth: int) -> Schema:
        found, target = self._target(reference)
        if not found:
            self.lose(where, f"its reference {reference[:100]!r}, which leads out of the schema")
            return _ANYTHING
        pointer = reference.partition("#")[2]
        key = f"#{pointer}"
        if (name := self._names.get(key)) is None:
            name = self._names[key] = f"d{len(self._names)}"
            self._definitions[name] = _ANYTHING  # until it is known
            self._definitions[name] = self._schema(target, key, depth + 1)
        return {"$ref": _DEFINITIONS + name}

    def _target(self, reference: str) -> tuple[bool, Any]:
        base, _, pointer = reference.partition("#")
        known = self._root.get("$id")
        if base and base != (known.partition("#")[0] if isinstance(known, str) else None):
            return False, None
        part: Any = self._root
        if pointer and not pointer.startswith("/"):
            return False, None  # an anchor
        for token in unquote(pointer).split("/")[1:]:
            token = token.replace("~1", "/").replace("~0", "~")
            if isinstance(part, dict) and token in part:
                part = part[token]
            elif isinstance(part, list) and token.isdecimal() and int(token) < len(part):
                part = part[int(token)]
            else:
                return False, None
        return True, part

    def _cut(self, schema: Schema, above: tuple[str, ...]) -> Schema:
        """The schema without references that lead back to themselves with no object or array between: no end to it."""
        if "anyOf" in schema:
            several = [self._cut(each, above) for each in schema["anyOf"]]
            return _ANYTHING if _ANYTHING in several else {"anyOf": several}
        if "$ref" not in schema:
            return schema
        name = schema["$ref"].removeprefix(_DEFINITIONS)
        if name in above:
            self.lose("$", "a reference that leads back to itself")
            return _ANYTHING
        if name not in self._acyclic:
            self._definitions[name] = self._cut(self._definitions[name], (*above, name))
            self._acyclic.add(name)
        return schema

    # Schemas of schemas.

    def _merged_all(self, given: Schema, where: str) -> Schema:
        """``given`` with what its ``allOf`` adds; where two say something of one thing, the first is told."""
        if "allOf" not in given:
            return given
        made: Schema = {}
        waiting, seen = deque([given]), set[str]()
        for _ in range(_PARTS):
            if not waiting:
                return made
            part = waiting.popleft()
            if isinstance(reference := part.get("$ref"), str):
                part = {} if reference in seen else self._resolved(part)
                seen.add(reference)
            waiting.extend(each for each in as_list(part.get("allOf")) if isinstance(each, dict))
            made = merged(made, {key: value for key, value in part.items() if key != "allOf"})
        self.lose(where, f"what comes after {_PARTS} parts of its allOf")
        return made

    def _resolved(self, part: Any) -> Schema:
        for _ in range(_DEPTH):
            if not isinstance(part, dict) or not isinstance(reference := part.get("$ref"), str):
                break
            part = self._target(reference)[1]
        return part if isinstance(part, dict) and "$ref" not in part else {}

    def _alternatives(self, given: Schema, key: str, where: str, depth: int) -> Schema | None:
        """One of several schemas; None where one of them allows whatever the others do."""
        several = given[key] if isinstance(given[key], list) else []
        base = {name: value for name, value in given.items() if name in _GRAMMATICAL}
        if base:
            several = [self._based(each, base) for each in several]
        if not 0 < len(several) <= _ALTERNATIVES:
            self.lose(where, f"its {key} of {len(several):,} alternatives")
            return None
        made = [self._schema(each, where, depth + 1) for each in several]
        if _ANYTHING in made:
            return None
        return made[0] if len(made) == 1 else {"anyOf": made}

    def _based(self, alternative: Any, base: Schema) -> Schema:
        """An alternative with what holds for all of them; where both say something of one thing, it is told."""
        own = self._resolved(alternative)
        made = merged(own, base)
        if "properties" in own and "properties" in base:
            made["properties"] = {**as_dict(base["properties"]), **as_dict(own["properties"])}
        return made

    def _values(self, given: Schema, key: str, where: str) -> Schema | None:
        values = [given[key]] if key == "const" else given[key]
        if not isinstance(values, list) or not 0 < len(values) <= _ALTERNATIVES:
            self.lose(where, f"its {key} of {len(values) if isinstance(values, list) else 0:,} values")
            return None
        if _REFERENCE in _encode(values):
            self.lose(where, f"its {key}, because there is a $ref in it")
            return None
        return {"enum": values}

    # The kinds of values.

    def _of_kind(self, kind: str, given: Schema, where: str, depth: int) -> Schema:
        match kind:
            case "object":
                return self._object(given, where, depth)
            case "array":
                return self._array(given, where, depth)
            case "string":
                return self._string(given, where)
            case "integer":
                return self._integer(given, where)
        return {"type": kind}

    def _object(self, given: Schema, where: str, depth: int) -> Schema:
        named = {name: value for name, value in as_dict(given.get("properties")).items()}
        required = [name for name in as_list(given.get("required")) if isinstance(name, str)]
        others = given.get("additionalProperties", None)
        if others is not False:
            named |= {name: True for name in required if name not in named}
        required = [name for name in dict.fromkeys(required) if name in named]
        if "$ref" in named:  # the grammar maker looks for references everywhere
            self.lose(where, "its properties, because one is called $ref")
            return {"type": "object"}
        if len(named) - len(required) > _OPTIONAL or any(len(name) > _NAME for name in named):
            many = len(named) - len(required) > _OPTIONAL
            self.lose(where, f"more than {_OPTIONAL} optional properties" if many else "the long names of properties")
            return {"type": "object"}
        made: Schema = {"type": "object"}
        if named:
            places = ((name, value, f"{where}.{name[:50]}") for name, value in named.items())
            made["properties"] = {name: self._schema(value, place, depth + 1) for name, value, place in places}
            made["required"] = required
        if others is False:
            made["additionalProperties"] = False
        elif others is not None and all(_SAFE_NAME.fullmatch(name) for name in named):
            value = self._schema(others, f"{where}.*", depth + 1)
            made["additionalProperties"] = True if value == _ANYTHING else value
        return made

    def _array(self, given: Schema, where: str, depth: int) -> Schema:
        items = given.get("items")
        tuples = given.get("prefixItems", items if isinstance(items, list) else None)
        least, most = self._counts(given, "minItems", "maxItems", where, _ITEMS)
        if isinstance(tuples, list) and tuples:
            if least > len(tuples) or (most is not None and most < len(tuples)):
                self.lose(where, "the items at fixed places")
                return {"type": "array"}
            places = enumerate(tuples)
            return {"type": "array", "prefixItems": [self._schema(e, f"{where}[{n}]", depth + 1) for n, e in places]}
        if not isinstance(items, dict) and not least and most is None:
            return {"type": "array"}
        made: Schema = {"type": "array", "items": self._schema(items, f"{where}[]", depth + 1)}
        return made | ({"minItems": least} if least else {}) | ({} if most is None else {"maxItems": most})

    def _string(self, given: Schema, where: str) -> Schema:
        if isinstance(pattern := given.get("pattern"), str):
            written = portable(pattern)
            if written.lost:
                self.lose(where, f"{written.lost} in its pattern" if written.text else f"its pattern ({written.lost})")
            if written.text and self._may_repeat(written.repeats, where):
                return {"type": "string", "pattern": written.text}
        if isinstance(form := given.get("format"), str) and FORMATS.fullmatch(form):
            return {"type": "string", "format": form}
        least, most = self._counts(given, "minLength", "maxLength", where)
        return (
            {"type": "string"}
            | ({"minLength": least} if least else {})
            | ({} if most is None else {"maxLength": most})
        )  # fmt: skip

    def _counts(
        self, given: Schema, low: str, high: str, where: str, limit: int = MOST_REPEATS
    ) -> tuple[int, int | None]:
        """Bounds that a grammar can count to."""
        least, most = max(0, whole(given.get(low), math.ceil) or 0), whole(given.get(high), math.floor)
        if most is not None and (most < least or most > limit):
            self.lose(where, f"its {high}")
            most = None
        if least > limit:
            self.lose(where, f"its {low}")
            least = limit
        return (least, most) if self._may_repeat(most or least, where) else (0, None)

    def _may_repeat(self, count: int, where: str) -> bool:
        self._repeats += count
        if self._repeats > _REPEATS:
            self.lose(where, "its counts, because the schema has too many")
        return self._repeats <= _REPEATS

    def _integer(self, given: Schema, where: str) -> Schema:
        above, below = given.get("exclusiveMinimum"), given.get("exclusiveMaximum")
        least, most = whole(given.get("minimum"), math.ceil), whole(given.get("maximum"), math.floor)
        above = given.get("minimum") if above is True else above  # of draft 4
        below = given.get("maximum") if below is True else below
        if (over := whole(above, math.floor)) is not None:
            least = max(over + 1, over + 1 if least is None else least)
        if (under := whole(below, math.ceil)) is not None:
            most = min(under - 1, under - 1 if most is None else most)
        if any(bound is not None and abs(bound) >= _INTEGER for bound in (least, most)) or (
            least is not None and most is not None and least > most
        ):
            self.lose(where, "its bounds")
            return {"type": "integer"}
        bounds = {"minimum": least, "maximum": most}
        return {"type": "integer"} | {name: bound for name, bound in bounds.items() if bound is not None}


_DEFINITIONS = "#/$defs/"
_OF_OBJECTS = ("properties", "required", "additionalProperties")
_GRAMMATICAL = frozenset(
    {"type", "items", "prefixItems", "pattern", "minLength", "maxLength", "minItems", "maxItems", *_OF_OBJECTS}
)
