"""OpenAI's own client, unmodified, asks for answers at once."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import openai_shapes as shapes
import pytest
from daemon_support import Document
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk
from programs_support import CHAT, Programs, for_all_tests
from pydantic import BaseModel

ANSWERS = {"answer": {"tokens": 6}, "models": [
    {"name": "tiny"}, {"name": "thinker", "capabilities": ["completion", "thinking", "tools"]},
    {"name": "eye", "capabilities": ["completion", "vision"]},
]}  # fmt: skip
EMBEDDINGS = "/v1/embeddings"
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 32).decode()
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


def said(text: str = "Why is the sky blue?") -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """One daemon for all tests that leave it as it was."""
    with for_all_tests(tmp_path_factory.mktemp("inference"), simulator=ANSWERS) as found:
        yield found


@pytest.fixture
def client(programs: Programs) -> Iterator[OpenAI]:
    with programs.client() as client:
        yield client


def states(programs: Programs) -> list[Document]:
    """What the stand-in servers tell of themselves."""
    return [httpx.get(f"{server['url']}/simulator/state").json() for server in programs.d.servers()]


def in_flight(programs: Programs) -> int:
    return sum(state["in_flight"] for state in states(programs))


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def events(programs: Programs, **body: Any) -> list[str]:
    """The data of the events of a stream, as they come."""
    answer = programs.call("POST", CHAT, {"model": "tiny", "messages": said(), "stream": True, **body})
    assert answer.status == 200 and answer.headers["content-type"] == "text/event-stream"
    *whole, rest = answer.body.decode().split("\n\n")
    assert rest == "" and all(event.startswith("data: ") for event in whole)
    return [event.removeprefix("data: ") for event in whole]


# Answers.


@pytest.mark.near
def test_a_chat_whole_and_in_chunks_says_the_same(client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": said(), "seed": 7, "temperature": 0}
    before_s = int(time.time())
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert whole.choices[0].message.content == text_of(chunks) != ""
    assert (whole.object, whole.model, whole.choices[0].finish_reason) == ("chat.completion", "tiny", "stop")
    assert whole.usage is not None and whole.usage.completion_tokens == 6 and whole.usage.prompt_tokens > 0
    first, last = chunks[0], chunks[-1]
    assert first.choices[0].delta.role == "assistant" and first.choices[0].finish_reason is None
    assert last.choices[0].finish_reason == "stop" and not last.choices[0].delta.content
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks)
    for one in (whole, first):
        assert one.id.startswith("chatcmpl-") and one.created >= before_s and one.model == "tiny"
    assert first.id != whole.id


def test_the_shapes_are_the_published_ones(programs: Programs) -> None:
    answer = programs.call("POST", CHAT, {"model": "tiny", "messages": said()})
    jsonschema.validate(answer.document, shapes.CHAT)
    assert answer.document["choices"][0]["message"]["refusal"] is None
    assert answer.headers["x-request-id"].startswith("req_")
    *chunks, done = events(programs)
    assert done == "[DONE]"
    for chunk in chunks:
        jsonschema.validate(json.loads(chunk), shapes.CHUNK)
    vectors = programs.call("POST", EMBEDDINGS, {"model": "tiny", "input": ["a", "b"]}).document
    jsonschema.validate(vectors, shapes.EMBEDDINGS)


@pytest.mark.near
def test_a_stream_ends_with_what_it_took_where_that_is_asked_for(programs: Programs, client: OpenAI) -> None:
    options: Any = {"include_usage": True}
    *others, last = client.chat.completions.create(
        model="tiny", messages=said(), stream=True, stream_options=options, max_tokens=3
    )
    assert last.choices == [] and last.usage is not None
    assert last.usage.completion_tokens == 3 and last.usage.total_tokens == 3 + last.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in others) and others[-1].choices[0].finish_reason == "length"
    *chunks, _ = [json.loads(event) for event in events(programs, stream_options=options)[:-1]]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert "usage" not in json.loads(events(programs, stream_options=None)[0])


@pytest.mark.near
def test_tools(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="thinker", messages=said(), tools=[ADD])
    [choice] = whole.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None and choice.message.tool_calls
    [call] = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "add" and "a" in json.loads(call.function.arguments)
    chunks = list(client.chat.completions.create(model="thinker", messages=said(), tools=[ADD], stream=True))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    [told] = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert told.function is not None and (told.index, told.type) == (0, "function")
    assert told.id == f"call_{chunks[0].id.removeprefix('chatcmpl-')}-1"
    assert (told.function.name, told.function.arguments) == (call.function.name, call.function.arguments)
    with client.chat.completions.stream(model="thinker", messages=said(), tools=[ADD]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls and final.choices[0].message.tool_calls[0].function.name == "add"
    turns = [*said(), choice.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    assert client.chat.completions.create(model="thinker", messages=turns).choices[0].message.content


class User(BaseModel):
    """Somebody in a text."""

    name: str
    age: int


@pytest.mark.near
def test_structured_answers(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model="tiny", messages=said(), response_format=User)
    assert isinstance(parsed.choices[0].message.parsed, User)
    with client.chat.completions.stream(model="tiny", messages=said(), response_format=User) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, User)
    for stream_it in (False, True):
        answer: Any = client.chat.completions.create(
            model="tiny", messages=said(), response_format={"type": "json_object"}, stream=stream_it
        )
        text = text_of(list(answer)) if stream_it else answer.choices[0].message.content
        assert isinstance(json.loads(text), dict)


@pytest.mark.near
def test_reasoning_is_beside_the_answer(client: OpenAI) -> None:
    asked: Any = {"model": "thinker", "messages": said(), "reasoning_effort": "high"}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.content and message.model_extra and message.model_extra["reasoning"]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    thought = "".join((chunk.choices[0].delta.model_extra or {}).get("reasoning", "") for chunk in chunks)
    assert thought and text_of(chunks)


def test_images_are_data_and_no_addresses(client: OpenAI) -> None:
    def shown(url: str) -> Any:
        parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
        return [{"role": "user", "content": parts}]

    assert client.chat.completions.create(model="eye", messages=shown(PIXEL)).choices[0].message.content
    for model, url in (("eye", "https://example.org/a.png"), ("tiny", PIXEL)):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=model, messages=shown(url))


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_to_one_question(client: OpenAI, stream: bool) -> None:
    answer: Any = client.chat.completions.create(model="tiny", messages=said(), n=3, stream=stream)
    if not stream:
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return
    texts = {0: "", 1: "", 2: ""}
    ends = []
    for chunk in answer:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert all(texts.values()) and ends == [0, 1, 2]


def test_vectors(programs: Programs, client: OpenAI) -> None:
    # The client asks for base64, which its own strict validation takes for no vector.
    with programs.client(_strict_response_validation=False) as loose:
        by_default = loose.embeddings.create(model="tiny", input="a")
    floats = client.embeddings.create(model="tiny", input=["a", "b"], encoding_format="float")
    assert [one.index for one in floats.data] == [0, 1] and floats.usage.prompt_tokens > 0
    assert by_default.data[0].embedding == pytest.approx(floats.data[0].embedding, rel=1e-6)
    small = client.embeddings.create(model="tiny", input=["a"], dimensions=8, encoding_format="float")
    assert len(small.data[0].embedding) == 8
    packed = programs.call("POST", EMBEDDINGS, {"model": "tiny", "input": "a", "encoding_format": "base64"}).document
    values = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(values) // 4}f", values)) == pytest.approx(floats.data[0].embedding, rel=1e-6)
    plain = programs.call("POST", EMBEDDINGS, {"model": "tiny", "input": "a"}).document
    assert plain["data"][0]["embedding"] == floats.data[0].embedding
    with pytest.raises(openai.BadRequestError, match="tokens are not supported"):
        client.embeddings.create(model="tiny", input=[[1, 2, 3]], encoding_format="float")


@pytest.mark.near
def test_many_at_once_with_the_asynchronous_client(programs: Programs) -> None:
    async def one(asking: AsyncOpenAI, number: int) -> str:
        messages = said(f"question {number}")
        if number % 2:
            whole = await asking.chat.completions.create(model="tiny", messages=messages)
            return whole.choices[0].message.content or ""
        stream = await asking.chat.completions.create(model="tiny", messages=messages, stream=True)
        return text_of([chunk async for chunk in stream])

    async def ask() -> list[str]:
        async with AsyncOpenAI(
            base_url=programs.url, api_key=programs.key, max_retries=0, _strict_response_validation=True
        ) as asking:
            answers = await asyncio.gather(*(one(asking, number) for number in range(40)))
            assert (await asking.embeddings.create(model="tiny", input="a", encoding_format="float")).data
            return list(answers)

    answers = asyncio.run(ask())
    assert all(answers) and len(set(answers)) == 40


# Refusals.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "status", "code", "param"),
    [
        ({"model": "nope"}, 404, "model_not_found", "model"),
        ({"model": None}, 400, "missing_required_parameter", "model"),
        ({"model": 7}, 400, "invalid_type", "model"),
        ({"messages": None}, 400, "missing_required_parameter", None),
        ({"messages": 7}, 400, "invalid_request", "messages"),
        ({"logprobs": True}, 400, "unsupported_parameter", "logprobs"),
        ({"logit_bias": {"1": 2}}, 400, "unsupported_parameter", "logit_bias"),
        ({"temperature": "hot"}, 400, "invalid_request", "temperature"),
        ({"n": 17}, 400, "unsupported_parameter", "n"),
        ({"stream_options": 3}, 400, "invalid_type", "stream_options"),
        ({"messages": [{"role": "user", "content": "long " * 10000}]}, 400, "context_length_exceeded", None),
    ],
)
def test_refusals(programs: Programs, stream: bool, more: Document, status: int, code: str, param: str | None) -> None:
    refused = programs.call("POST", CHAT, {"model": "tiny", "messages": said(), "stream": stream, **more})
    assert (refused.status, refused.error["code"], refused.error["param"]) == (status, code, param), refused.body
    assert refused.error["type"] == "invalid_request_error"


def test_bodies_that_are_none(programs: Programs) -> None:
    for body in (b"", b"[", b"[]", b'{"model": "tiny", "messages": "\xff"}', b'{"stream": 1}'):
        assert programs.call("POST", CHAT, body).status == 400
    refused = programs.call("POST", EMBEDDINGS, {"model": "tiny", "input": "a", "stream": True})
    assert (refused.status, refused.error["param"]) == (400, "stream")
    pretty = json.dumps({"model": "tiny", "messages": said(), "user": None}, indent=2).encode()
    assert programs.call("POST", CHAT, pretty).status == 200


def test_a_key_has_to_be_good_for_it(programs: Programs) -> None:
    with programs.client(api_key=programs.make_key("--scope", "batches")) as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(model="tiny", messages=said())
        assert caught.value.code == "insufficient_scope"
        with pytest.raises(openai.PermissionDeniedError):
            client.embeddings.create(model="tiny", input="a")
    with programs.client(api_key="obk_wrong") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="tiny", messages=said())


def test_nothing_of_it_is_kept(programs: Programs, client: OpenAI) -> None:
    jobs = programs.d.client.get("jobs")
    text = client.chat.completions.create(model="tiny", messages=said("a secret of mine")).choices[0].message.content
    assert text and programs.d.client.get("jobs") == jobs
    found = [path for path in programs.d.spool.rglob("*") if path.is_file()]
    assert found
    for path in found:
        content = path.read_bytes()
        assert b"a secret of mine" not in content and text.encode() not in content, path
    assert "a secret of mine" not in programs.d.log() and text not in programs.d.log()
