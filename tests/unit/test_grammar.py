"""Schemas as servers are told of them: every grammar maker takes them, and nothing that they forbid is allowed.

Of :mod:`obatchd.prompts.grammar` and :mod:`obatchd.prompts.patterns`; the judge is the stand-in's grammar maker, which
``tests/system`` holds against the real one.
"""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from obatchd.prompts.grammar import server_format
from obatchd.prompts.patterns import portable
from obatchd.prompts.structured import AnswerFormat, FormatError
from obatchd.simulator.grammar import text_for, trouble

Schema = dict[str, Any]


def field(**schema: Any) -> Schema:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


# What was seen to end a real 0.24, or to be refused by it or by 0.33.
HARMFUL: dict[str, Schema] = {
    "digits": field(type="string", pattern=r"^\d{6}$"),
    "words": field(type="string", pattern=r"^\w+$"),
    "address": field(type="string", pattern=r"^[^\s@]+@[^\s@]+\.[^\s@]+$"),
    "lookahead": field(type="string", pattern=r"^(?!x).*$"),
    "group without a number": field(type="string", pattern=r"^(?:a|b)+$"),
    "group with a name": field(type="string", pattern=r"^(?P<year>[0-9]{4})$"),
    "escape in a class": field(type="string", pattern=r"^[\w.\-]+$"),
    "not anchored": field(type="string", pattern=r"abc"),
    "anchored at one end": field(type="string", pattern=r"^[A-Z]{3}"),
    "word boundary": field(type="string", pattern=r"^\bfoo\b.*$"),
    "lazy": field(type="string", pattern=r"^a+?b$"),
    "endless nothing": field(type="string", pattern=r"^(a*)*$"),
    "many": field(type="string", pattern=r"^[a-z]{1,5000}$"),
    "reference to a group": field(type="string", pattern=r"^(a|b)\1$"),
    "escaped slash": field(type="string", pattern=r"^a\/b$"),
    "any letter": field(type="string", pattern=r"^[a-z]{2,}\S*\D\W$"),
    "counts in counts": field(type="string", pattern="^([a-z]{0,1500}-[a-z]{0,1500})+$"),
    "as many as 0.24 counts": field(type="array", items={"type": "string", "maxLength": 2000}, maxItems=1000),
    "long string": field(type="string", maxLength=100_000),
    "least of a long string": field(type="string", minLength=5_000),
    "long array": field(type="array", items={"type": "null"}, maxItems=10_000),
    "bounds upside down": field(type="array", items={"type": "null"}, minItems=5, maxItems=2),
    "large bound": field(type="integer", minimum=10**17),
    "integer upside down": field(type="integer", minimum=5, maximum=3),
    "no alternative": {"type": "object", "properties": {"a": {"anyOf": []}}},
    "no value": field(enum=[]),
    "no type": field(description="what it is"),
    "true": {"type": "object", "properties": {"a": True}},
    "whole schema again": {"type": "object", "properties": {"next": {"$ref": "#"}}},
    "away": field(**{"$ref": "https://example.com/schema.json"}),
    "an anchor": {"$defs": {"x": {"$anchor": "here", "type": "null"}}, **field(**{"$ref": "#here"})},
    "escaped pointer": {"$defs": {"a/b": {"type": "null"}}, **field(**{"$ref": "#/$defs/a~1b"})},
    "begins with itself": {"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}}, "$ref": "#/$defs/x"},
    "a property called $ref": {"properties": {"$ref": {"type": "string"}}},
    "a value with a reference": field(const={"$ref": 5}),
    "all of itself": {"allOf": [{"$ref": "#"}]},
    "nothing but required": {"type": "object", "properties": {"a": {"type": "null"}}, "anyOf": [{"required": ["a"]}]},
    "names beside any other": {"properties": {"a]b": {"type": "null"}}, "additionalProperties": True},
    "letters beside any other": {"properties": {"größe": {"type": "null"}}, "additionalProperties": {"type": "null"}},
}  # fmt: skip


@pytest.mark.parametrize("schema", HARMFUL.values(), ids=HARMFUL.keys())
def test_no_schema_harms_a_server(schema: Schema) -> None:
    told = server_format(schema)
    assert trouble(told.format) == ""
    assert server_format(told.format) == (told.format, []), "there is nothing left to take away"


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (field(type="string", pattern=r"^\d{3}-\d{4}$"), field(type="string", pattern=r"^[0-9]{3}[\x2D][0-9]{4}$")),
        (field(type="string", pattern="^(yes|no)$"), field(type="string", pattern="^(yes|no)$")),
        (field(type="string", format="email", minLength=3), field(type="string", minLength=3)),
        (field(type="string", format="date"), field(type="string", format="date")),
        (field(type="integer", minimum=0, exclusiveMaximum=10.5), field(type="integer", minimum=0, maximum=10)),
        (field(type="array", items={"type": "number"}, minItems=1, maxItems=3.0),
         field(type="array", items={"type": "number"}, minItems=1, maxItems=3)),
        (field(type=["string", "null"], maxLength=5),
         field(anyOf=[{"type": "string", "maxLength": 5}, {"type": "null"}])),
        (field(const="x"), field(enum=["x"])),
        (field(allOf=[{"type": "string"}, {"minLength": 2}]), field(type="string", minLength=2)),
        ({"properties": {"a": {"type": "null"}}, "required": ["a", "b"], "additionalProperties": False},
         {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}),
    ],
)  # fmt: skip
def test_what_every_server_knows_is_told(schema: Schema, told: Schema) -> None:
    assert server_format(schema) == (told, [])


def test_a_recursive_schema_stays_one() -> None:
    tree = {"$defs": {"node": field(type="array", items={"$ref": "#/$defs/node"})}, "$ref": "#/$defs/node"}
    made, notes = server_format(tree)
    assert notes == []
    jsonschema.validate({"a": [{"a": []}]}, made)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"a": [{"a": [1]}]}, made)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (field(type="string", pattern="^(?!x).*$"), "at $.a: the server does not enforce a lookahead or lookbehind in"),
        (field(type="string", maxLength=9999), "at $.a: the server does not enforce its maxLength"),
        (field(**{"$ref": "#/nowhere"}), "its reference '#/nowhere', which leads out of the schema"),
        (field(type="string", pattern="(?i)^a$"), "its pattern (it ignores case)"),
        (field(enum=list(range(5000))), "its enum of 5,000 values"),
        ({"type": "object", "properties": {f"f{i}": {} for i in range(300)}}, "more than 200 optional properties"),
        (field(enum=["x" * 2_000_000]), "the schema, which is too large"),
    ],
)  # fmt: skip
def test_the_author_is_told_what_the_server_is_not(schema: Schema, words: str) -> None:
    told = server_format(schema)
    assert trouble(told.format) == ""
    [note] = told.notes
    assert words in note and "; obatchd checks the answer for it" in note


def test_a_large_schema_is_given_room_for_its_grammar() -> None:
    """0.24 cuts a grammar that is longer than 32 KiB and four times its schema."""
    names = {f"finding_{i}": {"type": "string"} for i in range(180)}
    told = server_format({"type": "object", "properties": {"report": {"type": "object", "properties": names}}})
    assert told.notes == []
    assert len(json.dumps(told.format)) * 4 > 180 * 500
    jsonschema.Draft202012Validator.check_schema(told.format)


def test_deep_and_wide_schemas_cost_no_more_than_a_moment() -> None:
    deep: Schema = {"type": "null"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    wide = {"anyOf": [{"properties": {f"p{i}": {"$ref": "#"} for i in range(20)}} for _ in range(300)]}
    every = {"allOf": [{"$ref": "#/$defs/x"}] * 50, "$defs": {"x": {"allOf": [{"$ref": "#/$defs/x"}] * 50}}}
    for schema in (deep, wide, every):
        assert trouble(server_format(schema).format) == ""


_ATOMS = st.sampled_from(
    ["a", "Z", "0", "_", "-", " ", '"', "/", "é", "名", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\.", r"\\",
     r"\"", r"\n", r"\t", r"\x41", r"\u00e9", "[a-z]", "[^a-z]", r"[\w.\-]", r"[^\s@]", r"[\d\s]", r"[^\W\d]", "[]a]",
     r"[\]\\^]", '["]', "(?=a)", "(?!b)", r"\b", "$", "^"]
)  # fmt: skip
_COUNTS = st.sampled_from(["", "", "?", "*", "+", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "+?", "{0}", "{3000}"])


def _patterns() -> st.SearchStrategy[str]:
    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        several = st.lists(inner, min_size=1, max_size=3)
        return st.one_of(
            st.tuples(inner, _COUNTS).map("".join),
            several.map("".join),
            st.tuples(st.sampled_from(["(", "(?:", "(?P<n>"]), several, _COUNTS).map(
                lambda made: f"{made[0]}{'|'.join(made[1])}){made[2]}"
            ),
        )

    body = st.recursive(st.one_of(_ATOMS, _ATOMS, st.tuples(_ATOMS, _COUNTS).map("".join)), grown, max_leaves=8)
    return st.tuples(st.sampled_from(["^", "^", ""]), body, st.sampled_from(["$", "$", ""])).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_patterns())
@example("^a|b$")
@example("^(^a$|^b$)$")
@example("^(a$|b)c$")
@example("^(a|aa)?+$")
@example("^(?>a|ab)c$")
@example(r'^["\\\n]+\\$')
@example(r"^[^\W\d_]+ \w\W\s\S\d\D$")
def test_a_pattern_for_a_server_is_safe_and_never_allows_more(pattern: str) -> None:
    told = portable(pattern)
    schema = field(type="string", pattern=pattern)
    assert trouble(server_format(schema).format) == ""
    if told.lost or not told.text:
        return
    for seed in range(3):
        written = text_for(told.text, random.Random(seed))
        with contextlib.suppress(FormatError):  # it is checked for a second, which some patterns take longer than
            AnswerFormat(schema).parse(f'{{"a": "{written}"}}')


_LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([{}, True, False, {"type": "string"}, {"type": "null"}, {"type": ["object", "null"]}]),
    st.sampled_from([{"$ref": "#"}, {"$ref": "#/$defs/d"}, {"enum": [1, "a"]}]),
    st.builds(lambda low, high: {"type": "integer", "minimum": low, "maximum": high}, *[st.integers()] * 2),
    st.builds(lambda low, high: {"type": "string", "minLength": low, "maxLength": high}, *[st.integers(0, 10**6)] * 2),
    st.builds(lambda pattern: {"pattern": pattern}, _patterns()),
)  # fmt: skip
_COUNTED = st.integers(0, 9999)
_NAMES = st.sampled_from(["", "a", "b c", "]", '"', "\\", "größe", "$ref", "string", "root", "-", "x" * 600])


def _schemas() -> st.SearchStrategy[Any]:
    def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        some = st.lists(inner, min_size=1, max_size=3)
        objects = st.fixed_dictionaries(
            {"properties": st.dictionaries(_NAMES, inner, max_size=3)},
            optional={"type": st.just("object"), "required": st.lists(_NAMES, max_size=2, unique=True),
                      "additionalProperties": inner},
        )  # fmt: skip
        arrays = st.fixed_dictionaries(
            {"type": st.just("array")},
            optional={"items": inner, "prefixItems": some, "minItems": _COUNTED, "maxItems": _COUNTED},
        )  # fmt: skip
        several = st.builds(lambda key, parts: {key: parts}, st.sampled_from(["anyOf", "oneOf", "allOf"]), some)
        return st.one_of(objects, arrays, several, st.builds(lambda one, other: {**one, **other}, objects, several))

    return st.recursive(_LEAVES, grown, max_leaves=12)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_schemas(), _schemas())
def test_no_schema_that_can_be_written_harms_a_server(schema: Any, definition: Any) -> None:
    assume(isinstance(schema, dict))
    schema = {**schema, "$defs": {"d": definition}}
    told = server_format(schema)
    assert trouble(told.format) == ""
    jsonschema.Draft202012Validator.check_schema(told.format)
    assert trouble(server_format(told.format).format) == ""
