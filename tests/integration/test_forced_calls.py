"""OpenAI's own client leaves a model no choice but to call one function."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import openai
import pytest
from daemon_support import Daemon
from programs_support import over_http

from obatchd.errors import ApiError
from obatchd.front.inference.forced import take_forced

PARAMETERS = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
AGE: Any = {"type": "function", "function": {"name": "age", "description": "Note an age.", "parameters": PARAMETERS}}
OTHER: Any = {"type": "function", "function": {"name": "other"}}
NAMED: Any = {"type": "function", "function": {"name": "age"}}
ASKED: Any = [{"role": "user", "content": "A man of 61."}]


def test_the_answer_is_a_call_of_it(make_daemon: Callable[..., Daemon]) -> None:
    found = over_http(make_daemon, simulator={"answer": {"tokens": 6}})
    found.d.start().ready()
    with found.client() as client:
        create: Any = client.chat.completions.create
        for tools, choice in (([AGE, OTHER], NAMED), ([AGE], "required")):
            [one] = create(model="tiny", messages=ASKED, tools=tools, tool_choice=choice).choices
            assert one.message.content is None and one.finish_reason == "stop"
            [call] = one.message.tool_calls
            assert call.function.name == "age" and isinstance(json.loads(call.function.arguments)["age"], int)
        several = create(model="tiny", messages=ASKED, tools=[AGE], tool_choice=NAMED, n=2, seed=1).choices
        assert len({call.id for one in several for call in one.message.tool_calls}) == 2
        with client.chat.completions.stream(
            model="tiny", messages=ASKED, tools=[AGE], tool_choice=NAMED, seed=1
        ) as stream:
            [streamed] = stream.get_final_completion().choices[0].message.tool_calls or ()
        assert isinstance(json.loads(streamed.function.arguments)["age"], int) and streamed.id
        for tools, choice, words in (
            ([OTHER], NAMED, "not among the tools"),
            ([AGE, OTHER], "required", "tool_choice"),
        ):
            with pytest.raises(openai.BadRequestError, match=words):
                create(model="tiny", messages=ASKED, tools=tools, tool_choice=choice)


def fields(**given: Any) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in given.items()}


def test_the_model_is_told_what_the_function_is_for() -> None:
    asked = fields(messages=ASKED, tools=[AGE, OTHER], tool_choice=NAMED, temperature=0)
    assert take_forced(asked) == "age"
    assert asked.keys() == {"messages", "response_format", "temperature"}
    told, *rest = json.loads(bytes(asked["messages"]))
    assert told["role"] == "system" and "Note an age." in told["content"] and rest == ASKED
    assert json.loads(bytes(asked["response_format"]))["json_schema"] == {"name": "age", "schema": PARAMETERS}


@pytest.mark.parametrize(
    "given",
    [{}, {"tools": [AGE]}, {"tools": [AGE], "tool_choice": "auto"}, {"tools": [AGE, OTHER], "tool_choice": "required"},
     {"tool_choice": NAMED}, {"tools": "x", "tool_choice": "required"}, {"tools": [AGE], "tool_choice": "none"}],
)  # fmt: skip
def test_what_leaves_a_choice_stays_as_it_is(given: dict[str, Any]) -> None:
    asked = fields(messages=ASKED, **given)
    before = dict(asked)
    assert take_forced(asked) is None and asked == before


@pytest.mark.parametrize("tools", [[OTHER], [{}], [{"function": {}}], ["age"]])
def test_a_function_that_is_not_among_the_tools_is_refused(tools: Any) -> None:
    with pytest.raises(ApiError, match="not among the tools"):
        take_forced(fields(tools=tools, tool_choice=NAMED))
