"""What becomes of a JSON Schema in Ollama 0.24: a grammar, a refusal, or the end of the runner or of ``ollama serve``.

``serve`` turns the schema into a grammar with llama.cpp's ``json-schema-to-grammar.cpp``, and dies where that takes the
last element of an empty list. The runner reads the grammar (``llama-grammar.cpp``); where it cannot, it goes on without
a sampler and dies at the first token. Patterns are written here as they are there; of the rest of a schema only what is
known to do harm is looked at.
"""

from __future__ import annotations

import importlib
import random
import re
import string
from collections.abc import Iterator
from typing import Any, Literal

_parse = importlib.import_module("re._parser").parse
Trouble = Literal["", "refused", "runner", "serve"]
_MOST_REPEATS = 2000
_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
_SPOILING = re.compile(r"[\]\\^\"]|[^\x20-\x7e]")  # in a name beside "any other property"
_SPECIAL = frozenset("|.()[]{}*+?")
_UNESCAPED = _SPECIAL | {"^", "$"}
_RULE = re.compile(
    r"""(?P<space>[ \t]+)|(?P<text>"(?:\\(?:x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|[trn\\"\[\]])|[^"\\])*")"""
    r"""|(?P<class>\[\^?(?:\\(?:x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|[trn\\"\[\]])|[^\]\\])*\])"""
    r"""|(?P<name>[A-Za-z0-9-]+)|(?P<open>\()|(?P<close>\))|(?P<or>\|)|(?P<any>\.)|(?P<repeat>[*+?])"""
    r"""|\{\s*(?P<least>\d+)\s*(?:,\s*(?P<most>\d*)\s*)?\}""",
    re.DOTALL,
)


class _Refused(Exception):
    """The maker reports an error: 500 *invalid JSON schema in format*."""


class _RunnerDies(Exception):
    """The grammar cannot be read."""


class _ServeDies(Exception):
    """The maker itself dies."""


def trouble(schema: Any) -> Trouble:
    """What a server has of this schema; empty where it can make an answer that follows it."""
    try:
        for part in _parts(schema):
            _look(part)
        _look_for_circles(schema)
    except _Refused:
        return "refused"
    except _RunnerDies:
        return "runner"
    except (_ServeDies, RecursionError):
        return "serve"
    return ""


def text_for(pattern: str, chance: random.Random) -> str:
    """A text as it stands in JSON that a grammar of ``pattern`` allows, of those patterns that end no server.

    A grammar has no place for looking ahead or back: 0.33, which takes such a pattern, makes nothing of that part.
    """
    return _written(_parse(pattern[1:-1]), chance)


def _written(items: Any, chance: random.Random) -> str:
    text = ""
    for operator, argument in items:
        match str(operator):
            case "LITERAL":
                text += chr(argument)
            case "IN" if str(argument[0][0]) == "NEGATE":
                barred = [(part, part) if str(kind) == "LITERAL" else part for kind, part in argument[1:]]
                others = (code for code in range(ord(" "), 0x250) if not any(a <= code <= b for a, b in barred))
                text += chance.choice([letter for letter in map(chr, others) if letter not in '"\\\x7f'])
            case "IN":
                kind, chosen = chance.choice(argument)
                text += chr(chosen if str(kind) == "LITERAL" else chance.choice([*chosen, chance.randint(*chosen)]))
            case "BRANCH":
                text += _written(chance.choice(argument[1]), chance)
            case "ASSERT" | "ASSERT_NOT" | "AT":
                pass
            case "ANY":
                text += chance.choice(string.ascii_letters)
            case "NOT_LITERAL":
                text += chance.choice([letter for letter in string.ascii_letters if letter != chr(argument)])
            case "SUBPATTERN":
                text += _written(argument[3], chance)
            case _:
                least, most, inner = argument
                text += "".join(_written(inner, chance) for _ in range(chance.randint(least, min(most, least + 2))))
    return text


def _parts(schema: Any) -> Iterator[Any]:
    """Every schema that becomes a rule."""
    yield schema
    if not isinstance(schema, dict):
        return
    if "$ref" not in schema:
        for key in ("anyOf", "oneOf"):
            if key in schema:
                for part in schema[key]:
                    yield from _parts(part)
                return
        for part in [*schema.get("properties", {}).values(), schema.get("additionalProperties")]:
            if part not in (None, True, False):
                yield from _parts(part)
        items = schema.get("items", schema.get("prefixItems", []))
        for part in items if isinstance(items, list) else [items]:
            yield from _parts(part)
    for part in schema.get("$defs", {}).values():
        yield from _parts(part)


def _look(schema: Any) -> None:
    if not isinstance(schema, dict):
        raise _Refused
    if "$ref" in schema:
        if not schema["$ref"].startswith("#/"):
            raise _Refused
        return
    for key in ("anyOf", "oneOf", "enum"):
        if schema.get(key) == []:
            raise _RunnerDies
    if "$ref" in schema.get("properties", {}):
        raise _Refused
    kinds = schema.get("type")
    named = kinds if isinstance(kinds, list) else [kinds] if kinds else []
    rules = ("anyOf", "oneOf", "allOf", "const", "enum", "properties", "additionalProperties", "items", "prefixItems")
    if not _TYPES.issuperset(named) or not (named or not schema or "pattern" in schema or schema.keys() & set(rules)):
        raise _Refused
    _look_at_bounds(schema, "integer" in named)
    spoiled = any(_SPOILING.search(name) for name in schema.get("properties", {}))
    if spoiled and schema.get("additionalProperties") not in (None, False):
        raise _RunnerDies
    if "pattern" in schema and "enum" not in schema:
        _read_rule(_rule_of(schema["pattern"]))


def _look_at_bounds(schema: dict[str, Any], integer: bool) -> None:
    for low, high in (("minLength", "maxLength"), ("minItems", "maxItems")):
        least, most = schema.get(low, 0), schema.get(high, 0)
        if max(least, most) > _MOST_REPEATS or (high in schema and least > most):
            raise _RunnerDies
    least, most = schema.get("minimum", 0), schema.get("maximum", 0)
    upside_down = "minimum" in schema and "maximum" in schema and least > most
    if integer and (upside_down or max(abs(least), abs(most)) >= 10**15):
        raise _RunnerDies


def _look_for_circles(root: Any) -> None:
    """A rule that begins with itself."""

    def follow(part: Any, above: tuple[str, ...]) -> None:
        if not isinstance(part, dict):
            return
        if "$ref" in part:
            if part["$ref"] in above:
                raise _RunnerDies
            target: Any = root
            for token in part["$ref"].removeprefix("#/").split("/"):
                target = target.get(token) if isinstance(target, dict) else None
            if target is None:
                raise _Refused
            follow(target, (*above, part["$ref"]))
        for key in ("anyOf", "oneOf"):
            for each in part.get(key, ()):
                follow(each, above)

    for part in list(_parts(root)):
        follow(part, ())


class _Pattern:
    """``_visit_pattern`` of the grammar maker."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.rules: list[str] = []  # of what is repeated

    def transform(self) -> str:
        seq: list[tuple[str, bool]] = []  # text, and whether it is literal
        text = self._text
        while self._at < len(text):
            char = text[self._at]
            if char == ".":
                seq.append((r"[^\x0A\x0D]", False))
                self._at += 1
            elif char == "(":
                self._at += 1
                seq.append((f"({self.transform()})", False))
            elif char == ")":
                self._at += 1
                break
            elif char == "[":
                seq.append((self._until("]"), False))
            elif char == "|":
                seq.append(("|", False))
                self._at += 1
            elif char in "*+?":
                if not seq:
                    raise _ServeDies
                seq[-1] = (_rule(seq[-1]) + char, False)
                self._at += 1
            elif char == "{":
                self._repeat(seq, self._until("}"))
            elif literal := self._literal():
                seq.append((literal, True))
            else:
                raise _ServeDies  # it never goes on
        return " ".join(_rule(part) for part in seq)

    def _until(self, end: str) -> str:
        begin = self._at
        self._at += 1
        while self._at < len(self._text) and self._text[self._at] != end:
            self._at += 2 if self._text[self._at] == "\\" and end == "]" else 1
        if self._at >= len(self._text):
            raise _Refused
        self._at += 1
        return self._text[begin : self._at]

    def _repeat(self, seq: list[tuple[str, bool]], braces: str) -> None:
        numbers = braces[1:-1].split(",")
        try:
            least = int(numbers[0] or 0)
            most = least if len(numbers) == 1 else int(numbers[1]) if numbers[1] else None
        except (ValueError, IndexError):
            raise _Refused from None
        if len(numbers) > 2:
            raise _Refused
        if not seq:
            raise _ServeDies
        if most == 0:
            seq[-1] = ("", False)
            return
        if not seq[-1][1]:
            self.rules.append(seq[-1][0])
        unit = _rule(seq[-1]) if seq[-1][1] else "sub-rule"
        seq[-1] = (f"{unit}{{{least},{'' if most is None else most}}}", False)

    def _literal(self) -> str:
        text, literal = self._text, ""
        while self._at < len(text):
            char, more = text[self._at], text[self._at + 1 : self._at + 2]
            if char == "\\" and more:
                literal += more if more in _UNESCAPED else char + more
                self._at += 2
            elif char == '"':
                literal += '\\"'
                self._at += 1
            elif char not in _SPECIAL and (not more or not literal or more == "." or more not in _SPECIAL):
                literal += char
                self._at += 1
            else:
                break
        return literal


def _rule(part: tuple[str, bool]) -> str:
    return f'"{part[0]}"' if part[1] else part[0]


def _rule_of(pattern: str) -> list[str]:
    if not (pattern.startswith("^") and pattern.endswith("$")):
        raise _Refused
    made = _Pattern(pattern[1:-1])
    return [f"({made.transform()})", *made.rules]


def _read_rule(rules: list[str]) -> None:
    """Read the rules as the runner does."""
    for rule in rules:
        at, depth, repeatable = 0, 0, False
        while at < len(rule):
            match = _RULE.match(rule, at)
            if match is None:
                raise _RunnerDies
            at = match.end()
            kind = match.lastgroup
            if kind == "space":
                continue
            depth += (kind == "open") - (kind == "close")
            if kind in ("repeat", "least", "most"):
                _check_repeat(match, repeatable)
            repeatable = kind not in ("open", "or")
            if depth < 0:
                raise _RunnerDies
        if depth:
            raise _RunnerDies


def _check_repeat(match: re.Match[str], repeatable: bool) -> None:
    least, most = int(match["least"] or 0), int(match["most"] or 0)
    if not repeatable or max(least, most) > _MOST_REPEATS or (match["most"] and least > most):
        raise _RunnerDies
