"""Patterns of JSON Schema, in the few words that the grammar makers of servers know.

Ollama's engine turns a pattern into a grammar almost letter by letter (llama.cpp, common/json-schema-to-grammar.cpp):
``\\d``, ``\\.``, ``(?:…)``, a lookahead or a repeat of more than 2,000 ends the runner or ``ollama serve`` (0.24), or
the request is refused (0.30 to 0.33: *failed to parse grammar*). What comes out here has no escape but the code of a
character, no group but ``(…)``, and allows no text that would break the JSON around it: a quote, say.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

# The parser of ``re`` itself, because ``re`` checks the answers. It has no public name.
_parse = importlib.import_module("re._parser").parse

# llama.cpp, llama-grammar.cpp, MAX_REPETITION_THRESHOLD: since 0.30 for a count times the rules in what it repeats.
MOST_REPEATS = 1999
_LONGEST = 20_000  # characters of a pattern in those words
_MOST_EMPTY = 64  # ways to match nothing: the grammar tries each at every step
_LAST = 0x10FFFF

Ranges = Sequence[tuple[int, int]]  # of code points, both ends included
# As they stand in a JSON string: not ", not \\, no control characters; and no surrogates, which UTF-8 does not have.
_PLAIN: Ranges = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0xA0, 0xD7FF), (0xE000, _LAST)]
_LOST = {
    "ASSERT": "a lookahead or lookbehind",
    "ASSERT_NOT": "a lookahead or lookbehind",
    "GROUPREF": "a backreference",
    "GROUPREF_EXISTS": "a backreference",
    # A grammar tries everything that a part may take.
    "ATOMIC_GROUP": "an atomic group or possessive quantifier",
    "POSSESSIVE_REPEAT": "an atomic group or possessive quantifier",
}
_DIGITS: Ranges = [(0x30, 0x39)]
_ASCII_WORDS: Ranges = [*_DIGITS, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
# Letters of the great scripts, without a gap: Latin, Cyrillic, kana, Han, Hangul. ``re`` knows them all.
_LETTERS: Ranges = [
    (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x2C1), (0x48A, 0x52F), (0x400, 0x481), (0x3041, 0x3096), (0x30A1, 0x30FA),
    (0x4E00, 0x9FEF), (0xAC00, 0xD7A3),
]  # fmt: skip
_SPACES: Ranges = [
    (0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
]  # fmt: skip


class Portable(NamedTuple):
    """A pattern for a grammar maker, from ``^`` to ``$``; empty where there is none.

    ``lost`` says what it does not demand, in words; empty where it demands everything. ``repeats`` is the sum of its
    counts: a grammar has that many copies.
    """

    text: str
    lost: str = ""
    repeats: int = 0


class _Unusable(Exception):
    """There is no such pattern; says why."""


class _Part(NamedTuple):
    """Some of a pattern. ``empties``: in how many ways it matches nothing."""

    text: str
    empties: int = 0
    is_unit: bool = False  # a repeat behind it takes all of it


def portable(pattern: str) -> Portable:
    """``pattern``, which is searched for in a text, for a grammar maker. Never demands more than ``pattern`` does.

    It may leave less choice: fewer letters than ``\\w`` has, say. So an answer that fits it may be refused by
    ``pattern`` only where something is ``lost``.
    """
    writer = _Writer()
    try:
        tree = _parse(pattern)
        if tree.state.flags & re.IGNORECASE:
            raise _Unusable("it ignores case")
        part = writer.sequence(tree, first=True, last=True)
        if part.empties > _MOST_EMPTY or len(part.text) > _LONGEST or writer.repeats > MOST_REPEATS:
            raise _Unusable("it is too long or too ambiguous")
    except _Unusable as reason:
        return Portable("", str(reason))
    except (re.error, RecursionError, OverflowError):
        return Portable("", "it is no regular expression")
    return Portable(f"^{part.text}$", ", ".join(sorted(writer.lost)), writer.repeats)


class _Writer:
    """Writes the tree of a pattern down again."""

    def __init__(self) -> None:
        self.lost: set[str] = set()
        self.repeats = 0

    def sequence(self, items: Iterable[Any], *, first: bool, last: bool) -> _Part:
        """Parts one after the other. ``first``: nothing comes before them in the pattern, ``last``: nothing after."""
        nodes = [(str(operator), argument) for operator, argument in items]
        before, nodes = _edge(nodes, "AT_BEGINNING", 0) if first else ("", nodes)
        after, nodes = _edge(nodes, "AT_END", -1) if last else ("", nodes)
        parts = [_ANYTHING] if before == "anything" else []
        for place, (operator, argument) in enumerate(nodes):
            begins, ends = before == "inside" and place == 0, after == "inside" and place == len(nodes) - 1
            parts.append(self._part(operator, argument, first=begins, last=ends))
        if after == "anything" and (nodes or not parts):
            parts.append(_ANYTHING)
        written = [part for part in parts if part.text]
        empties = 1
        for part in written:
            empties *= part.empties
        if len(written) == 1:
            return written[0]
        return _Part("".join(part.text for part in written), empties)

    def _part(self, operator: str, argument: Any, *, first: bool, last: bool) -> _Part:
        within = partial(self.sequence, first=first, last=last)
        match operator:
            case "LITERAL":
                return _literal(argument)
            case "NOT_LITERAL":
                return _one_of(_others([(argument, argument)]))
            case "ANY":
                return _one_of(_PLAIN)
            case "IN":
                return _one_of(_members(argument))
            case "BRANCH":
                return _branches([within(branch) for branch in argument[1]])
            case "SUBPATTERN":
                if argument[1] or argument[2]:
                    raise _Unusable("there are flags in it")
                return _grouped(within(argument[3]))
            case "MAX_REPEAT" | "MIN_REPEAT":
                return self._repeat(*argument)
        self.lost.add(_LOST.get(operator, "an anchor or a word boundary"))
        match operator:
            case "ATOMIC_GROUP":
                return _grouped(within(argument))
            case "POSSESSIVE_REPEAT":
                return self._repeat(*argument)
            case "GROUPREF" | "GROUPREF_EXISTS":
                return _ANYTHING
        return _Part("", 1)

    def _repeat(self, least: int, most: int, items: Iterable[Any]) -> _Part:
        part = self.sequence(items, first=False, last=False)
        if most == 0 or not part.text:
            return _Part("", 1)
        if part.empties and most > 1:  # which the grammar would try without end
            self.lost.add("a repeat of something that may be empty")
            return _ANYTHING
        endless = most >= _UNLIMITED
        if least > MOST_REPEATS or (most > MOST_REPEATS and not endless):
            self.lost.add(f"more than {MOST_REPEATS:,} repeats")
            least, endless = min(least, MOST_REPEATS), True
        self.repeats += least if endless else most
        if not endless and least == most:
            count = "" if most == 1 else f"{{{most}}}"
        else:
            known = {(0, True): "*", (1, True): "+"} if endless else {(0, False): "?"} if most == 1 else {}
            count = known.get((least, endless), f"{{{least},{'' if endless else most}}}")
        return _Part(_grouped(part).text + count, part.empties + (least == 0))


_UNLIMITED = int(importlib.import_module("re._constants").MAXREPEAT)


def _edge(nodes: list[tuple[str, Any]], anchor: str, place: int) -> tuple[str, list[tuple[str, Any]]]:
    """What stands outside the parts at this edge (``anything``, or nothing), and the parts without its anchor.

    ``inside``: the first or last part says that, because it has branches or parts of its own.
    """
    if nodes and nodes[place][0] == "AT" and str(nodes[place][1]).startswith(anchor):
        return "", nodes[1:] if place == 0 else nodes[:-1]
    inside = bool(nodes) and nodes[place][0] in ("BRANCH", "SUBPATTERN", "ATOMIC_GROUP")
    return "inside" if inside else "anything", nodes


def _branches(branches: list[_Part]) -> _Part:
    text = "|".join(branch.text for branch in branches if branch.text)
    optional = "" if all(branch.text for branch in branches) else "?"
    return _Part(f"({text}){optional}" if text else "", sum(branch.empties for branch in branches), not optional)


def _grouped(part: _Part) -> _Part:
    return part if part.is_unit or not part.text else _Part(f"({part.text})", part.empties, True)


# Characters.


def _literal(code: int) -> _Part:
    written = json.dumps(chr(code), ensure_ascii=False)[1:-1]  # as it stands in a JSON string
    text = "".join(_one_of([(ord(each), ord(each))], plain=False).text for each in written)
    return _Part(text if len(written) == 1 else f"({text})", 0, True)


def _one_of(ranges: Ranges, *, plain: bool = True) -> _Part:
    """One character of ``ranges``; with ``plain`` those that stand in a JSON string as they are."""
    usable = _both(ranges, _PLAIN) if plain else ranges
    if not usable:
        escaped = [code for code in (0x22, 0x5C, 0x0A, 0x0D, 0x09) if any(a <= code <= b for a, b in ranges)]
        if not escaped:
            raise _Unusable("no character that it asks for can stand in JSON")
        return _branches([_literal(code) for code in escaped])
    text = "".join(_code(low) + (f"-{_code(high)}" if high > low else "") for low, high in usable)
    return _Part(text if len(text) == 1 else f"[{text}]", 0, True)


def _code(code: int) -> str:
    if code < 0x80 and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _members(items: Sequence[Any]) -> Ranges:
    """The characters of a class: never more than it has, for one that is negated, too."""
    within, beyond = [], []  # what it has at least, and at most
    negated = False
    for operator, argument in items:
        match str(operator):
            case "NEGATE":
                negated = True
                continue
            case "LITERAL":
                least = most = [(argument, argument)]
            case "RANGE":
                least = most = [argument]
            case _:
                least, most = _category(str(argument))
        within += least
        beyond += most
    return _others(beyond) if negated else _union(within)


def _category(name: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The characters that a category has at least, and at most."""
    kind = name.removeprefix("CATEGORY_").removeprefix("NOT_")
    least, most = {
        "DIGIT": (_DIGITS, _DIGITS),
        "SPACE": ([(0x20, 0x20)], _SPACES),
        "WORD": ([*_ASCII_WORDS, *_LETTERS], [*_ASCII_WORDS, (0xAA, _LAST)]),
    }[kind]
    if "NOT_" in name:
        return list(_others(most)), list(_others(least))
    return list(least), list(most)


def _union(ranges: Ranges) -> Ranges:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _others(ranges: Ranges) -> Ranges:
    """All characters but those."""
    edges = [-1, *(edge for pair in _union(ranges) for edge in pair), _LAST + 1]
    return [(low + 1, high - 1) for low, high in zip(edges[::2], edges[1::2], strict=True) if low + 1 <= high - 1]


def _both(ranges: Ranges, others: Ranges) -> Ranges:
    return [(max(a, c), min(b, d)) for a, b in _union(ranges) for c, d in others if max(a, c) <= min(b, d)]


_ANYTHING = _Part(f"{_one_of(_PLAIN).text}*", 1)
