"""JSON answers: parsed, checked against a schema, asked for once more, and compared with their source."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obatchd.dispatch.worker.answering import structured_answer
from obatchd.ollama import faults
from obatchd.ollama.client import Answer
from obatchd.ollama.faults import Cause
from obatchd.prompts.structured import AnswerFormat, FormatError, Mismatch, answer_format, ungrounded

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("wanted", "text", "data"),
    [
        ("json", '{"a": 1}', {"a": 1}),
        ("json", " [1, 2]\n", [1, 2]),
        ("json", '```json\n{"a": "```"}\n```', {"a": "```"}),
        ("json", '```\n{"a": 1}\n```\n', {"a": 1}),
        (PERSON, '{"name": "Ann", "age": 3}', {"name": "Ann", "age": 3}),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, "2", 2),
        ({"$defs": {"n": {"type": "null"}}, "items": {"$ref": "#/$defs/n"}}, "[null]", [None]),
    ],
)
def test_what_fits_is_parsed(wanted: Any, text: str, data: Any) -> None:
    parsed = AnswerFormat(wanted).parse(text)
    assert parsed.data == data
    assert json.loads(bytes(parsed.raw)) == data


@pytest.mark.parametrize(
    ("wanted", "text", "words"),
    [
        ("json", "", "it is not JSON"),
        ("json", 'Here it is: {"a": 1}', "it is not JSON"),
        ("json", '{"a": 1', "it is not JSON"),
        ("json", "5", "neither a JSON object nor an array"),
        ("json", "[" * 100_000, "it is not JSON"),
        ("json", "```\n" + " " * 1_000_000 + "x", "it is not JSON"),
        (PERSON, '{"age": 3}', "at $: 'name' is a required property"),
        (PERSON, '{"name": "x", "age": -1}', "at $.age: -1 is less than the minimum of 0"),
        (PERSON, '{"name": "x", "other": 1}', "Additional properties are not allowed"),
        (PERSON, '{"name": "x", "age": "' + "y" * 2000 + '"}', "at $.age: 'yyyy"),
    ],
)
def test_what_does_not_fit_is_said_where_and_why(wanted: Any, text: str, words: str) -> None:
    with pytest.raises(Mismatch) as mismatch:
        AnswerFormat(wanted).parse(text)
    assert words in str(mismatch.value)
    assert len(str(mismatch.value)) < 700


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("xml", 'must be "json" or a JSON Schema'),
        ([], 'must be "json" or a JSON Schema'),
        ({"type": "strin"}, "no valid JSON Schema"),
        ({"properties": []}, "no valid JSON Schema"),
        ({"pattern": "("}, "no valid JSON Schema|regular expression"),
    ],
)
def test_a_format_that_is_none_is_refused(wanted: Any, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        AnswerFormat(wanted).parse('"text"')


@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/schema.json", "https://example.com/s", "file:///etc/passwd"])
def test_a_schema_is_never_fetched(reference: str) -> None:
    with pytest.raises(FormatError, match="refers to"):
        AnswerFormat({"$ref": reference}).parse("1")


@pytest.mark.timeout(20, method="thread")  # the other method has the same signal
@pytest.mark.parametrize("keyword", ["pattern", "patternProperties"])
async def test_a_pattern_that_takes_for_ever_fails_its_request_alone(keyword: str) -> None:
    slow = r"^(a+)+$"
    schema = {"properties": {"x": {"pattern": slow}}} if keyword == "pattern" else {"patternProperties": {slow: {}}}
    text = "a" * 60 + "!"
    model = Model(json.dumps({"x": text, text: 1}))
    answer, _ = await structured_answer(model.ask, body(schema), [])
    assert answer.fault is not None
    assert (answer.fault.kind, answer.fault.code) == (faults.REQUEST, "invalid_format")
    assert "longer than 1 s" in answer.fault.message


@pytest.mark.timeout(60, method="thread")
async def test_more_values_than_can_be_looked_up_fail_their_request_alone() -> None:
    model = Model(json.dumps({"mrn": list(range(1_000_000, 1_050_000))}))
    wanted = body({"type": "object"})
    wanted["messages"].append({"role": "user", "content": "lorem ipsum " * 80_000})
    begun_s = time.monotonic()
    answer, _ = await structured_answer(model.ask, wanted, ["mrn"])
    assert answer.fault is not None and answer.fault.code == "invalid_format"
    assert "longer than 1 s" in answer.fault.message
    assert time.monotonic() - begun_s < 20  # a minute, where nothing ends it


def test_a_schema_is_made_ready_once() -> None:
    assert answer_format({"type": "object", "title": "t"}) is answer_format({"title": "t", "type": "object"})


def test_without_a_format_nothing_is_imported_for_it() -> None:
    script = (
        "import obatchd.dispatch.worker.worker, obatchd.settings.settings, sys\n"
        "obatchd.settings.settings.Settings()\n"
        "sys.exit('jsonschema' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(st.sampled_from(['{"a":', "[", "]", "}", "1", '"x"', "```", "```json\n", "\n", ","]), max_size=20).map(
            "".join
        ),
    ),
    st.sampled_from(["json", PERSON, {}]),
)
def test_any_text_is_parsed_or_refused_with_a_reason(text: str, wanted: Any) -> None:
    try:
        parsed = answer_format(wanted).parse(text)
    except Mismatch as mismatch:
        assert str(mismatch)
        return
    json.loads(bytes(parsed.raw))


# Values that must come from the source.

NOTE = "Patient Ann\n  SMITH, MRN 0123-45, born 1.5.1970, weight 72.0 kg, dose 5 mg"


@pytest.mark.parametrize(
    ("data", "fields", "missing"),
    [
        ({"mrn": "0123-45"}, ["mrn"], []),
        ({"mrn": "123-45"}, ["mrn"], ["123-45"]),  # inside a longer number
        ({"mrn": "0123-4"}, ["mrn"], ["0123-4"]),
        ({"name": "ann smith"}, ["name"], []),
        ({"name": "Ann  Smit"}, ["name"], ["Ann  Smit"]),
        ({"dose": 5}, ["dose"], []),
        ({"dose": 5.0}, ["dose"], []),
        ({"dose": 72}, ["dose"], []),
        ({"dose": 7}, ["dose"], [7]),
        ({"dose": 6}, ["other"], []),
        ({"mrn": None, "x": ""}, ["mrn", "x"], []),
        ({"mrn": True}, ["mrn"], []),
        ({"list": [{"mrn": "9"}, {"mrn": "0123-45"}]}, ["mrn"], ["9"]),
        ({"mrn": ["8", "9"]}, ["mrn"], ["8", "9"]),
        ({"patient": {"mrn": "9"}, "mrn": "8"}, ["patient.mrn"], ["9"]),
        ("0123-46", ["mrn"], []),
        ({"unit": "mg"}, ["unit"], []),
        ({"unit": "m"}, ["unit"], ["m"]),
    ],
)
def test_values_that_are_not_in_the_source_are_listed(data: Any, fields: list[str], missing: list[Any]) -> None:
    assert [found["value"] for found in ungrounded(data, fields, NOTE)] == missing


def test_deep_data_is_looked_through() -> None:
    data: Any = "x"
    for _ in range(5000):
        data = {"a": [data]}
    assert ungrounded(data, ["a"], "y") == [{"field": "a", "value": "x"}]


# Asked for once more.


class Model:
    """Gives these answers, one after the other, and keeps what it was asked."""

    def __init__(self, *answers: str | Answer) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answers = [a if isinstance(a, Answer) else Answer(a, "", "stop", 10, 5, 0.5, None) for a in answers]

    async def ask(self, body: dict[str, Any]) -> Answer:
        self.asked.append(body)
        return self._answers[len(self.asked) - 1]


def body(wanted: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "system", "content": "MRN 77"}, {"role": "user", "content": "MRN 5"}],
        "format": wanted,
    }


async def test_an_answer_that_fits_is_asked_for_once() -> None:
    model = Model('{"name": "Ann"}')
    answer, extra = await structured_answer(model.ask, body(PERSON), [])
    assert answer.fault is None
    assert json.loads(bytes(extra["data"])) == {"name": "Ann"}
    assert set(extra) == {"data"}
    assert len(model.asked) == 1


async def test_the_model_is_shown_its_error_once() -> None:
    model = Model("Ann!", '{"name": "Ann"}')
    answer, extra = await structured_answer(model.ask, body(PERSON), [])
    assert answer.fault is None
    assert extra["format_tries"] == 2
    assert (answer.prompt_tokens, answer.response_tokens, answer.eval_s) == (20, 10, 1.0)
    said, wish = model.asked[1]["messages"][-2:]
    assert said == {"role": "assistant", "content": "Ann!"}
    assert "it is not JSON" in wish["content"]
    assert model.asked[0]["messages"] == body(PERSON)["messages"]


@pytest.mark.parametrize(
    ("wanted", "text", "asked"),
    [
        (PERSON, '{"name": "Ann"}', "for any JSON"),
        ({"type": "array", "items": {"type": "string"}}, '["a"]', "without a format"),
        ({"enum": ["a", "b"]}, '"a"', "without a format"),
        ({"anyOf": [{"type": "array"}, {"type": "object", "required": ["a"]}]}, "[1]", "without a format"),
    ],
)
async def test_a_server_that_refuses_the_schema_is_asked_for_nothing_that_it_forbids(
    wanted: Any, text: str, asked: str
) -> None:
    """Any JSON is an object, to Ollama."""
    model = Model(Answer(fault=Cause.INVALID_FORMAT.fault("failed to parse grammar")), text)
    answer, extra = await structured_answer(model.ask, body(wanted), [])
    assert (answer.fault, answer.text) == (None, text)
    assert model.asked[1].get("format", "") == ("json" if asked == "for any JSON" else "")
    assert len(model.asked) == 2
    words = f"format: the server was asked {asked}, because it refuses the schema (failed to parse grammar)"
    assert words in extra["notes"]


async def test_what_does_not_fit_twice_fails_with_the_reason_and_keeps_the_answer() -> None:
    model = Model("{}", '{"name": 5}')
    answer, extra = await structured_answer(model.ask, body(PERSON), [])
    assert answer.fault is not None
    assert (answer.fault.kind, answer.fault.code) == (faults.REQUEST, "format_mismatch")
    assert "after 2 tries: at $.name: 5 is not of type 'string'" in answer.fault.message
    assert answer.text == '{"name": 5}'
    assert "data" not in extra


async def test_an_answer_that_was_cut_is_not_asked_for_again() -> None:
    model = Model(Answer('{"name": "An', "", "length", 1, 1, 0.1, None))
    answer, _ = await structured_answer(model.ask, body("json"), [])
    assert answer.fault is not None
    assert "raise max_response_tokens" in answer.fault.message
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (faults.from_response(400, "the input length exceeds the context length"), "format_mismatch"),
        (faults.connection_lost("gone"), "connection_lost"),
    ],
)
async def test_a_second_try_that_fails_is_the_servers_fault_or_reports_the_first(
    second: faults.Fault, code: str
) -> None:
    model = Model("no", Answer("", "", "", 0, 0, 0.0, second))
    answer, _ = await structured_answer(model.ask, body("json"), [])
    assert answer.fault is not None
    assert answer.fault.code == code


async def test_an_unusable_schema_fails_before_anything_is_asked() -> None:
    model = Model()
    answer, _ = await structured_answer(model.ask, body({"type": "thing"}), [])
    assert answer.fault is not None
    assert (answer.fault.kind, answer.fault.code) == (faults.REQUEST, "invalid_format")
    assert model.asked == []


async def test_examples_in_the_system_message_are_no_source() -> None:
    model = Model('{"mrn": "77", "other": {"mrn": 5}}')
    _, extra = await structured_answer(model.ask, body("json"), ["mrn"])
    assert extra["ungrounded"] == [{"field": "mrn", "value": "77"}]
