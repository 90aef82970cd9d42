"""Answers at once that have no text, or that their token limit cuts: they come as they are, with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import ollama
import openai
import pytest
from daemon_support import Daemon
from openai import OpenAI
from programs_support import Programs, over_http
from pydantic import BaseModel

pytestmark = pytest.mark.timeout(120)
SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
TOOL: Any = {"type": "function", "function": {"name": "say", "parameters": SCHEMA}}


class Said(BaseModel):
    """What a structured answer says."""

    word: str


@pytest.fixture
def programs(make_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> Programs:
    faults = [{"kind": "empty", "marker": "say nothing"}]
    found = over_http(make_daemon, simulator={"faults": faults})
    found.d.start().ready()
    monkeypatch.setenv("OLLAMA_API_KEY", found.key)
    return found


@pytest.fixture
def client(programs: Programs) -> Iterator[OpenAI]:
    with programs.client() as client:
        yield client


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_an_answer_without_text_is_an_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=said("say nothing"), max_tokens=5)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("", "length")
    several = client.chat.completions.create(model="tiny", messages=said("say nothing"), n=2)
    assert [choice.message.content for choice in several.choices] == ["", ""]
    chunks = list(client.chat.completions.create(model="tiny", messages=said("say nothing"), stream=True))
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_ollamas_own_client_gets_it_too(programs: Programs) -> None:
    with ollama.Client(f"http://127.0.0.1:{programs.port}") as client:
        answer = client.chat("tiny", [{"role": "user", "content": "say nothing"}])
        assert (answer.message.content, answer.done, answer.done_reason) == ("", True, "length")
        assert not client.generate("tiny", "say nothing").response
        *_, last = client.generate("tiny", "say nothing", stream=True)
        assert (last.response, last.done) == ("", True)
        cut = client.chat("tiny", [{"role": "user", "content": "x"}], format=SCHEMA, options={"num_predict": 1})
        assert cut.message.content and cut.done_reason == "length"
        with pytest.raises(ValueError):
            json.loads(cut.message.content)


def test_a_structured_answer_that_is_cut_says_so_to_the_client(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tiny", messages=said("x"), response_format=Said, max_tokens=1)
    form: Any = {"type": "json_schema", "json_schema": {"name": "said", "schema": SCHEMA}}
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=said("x"), response_format=form, max_tokens=1, stream=True
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_so_does_the_call_of_a_function_that_had_to_be_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=said("x"), tools=[TOOL], tool_choice="required", max_tokens=1
    )
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].message.tool_calls
