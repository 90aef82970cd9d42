"""What people really have in their files, after public bug reports: each input comes to its right end.

The files lie in ``tests/fixtures/field``; beside each kind stand more members of it.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obatchd.errors import DropRefused
from obatchd.jobs.formats import Format, RecordRules, Request, parse_request, read_entries, recognise, request_file
from obatchd.settings.tables.spool import InboxSettings

FIELD = Path(__file__).parents[1] / "fixtures" / "field"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


class Reading:
    """A drop's requests and refusals, by id or else by line."""

    def __init__(self, path: Path, name: str, rules: RecordRules, limits: InboxSettings) -> None:
        self.form = recognise(path, name, rules.encoding)
        entries = list(read_entries(path, name, limits, rules=rules))
        content = request_file(path).read_bytes()
        self.ids = [entry.id for entry in entries]
        self.lines = [entry.line for entry in entries]
        self.requests: dict[str, Request] = {}
        self.refused: dict[str, tuple[str, str]] = {}
        for entry in entries:
            if entry.refusal is None:
                request = parse_request(content[entry.offset : entry.offset + entry.length])
                assert request.id == entry.id
                self.requests[entry.id or str(entry.line)] = request
            else:
                self.refused[entry.id or str(entry.line)] = (entry.refusal.code, entry.refusal.message)

    @property
    def prompts(self) -> list[str]:
        return [request.prompt for request in self.requests.values()]

    @property
    def notes(self) -> list[str]:
        return ["; ".join(request.notes) for request in self.requests.values()]

    def __getitem__(self, name: str) -> Request:
        return self.requests[name]


Read = Callable[..., Reading]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a file of ``tests/fixtures/field``, or ``content`` under a name."""

    def reading(
        name: str, content: bytes | str | None = None, rules: RecordRules | None = None, **limits: Any
    ) -> Reading:
        path = tmp_path / f"job{len(list(tmp_path.iterdir()))}" / "input"
        path.parent.mkdir()
        if content is None:
            content = (FIELD / name).read_bytes()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Reading(path, name, rules or RecordRules(), InboxSettings(**limits))

    return reading


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def one(read: Read, record: Any) -> Request:
    """The request in a file of one plain line."""
    reading = read("r.jsonl", lines(record))
    assert not reading.refused, reading.refused
    [request] = reading.requests.values()
    return request


def refusal(read: Read, record: Any) -> tuple[str, str]:
    reading = read("r.jsonl", lines(record) if not isinstance(record, bytes) else record)
    [refused] = reading.refused.values()
    return refused


def given(request: Request) -> dict[str, Any]:
    return {name: json.loads(bytes(value)) for name, value in request.input.items()}


def said(request: Request) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request.messages]


# Rows of data sets.


def test_rows_of_alpaca_are_asked_and_never_embedded(read: Read) -> None:
    reading = read("a01-alpaca.jsonl")
    assert reading.prompts == ["Translate to French.\n\nGood morning.", "Name three colours."]
    assert [request.embed for request in reading.requests.values()] == [None, None]
    assert reading.notes == ['the prompt is made of "instruction" and "input"', ""]
    assert given(reading["1"]) == {"output": "Bonjour."}


def test_rows_like_alpacas_are_asked(read: Read) -> None:
    dolly = {"instruction": "When?", "context": "In 1900.", "response": "1900", "category": "qa"}
    assert one(read, dolly).prompt == "When?\n\nIn 1900."
    for empty in ({"instruction": "", "input": "Say hi"}, {"Instruction": "Say hi"}, {"Prompt": "Say hi", "Answer": 1}):
        assert (one(read, empty).prompt, one(read, empty).embed) == ("Say hi", None)
    turns = one(read, {"instruction": "and now?", "input": "", "history": [["hi", "hello"]], "system": "Be brief."})
    assert said(turns) == [("user", "hi"), ("assistant", "hello"), ("user", "and now?")]
    assert turns.system == "Be brief."
    table = read("t.csv", "instruction,input,output\nTranslate.,Good morning.,x\nSay hi,,y\n")
    assert table.prompts == ["Translate.\n\nGood morning.", "Say hi"]
    assert '--template puts other columns into it: "output"' in table.notes[0]


@pytest.mark.parametrize("answer", ["output", "target", "ideal", "expected_output"])
def test_inputs_beside_answers_are_not_taken_for_texts_to_embed(read: Read, answer: str) -> None:
    code, message = refusal(read, {"id": "x", "input": "2+2?", answer: "4"})
    assert code == "missing_prompt"
    assert f'"input" and "{answer}"' in message
    assert "--text-column input" in message
    assert one(read, {"id": "x", "input": "a text", "category": "c"}).embed == "a text"
    assert one(read, {"input": [{"role": "user", "content": "2+2?"}], answer: "4"}).prompt == "2+2?"


def test_conversations_of_sharegpt_are_messages(read: Read) -> None:
    reading = read("a02-sharegpt.json")
    assert said(reading["c1"])[::3] == [("system", "Be brief."), ("user", "Give two.")]
    assert reading["c1"].prompt == "Give two."
    assert said(reading["c2"]) == [("user", "Hi")]
    for name in ("conversations", "conversation", "dialogue"):
        assert said(one(read, {name: [{"role": "Human", "content": "hi"}]})) == [("user", "hi")]
    assert said(one(read, {"messages": json.dumps([{"role": "user", "content": "hi"}])})) == [("user", "hi")]
    tools = [
        {"from": "human", "value": "w?"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "1"},
    ]
    assert [role for role, _ in said(one(read, {"conversations": tools}))] == ["user", "assistant", "tool"]
    assert given(one(read, {"prompt": "p", "conversations": "three"})) == {"conversations": "three"}


def test_a_prompt_may_be_messages_and_stand_beside_messages(read: Read) -> None:
    reading = read("a04-trl-prompt-list.jsonl")
    assert said(reading["1"]) == [("user", "What colour is the sky?")]
    assert given(reading["1"]) == {"answer": "blue"}
    assert reading.notes == ['its "prompt" is a list of messages, and is sent as a conversation']
    reading = read("j02-ultrachat.jsonl")
    assert said(reading["1"])[-1] == ("assistant", "Mix flour...")
    assert "the messages are sent, the prompt is not" in reading.notes[0]
    assert given(reading["1"])["prompt"] == "How do I bake bread?"
    parts = one(read, {"prompt": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
    assert said(parts) == [("user", "a\nb")]
    assert one(read, {"prompt": ["only one"]}).prompt == "only one"
    assert "a line of its own" in refusal(read, {"prompt": ["a", "b"]})[1]


def test_who_has_the_last_word_is_said(read: Read) -> None:
    reading = read("a05-messages-trailing-assistant.jsonl")
    assert all("ends with the assistant: the model goes on" in note for note in reading.notes)
    assert said(reading["t2"])[-1] == ("assistant", "You are great!")
    assert one(read, {"messages": [{"role": "user", "content": "hi"}]}).notes == []


@pytest.mark.parametrize("name", ["text", "question", "query"])
def test_fields_are_called_as_columns_are(read: Read, name: str) -> None:
    assert one(read, {"id": 1, name: "what?"}).prompt == "what?"
    asked = one(read, {name: "what?", "context": "long"})
    assert asked.notes == [f'"{name}" is the prompt; --template puts other fields into it: "context"']
    table = read("t.csv", f"ID,{name},context\n7,what?,long\n")
    assert (table.ids, table.prompts) == (["7"], ["what?"])


def test_the_fields_that_are_there_are_listed_where_there_is_no_prompt(read: Read) -> None:
    assert read("a07-text-field.jsonl").prompts == ["Summarise: the cat sat.", "Summarise: the dog ran."]
    assert read("a08-question-field.jsonl").prompts == ["What is the boiling point of water?"]
    code, message = refusal(read, {"id": 3, "body_text": "x", "lang": "en"})
    assert code == "missing_prompt"
    assert 'it has the fields "id", "body_text", "lang"' in message
    assert "--text-column" in message
    assert "--template" in message


def test_columns_called_like_settings_are_refused_with_the_way_to_have_them_as_data(read: Read) -> None:
    reading = read("i04-mmlu-options.jsonl")
    assert set(reading.refused) == {"q1", "q2", "q3", "q4", "q6"}
    for _, message in reading.refused.values():
        assert "--text-column or --template" in message
    assert 'the role "nurse" is none of system, user, assistant, tool' in reading.refused["q3"][1]
    assert (reading["q7"].think, reading["q8"].system) == (True, "Be brief.")
    data = read("i04-mmlu-options.jsonl", rules=RecordRules(text_column="prompt"))
    assert len(data.requests) == 8
    assert given(data["q1"])["options"] == ["4", "5"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", "hammer"), ("temperature", 38.5), ("seed", "sunflower"), ("stop", 7), ("response_format", "letter"),
     ("system", 5), ("max_tokens", "many"), ("reasoning_effort", "huge")],
)  # fmt: skip
def test_data_called_like_a_setting_is_never_obeyed(read: Read, field: str, value: Any) -> None:
    code, message = refusal(read, {"id": "x", "prompt": "p", field: value})
    assert code == "wrong_type"
    assert field in message
    assert json.dumps(value) in message


# No message has words of Python's or of a parser's for kinds of values.


@pytest.mark.parametrize(
    "record",
    [{"prompt": 5}, {"prompt": {"a": 1}}, {"prompt": "x", "options": []}, {"prompt": "x", "system": True},
     {"prompt": "x", "messages": 5}, {"messages": [5]}, {"prompt": "x", "id": []}, {"prompt": "x", "urls": {}},
     {"prompt": "x", "model": 7}, {"prompt": "x", "think": []}, {"prompt": "x", "images": [5]}, [1], "text", 7],
)  # fmt: skip
def test_refusals_have_no_words_of_python(read: Read, record: Any) -> None:
    reading = read("r.jsonl", lines({"id": "good", "prompt": "p"}, record))
    [(_, message)] = reading.refused.values()
    for word in ("`", "str", "int", "dict", "None", "True", "array", "$."):
        assert word not in message.replace("instructions", "")


# Roles and parts.


def test_roles_are_mapped_or_refused_and_never_dropped(read: Read) -> None:
    reading = read("i10-empty-msgs.jsonl")
    assert {name: said(reading[name]) for name in ("e3", "e4", "e5")} == {
        "e3": [("user", "hi")], "e4": [("system", "Be brief"), ("user", "hi")], "e5": [("user", "hi")],
    }  # fmt: skip
    assert [said(reading[name]) for name in ("e6", "e7", "e8")] == [[("user", "hi")]] * 3
    assert {name: code for name, (code, _) in reading.refused.items()} == {
        "e1": "missing_prompt",
        "e2": "missing_prompt",
    }
    assert (reading["e9"].prompt, reading["e10"].prompt) == ("hi", "hi")
    for role in ("narrator", "", 5, None):
        code, message = refusal(read, {"id": "m", "messages": [{"role": role, "content": "x"}]})
        assert code == "wrong_type"
        assert "role" in message
    assert (
        "is none of system, user, assistant, tool"
        in refusal(read, {"messages": [{"role": "narrator", "content": "x"}]})[1]
    )
    for theirs, ours in (("GPT", "assistant"), ("model", "assistant"), ("developer", "system"), ("ipython", "tool")):
        chat = [{"role": "user", "content": "q"}, {"role": theirs, "content": "x"}, {"role": "user", "content": "q"}]
        assert said(one(read, {"messages": chat}))[1] == (ours, "x")


def test_parts_and_calls_are_read_as_in_batch_lines(read: Read) -> None:
    assert said(read("a03-hf-messages-parts.jsonl")["p1"]) == [("user", "What is 2+2?")]
    messages = read("a06-messages-toolcalls.jsonl")["tc"].messages
    assert messages[1]["tool_calls"] == [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]
    assert messages[2] == {"role": "tool", "content": "12 C", "tool_name": "get_weather"}
    url = f"data:image/png;base64,{PNG}"
    parts = [{"type": "input_text", "text": "see"}, "this", {"type": "input_image", "image_url": url},
             {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]  # fmt: skip
    message = one(read, {"messages": [{"role": "user", "content": parts}]}).messages[0]
    assert (message["content"], message["images"]) == ("see\nthis", [url, PNG])
    assert one(read, {"role": "human", "content": [{"type": "text", "text": "hi"}]}).prompt == "hi"
    assert "input_audio" in refusal(read, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]})[1]


def test_pictures_are_taken_however_they_are_written(read: Read) -> None:
    reading = read("g01-wrapped-b64.jsonl")
    assert set(reading.requests) == {"i1", "i2", "i3", "i4", "i5", "i6"}
    assert "/data/pics/a.png" in reading.refused["i7"][1]
    assert "pictures are not fetched" in reading.refused["i8"][1]
    [image] = read("i21-image-only-plain.jsonl")["x"].images
    assert image == PNG
    seen = one(read, {"prompt": [{"type": "text", "text": "see"}], "image": PNG})
    assert seen.messages == [{"role": "user", "content": "see", "images": [PNG]}]
    assert (
        "put the images into a message"
        in refusal(read, {"messages": [{"role": "user", "content": "a"}], "image": PNG})[1]
    )
    message = {"role": "user", "content": "", "images": PNG[:40] + "\r\n" + PNG[40:]}
    assert one(read, {"messages": [message]}).messages[0]["images"] == [PNG[:40] + "\r\n" + PNG[40:]]
    assert "there is no text" in refusal(read, {"messages": [{"role": "user", "content": " "}]})[1]


# Settings.


def test_bodies_of_calls_are_obeyed(read: Read) -> None:
    [request] = read("b01-openai-body-lines.jsonl").requests.values()
    assert request.options == {"temperature": 0, "seed": 3, "stop": ["X"]}
    assert (request.model, request.max_response_tokens, request.format, request.prompt) == (
        "tiny",
        7,
        "json",
        "Extract.",
    )
    assert given(request) == {"metadata": {"row_id": 1}}
    request = read("b02-toplevel-temp.jsonl")["x"]
    assert (request.options, request.max_response_tokens) == ({"temperature": 0, "top_p": 0.1, "num_predict": 5}, 5)
    assert request.input == {}
    request = read("b03-native-generate.jsonl")["1"]
    assert [note.partition(" is left out")[0] for note in request.notes] == ["raw", "template", "suffix", "context"]
    assert request.options == {"temperature": 0}


def test_every_known_setting_beside_a_prompt_is_obeyed_or_noted(read: Read) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    flat = {"type": "function", "name": "f", "parameters": {}}
    for tools in ([tool], [flat], json.dumps([tool]), [{"name": "f", "input_schema": {}}]):
        assert one(read, {"prompt": "p", "tools": tools}).tools == [tool]
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "n_predict"):
        assert one(read, {"prompt": "p", name: 9.0}).max_response_tokens == 9
    request = one(read, {"prompt": "p", "repetition_penalty": "1.2", "stop_sequences": ["a"], "num_ctx": 9000})
    assert (request.options, request.context_length) == (
        {"repeat_penalty": 1.2, "stop": ["a"], "num_ctx": 9000}, 9000
    )  # fmt: skip
    for name, value, think in (
        ("reasoning_effort", "none", False), ("reasoning", {"effort": "high"}, "high"),
        ("enable_thinking", False, False),
        ("chat_template_kwargs", {"enable_thinking": True}, True), ("thinking", {"type": "disabled"}, False),
        ("think", "low", "low"),
    ):  # fmt: skip
        assert one(read, {"prompt": "p", name: value}).think == think
    for name in ("parameters", "sampling_params", "generation_config"):
        assert one(read, {"prompt": "p", name: {"temperature": 0.5, "max_new_tokens": 5}}).options == {
            "temperature": 0.5, "num_predict": 5
        }  # fmt: skip
        assert given(one(read, {"prompt": "p", name: {"speed": 3}})) == {name: {"speed": 3}}
    assert one(read, {"prompt": "p", "image": PNG}).images == [PNG]
    for name, value in (
        ("stream", True),
        ("logprobs", True),
        ("tool_choice", "required"),
        ("image_url", "http://x/y.png"),
    ):
        assert one(read, {"prompt": "p", name: value}).notes[0].startswith(f"{name} is left out: ")
    asked = {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "n": 17, "system": "c"}
    assert len(one(read, asked).notes) == 2
    assert given(one(read, {"prompt": "p", "n": 3, "context": "a text", "reasoning": "because", "echo": "e"})) == {
        "n": 3, "context": "a text", "reasoning": "because", "echo": "e"
    }  # fmt: skip
    assert one(read, {"prompt": "p", "options": {"temprature": 1}}).notes == [
        "options.temprature is no option that Ollama is known to have"
    ]
    assert one(read, {"prompt": "p", "temperature": 1, "options": {"temperature": 0}}).options == {"temperature": 0}


def test_options_are_read_as_they_are_meant(read: Read) -> None:
    reading = read("b05-options-wrong.jsonl")
    assert [reading[name].options for name in ("o1", "o2", "o3", "o4", "o5", "o6", "o8")] == [
        {"temperature": 0}, {"num_predict": 5}, {"num_ctx": 8192}, {"num_ctx": 8192}, {"num_predict": 5},
        {"stop": ["X"]}, {"temperature": 0},
    ]  # fmt: skip
    assert (reading["o3"].context_length, reading["o4"].context_length) == (8192, 8192)
    assert reading["o9"].max_response_tokens == 20
    assert "options.seed must be a whole number, not 1.5" in reading.refused["o7"][1]
    assert type(one(read, {"prompt": "p", "options": {"num_ctx": 8192.0}}).options["num_ctx"]) is int


def test_formats_are_taken_in_every_shape(read: Read) -> None:
    reading = read("b06-format-string-schema.jsonl")
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert {name: request.format for name, request in reading.requests.items()} == {
        "f1": schema, "f2": {"type": "object"}, "f3": "json", "f4": "json", "f5": "json",
    }  # fmt: skip
    assert 'format must be "json" or a JSON Schema' in reading.refused["f6"][1]
    for shape in (
        {"type": "json_schema", "name": "n", "schema": schema}, {"name": "n", "strict": True, "schema": schema},
        {"type": "json_object", "schema": schema},
        json.dumps({"type": "json_schema", "json_schema": {"schema": schema}}),
    ):  # fmt: skip
        assert one(read, {"prompt": "p", "response_format": shape}).format == schema
    assert one(read, {"prompt": "p", "response_format": {"type": "text"}}).format == ""
    assert one(read, {"prompt": "p", "format": {"$ref": "#/$defs/a", "$defs": {"a": {}}}}).format is not None


# Batch files.


def batch(custom_id: Any = "a", url: str | None = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Say hi"}]}
    return {"custom_id": custom_id, "body": body} | ({"url": url} if url else {}) | fields


def test_a_batch_file_is_judged_line_by_line(read: Read) -> None:
    reading = read("c01-first-line-no-id.jsonl")
    assert reading.form is Format.BATCH
    assert reading.refused["1"][0] == "missing_required_parameter"
    assert [reading[name].prompt for name in ("r2", "r3")] == ["Say r2", "Say r3"]
    first = {"method": "POST", "url": "/v1/embeddings", "body": {"input": "x" * 200_000}}
    assert read("long.jsonl", lines(first | {"custom_id": "long"}, batch("b"))).form is Format.BATCH
    assert read("b.jsonl", b"\xef\xbb\xbf{broken\n" + lines(batch("a"), batch("b"))).form is Format.BATCH
    mixed = read("m.jsonl", lines({"prompt": "x"}, {"prompt": "y"}, batch("a")))
    assert (mixed.form, mixed.prompts) == (Format.LINES, ["x", "y", "Say hi"])
    data = read("d.jsonl", lines({"prompt": "p", "url": "u", "body": "text"}))
    assert data.form is Format.LINES


@pytest.mark.parametrize(
    ("name", "prompts"),
    [("c02-no-method.jsonl", {"r1": "Say r1", "r2": "Say r2"}), ("c03-int-ids-bom.jsonl", {"1": "Say 1", "2": "Say 2"}),
     ("c05-responses-url.jsonl", {"qa1": "Where is my order?"}),
     ("c06-ollama-urls.jsonl", {"g1": "Say hi", "g2": "Say bye"}),
     ("c07-anthropic.jsonl", {"an1": "Say hi"}), ("c08-floats.jsonl", {"r1": "hi", "r2": "hi"}),
     ("c10-mixed-case.jsonl", {f"r{n}": f"Say r{n}" for n in range(1, 5)})],
)  # fmt: skip
def test_other_dialects_of_batch_files_are_taken(read: Read, name: str, prompts: dict[str, str]) -> None:
    reading = read(name)
    assert {name: request.prompt for name, request in reading.requests.items()} == prompts
    assert {name: code for name, (code, _) in reading.refused.items()} == (
        {"r3": "unsupported_parameter"} if name == "c08-floats.jsonl" else {}
    )


def test_what_a_dialect_says_is_obeyed(read: Read) -> None:
    answer = read("c05-responses-url.jsonl")["qa1"]
    assert said(answer) == [("system", "Be short."), ("user", "Where is my order?")]
    assert (answer.think, answer.max_response_tokens, answer.url) == ("low", 60, "/v1/responses")
    assert read("c08-floats.jsonl")["r1"].max_response_tokens == 100
    assert read("c07-anthropic.jsonl")["an1"].max_response_tokens == 100
    azure = "/openai/deployments/gpt/chat/completions?api-version=2024-10-21"
    for url in (azure, "chat/completions", "HTTP://host/v1/Chat/Completions"):
        assert read("b.jsonl", lines(batch(url=url)))["a"].url == "/v1/chat/completions"
    assert read("b.jsonl", lines(batch(url=None)))["a"].prompt == "Say hi"  # Mistral's
    claude = {"model": "m", "system": [{"type": "text", "text": "Be brief."}], "max_tokens": 9, "stop_sequences": ["x"],
              "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}  # fmt: skip
    request = read("c.jsonl", lines({"custom_id": "c", "params": claude}))["c"]
    assert (request.system, request.options, request.prompt) == ("Be brief.", {"stop": ["x"]}, "hi")
    bedrock = {"recordId": "r9", "modelInput": {"anthropic_version": "x", **claude}}
    assert read("c.jsonl", lines(bedrock))["r9"].prompt == "hi"
    gemini = {"key": "g1", "request": {"contents": [{"parts": [{"text": "hi"}]}]}}
    code, message = read("c.jsonl", lines(gemini)).refused["g1"]
    assert code == "missing_required_parameter"
    assert '"contents" (of Gemini\'s)' in message
    items = [{"role": "user", "content": [{"type": "input_text", "text": "w?"}]},
             {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "c1", "output": "rain"}]  # fmt: skip
    body = {"input": items, "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
            "top_logprobs": None, "include": ["x"]}  # fmt: skip
    request = read("r.jsonl", lines(batch(url="/v1/responses", body=body)))["a"]
    assert [role for role, _ in said(request)] == ["user", "assistant", "tool"]
    assert (request.messages[2]["tool_name"], request.format) == ("f", {"type": "object"})
    assert '"include"' in request.notes[0]
    plain = one(read, {"model": "m", "input": "hi", "instructions": "Be brief.", "max_output_tokens": 5})
    assert (said(plain), plain.embed) == ([("system", "Be brief."), ("user", "hi")], None)


# Lists of requests.


def test_lists_of_texts_are_prompts(read: Read) -> None:
    assert read("a09-strings.json").prompts == ["Say hi", "Say bye"]
    mixed = read("m.json", json.dumps(["a", {"id": "x", "prompt": "b"}, [{"role": "user", "content": "c"}], 7]))
    assert mixed.prompts == ["a", "b", "c"]
    assert mixed.refused["4"][0] == "wrong_type"


FRAMES: list[Any] = [
    {"prompt": {"0": "a", "1": "b"}, "id": {"0": 1, "1": 2}},
    {"0": {"prompt": "a"}, "1": {"prompt": "b"}},
    {"prompt": ["a", "b"], "n": [1, 2]},
    {"columns": ["id", "prompt"], "index": [0, 1], "data": [[1, "a"], [2, "b"]]},
    {"schema": {"fields": []}, "data": [{"prompt": "a"}, {"prompt": "b"}]},
]


@pytest.mark.parametrize("frame", FRAMES)
def test_every_shape_that_pandas_writes_is_taken(read: Read, frame: Any) -> None:
    reading = read("d.json", json.dumps(frame))
    assert (reading.prompts, reading.refused) == (["a", "b"], {})


def test_a_data_frame_that_is_too_long_says_how_it_is_written_otherwise(read: Read) -> None:
    frame = {"prompt": {str(number): "a" * 100 for number in range(50_000)}}
    code, message = read("d.json", json.dumps(frame)).refused["1"]
    assert code == "wrong_type"
    assert 'to_json(…, orient="records", lines=True)' in message
    for more in ({}, {"id": "x"}, {"options": {"seed": 1}}):
        assert read("d.json", json.dumps({"prompt": "a" * 5_000_000, **more})).refused == {}


def test_a_list_inside_an_object_is_taken_where_there_is_one(read: Read) -> None:
    assert read("a11-pandas-default.json").ids == ["11", "12"]
    assert read("a13-wrapper.json").ids == ["w1", "w2"]
    whole = {"model": "m", "temperature": 0, "about": "x", "prompts": ["a", {"prompt": "b", "model": "own", "n": 1}]}
    reading = read("w.json", json.dumps(whole, indent=1))
    assert reading.prompts == ["a", "b"]
    assert [request.model for request in reading.requests.values()] == ["m", "own"]
    assert [request.options for request in reading.requests.values()] == [{"temperature": 0}] * 2
    assert reading.notes == ['"about" beside "prompts" is left out'] * 2
    assert given(reading["2"]) == {"n": 1}
    two = read("w.json", json.dumps({"train": [{"q": "a"}], "test": [{"q": "b"}]}))
    assert 'it has the fields "train", "test"' in two.refused["1"][1]
    template = read("w.json", json.dumps({"rows": [{"a": "x"}, {"a": "y"}]}), RecordRules("Say {a}"))
    assert template.prompts == ["Say x", "Say y"]


def test_objects_may_be_laid_out_in_any_way(read: Read) -> None:
    assert read("a16-jq-pretty.jsonl").ids == ["j1", "j2"]
    assert read("a18-trailing-commas.jsonl").ids == ["m1", "m2"]
    pretty = json.dumps({"id": "a", "prompt": '}{ \\" ],'}, indent=2)
    for joined in (
        pretty + pretty,
        f"{pretty},\n{pretty},\n",
        f"\x1e{pretty}\n\x1e{pretty}\n",
        pretty + "\n" + "{oops}\n" + pretty,
    ):
        for name in ("d.jsonl", "d.json"):
            assert read(name, joined).ids[:: 2 if "oops" in joined else 1] == ["a", "a"]
    assert read("one.jsonl", pretty).ids == ["a"]
    assert read("one.json", '{"id":"a","prompt":"x"}{"id":"b","prompt":"y"}').ids == ["a", "b"]
    big = json.dumps({"id": "big", "prompt": "x" * 300_000}, indent=2)
    assert read("big.jsonl", big + "\n" + pretty).ids == ["big", "a"]
    cut = read("cut.jsonl", pretty + "\n" + pretty[:20])
    assert (cut.ids, next(iter(cut.refused.values()))[0]) == (["a", "a"], "bad_json")
    long = read("long.jsonl", pretty + big + pretty, max_line_bytes=4096)
    assert (long.ids, long.refused["big"][0]) == (["a", "big", "a"], "line_too_long")


@pytest.mark.parametrize("begin", [b"{", b'{"a":', b'{"a":[', b'{"a":1,"b'])
def test_what_only_begins_like_an_object_takes_no_time(read: Read, begin: bytes) -> None:
    content = begin * (8 * 1024**2 // len(begin)) + b"\n" + lines({"id": "x", "prompt": "p"})
    begun_s = time.process_time()
    assert list(read("d.jsonl", content).requests) == ["x"]
    assert time.process_time() - begun_s < 3  # many times that, where each bracket is looked at


def test_a_cut_character_behind_many_escapes_takes_no_time(read: Read) -> None:
    content = json.dumps({"id": "x", "prompt": "p", "note": 'a\n\\"\U0001f600' * 50_000 + "\ud83d"}) + "\n"
    begun_s = time.process_time()
    assert given(read("d.jsonl", content).requests["x"])["note"].endswith("\U0001f600\ufffd")
    assert time.process_time() - begun_s < 3  # minutes, where each escape is looked at again from every one before it


def test_what_is_nearly_json_is_taken_with_a_note(read: Read) -> None:
    reading = read("a14-nan.jsonl")
    assert [bytes(reading[name].input["score"]) for name in "1234"] == [b"null", b"0.5", b"null", b"1e400"]
    assert reading.notes == ["NaN or Infinity in it is read as null", "", "NaN or Infinity in it is read as null", ""]
    reading = read("a22-surrogate.jsonl")
    assert reading.prompts == ["cut emoji \ufffd end", "whole \U0001f600 ok", "nul \0 end", "x"]
    assert reading.ids == ["s1", "s2", "s3", "s4"]
    assert given(reading["s4"]) == {"note": "cut \ufffd"}
    assert [bool(note) for note in reading.notes] == [True, False, False, True]
    odd = read(
        "o.jsonl", b'{"id":"NaN \\ud83d","prompt":"say \\"NaN\\" \\\\ud83d","a":[NaN,{"b":-Infinity}],"c":"NaN"}\n'
    )
    assert odd.prompts == ['say "NaN" \\ud83d']
    assert odd.ids == ["NaN \ufffd"]
    assert given(next(iter(odd.requests.values()))) == {"a": [None, {"b": None}], "c": "NaN"}
    records = read("r.jsonl", b'{"note": "a", "n": NaN}\n', RecordRules("{note}"))
    assert (records.prompts, records.notes) == (["a"], ["NaN or Infinity in it is read as null"])
    assert refusal(read, b'{"prompt": "x", "n": nan}\n')[0] == "bad_json"
    pretty = json.dumps({"id": "a", "prompt": "p", "n": float("nan")}, indent=1)
    assert read("p.jsonl", pretty + "\n" + pretty).ids == ["a", "a"]


# Encodings and line ends.


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("d.jsonl", '{"prompt":"Grüß \U0001f600"}\r\n{"prompt":"b"}\r\n'),
     ("d.csv", "id\tprompt\r\n1\tGrüß \U0001f600\r\n2\tb\r\n"),
     ("d.json", '["Grüß \U0001f600", "b"]'), ("d.jsonl.gz", '{"prompt":"Grüß \U0001f600"}\n{"prompt":"b"}\n')],
)  # fmt: skip
def test_a_byte_order_mark_says_what_a_file_is(read: Read, name: str, text: str, encoding: str) -> None:
    content = text.encode(encoding)
    assert read(name, gzip.compress(content) if name.endswith(".gz") else content).prompts == ["Grüß \U0001f600", "b"]


def test_files_of_windows_and_old_macs_are_taken_or_named_once_with_the_cure(read: Read) -> None:
    assert read("a24-utf16.jsonl")["u1"].prompt == "Grüß dich"
    assert read("d04-utf16.csv")["1"].prompt == "Grüße"
    assert read("a28-cr-only.jsonl").ids == ["cr1", "cr2"]
    assert read("mac.csv", "id,prompt\r1,a\r2,b\r").prompts == ["a", "b"]
    with pytest.raises(
        DropRefused, match=r"is not UTF-8 \(line 2\).*submit --encoding cp1252 d03-cp1252.csv"
    ) as refused:
        read("d03-cp1252.csv")
    assert refused.value.code == "encoding"
    reading = read("d03-cp1252.csv", rules=RecordRules(encoding="cp1252"))
    assert reading.prompts == ["Grüße \u2013 \u201cquoted\u201d", "plain"]
    with pytest.raises(DropRefused, match="--encoding utf-16-le"):
        read("t.csv", "id,prompt\n1,a\n".encode("utf-16-le"))
    assert read("t.csv", "id,prompt\n1,a\n".encode("utf-16-le"), RecordRules(encoding="utf-16-le")).prompts == ["a"]
    with pytest.raises(DropRefused, match="--encoding utf-16-be"):
        read("t.jsonl", '{"prompt": "a"}'.encode("utf-16-be"))
    with pytest.raises(DropRefused, match="--encoding"):
        read("note.txt", "Sch\xf6n\n".encode("latin-1"))
    latin = '{"id":"1","prompt":"sch\xf6n"}\n{"id":"2","prompt":"b"}\n'.encode("latin-1")
    assert list(read("l.jsonl", latin).refused) == ["1"]
    assert read("l.jsonl", latin, RecordRules(encoding="latin-1")).prompts == ["schön", "b"]
    damaged = read("t.csv", "id,prompt\n1,Gr\u00fcn\n2,a".encode() + b"\xffb\n3,c\n")
    assert (damaged.prompts, damaged.refused["2"][0]) == (["Grün", "c"], "invalid_utf8")  # UTF-8 all the same
    japanese = "id,prompt\n1,こんにちは\n".encode("shift_jis")
    assert read("j.csv", japanese, RecordRules(encoding="shift_jis")).prompts == ["こんにちは"]


# Tables.


def test_tables_of_spreadsheets_are_read_as_they_were_meant(read: Read) -> None:
    reading = read("d02-sepline.csv")
    assert (reading.ids, reading.lines, reading.prompts) == (["1", "2"], [3, 4], ["Say hi", "Say bye"])
    assert read("t.csv", b"\xef\xbb\xbfsep=|\nid|prompt\n1|a,b;c\n").prompts == ["a,b;c"]
    reading = read("d06-short-rows.csv")
    assert reading.prompts == ["Say hi", "Say bye"]
    assert reading.notes == ["the row has 2 cells, the header has 3: the last ones are taken for empty", ""]
    cut = read("t.csv", "id,prompt,notes\n1,Say hi,x\n2,Say b\n")
    assert (cut.prompts, cut.refused["2"][0]) == (["Say hi"], "bad_row")
    assert read("t.csv", "id,prompt,notes\n1,Say hi\n").prompts == ["Say hi"]
    assert read("t.csv", "id,prompt,notes\n1,a\n2,b,x\n3,c\n").prompts == ["a", "b", "c"]
    short = read("t.csv", "id,notes,prompt\n1,x\n2,y,p\n")
    assert (short.prompts, short.refused["1"][0]) == (["p"], "bad_row")
    assert read("d07-trailing-delims.csv").prompts == ["Say hi", "Say bye"]
    assert read("t.csv", "id;prompt\n1;a; ;\n").prompts == ["a"]
    reading = read("j15-header-commas.csv")
    assert given(reading["1"]) == {"id": "1", "prompt": "Say hi", "notes, remarks, and so on, etc": "x"}
    wide = read("t.csv", "id\tprompt\tremarks; ideas; more\n1\ta; b\tc\n2\td\te\n")
    assert wide.prompts == ["a; b", "d"]


def test_a_blank_before_a_quote_is_no_part_of_the_cell(read: Read) -> None:
    text = 'id, "prompt" ,note\n1, "Say ""hi"", then bye" ,x\n2,\t"two\nlines",y\n3, plain "quoted" text,z\n4,"a",b\n'
    reading = read("t.csv", text)
    assert reading.prompts == ['Say "hi", then bye', "two\nlines", ' plain "quoted" text', "a"]
    assert read("t.tsv", 'id\tprompt\n1\t "a\tb" \n').prompts == ["a\tb"]
    assert read("t.csv", 'id,prompt\n1, "open\n2,b\n').refused["1"][0] == "bad_row"


# Texts.


def test_lines_of_a_text_are_prompts_where_somebody_says_so(read: Read, tmp_path: Path) -> None:
    [request] = read("e01-lines.txt").requests.values()
    assert request.prompt.count("\n") == 3
    assert request.notes == ["the text has 3 lines and is one prompt; --lines makes each line a prompt"]
    many = read("e01-lines.txt", rules=RecordRules(lines=True))
    assert many.prompts == ["How are you?", "What is your name?", "What is your favourite colour?"]
    assert many.lines == [1, 2, 3]
    assert read("e.md", "a\r\n\r\n b \n", RecordRules("Say {text}", lines=True)).prompts == ["Say a", "Say b"]
    assert read("one.txt", "a single line\n").notes == [""]
    folder = tmp_path / "f" / "input"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "b.json").write_text('["three", "four"]')
    entries = list(read_entries(folder, "f", InboxSettings()))
    raw = request_file(folder).read_bytes()
    requests = [parse_request(raw[e.offset : e.offset + e.length]) for e in entries]
    assert [(request.id, request.notes) for request in requests] == [("a", []), (None, []), (None, [])]


# Ids survive.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", b'{"id": "x", "prompt": "never closed\n'),
        ("d.jsonl", b'{"custom_id": 7, "prompt": }\n'),
        ("d.jsonl", b'{"prompt": "\xff", "id": "x"}\n'),
        ("d.jsonl", b'{"id": "x", "prompt": "' + b"y" * 5000 + b'"}\n'),
        ("d.jsonl", b'{"id": "x", "n": ' + b"[" * 3000 + b"}\n"),
        ("d.json", b'[{"id": "x", "prompt": "' + b"y" * 5000 + b'"}]'),
        ("d.json", b'[{"id": "x" "prompt": "y"}]'),
        ("d.json", b'{"id": "x", "prompt": "' + b"y" * 5000 + b'"}'),
        ("d.jsonl", b'{"prompt": "' + b"y" * 200_000 + b'", "id": "x"}\n'),
        ("d.json", b'[{"prompt": "' + b"y" * 200_000 + b'", "id": "x"}]'),
        (
            "d.jsonl",
            b'{"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{]}}\n',
        ),
        ("d.jsonl.gz", b'{"id": "x", "prompt": "' + b"y" * 5000 + b'"}\n'),
        ("d.csv", b'id,prompt\nx,"never closed\n'),
        ("d.csv", b"id,prompt\nx,a,b\n"),
        ("d.csv", b"id,prompt\nx," + b"y" * 5000 + b"\n"),
    ],
)
def test_ids_survive_every_refusal(read: Read, name: str, content: bytes) -> None:
    if name.endswith(".gz"):
        content = gzip.compress(content)
    reading = read(name, content, max_line_bytes=4096)
    assert reading.requests == {}
    assert reading.ids == ["7" if b'custom_id": 7' in content else "x"]


def test_the_id_column_of_a_broken_record_survives(read: Read) -> None:
    reading = read("r.jsonl", b'{"mrn": "x7", "note": "never closed\n', RecordRules(None, "note", "mrn"))
    assert reading.ids == ["x7"]


# A bad piece fails alone.


@pytest.mark.parametrize(
    "bad",
    [b'{"id":"x","prompt":"p","seed":"1' + b"0" * 400 + b'.5"}',
     b'{"id":"x","prompt":"p","options":{"num_ctx":"1' + b"0" * 400 + b'"}}',
     b'{"id":"x","prompt":"p","temperature":"1' + b"0" * 400 + b'"}', b'{"id":"x","prompt":' + b"9" * 5000 + b"}",
     b'{"id":"x","url":"http://[h/v1/chat/completions","body":{"messages":[{"role":"user","content":"hi"}]}}'],
)  # fmt: skip
def test_numbers_and_addresses_beyond_all_measure_fail_alone(read: Read, bad: bytes) -> None:
    reading = read("r.jsonl", bad + b"\n" + lines({"id": "good", "prompt": "p"}))
    assert (list(reading.refused), list(reading.requests)) == (["x"], ["good"])
    many = b'{"id":"n","n":1' + b"0" * 400 + b',"messages":[{"role":"user","content":"hi"}]}'
    assert read("n.jsonl", many)["n"].notes == ["n is left out: it must be a whole number from 1 to 16"]


@pytest.mark.parametrize("beside", [{"model": "m"}, {"about": "x"}])
def test_an_element_that_is_no_request_fails_alone(read: Read, beside: dict[str, str]) -> None:
    reading = read("w.json", json.dumps({**beside, "rows": [{"prompt": "a"}, 7, None, {"prompt": "b"}]}))
    assert (reading.prompts, list(reading.refused)) == (["a", "b"], ["2", "3"])


def test_the_id_of_a_batch_line_is_its_custom_id(read: Read) -> None:
    assert read("b.jsonl", lines(batch("a", id="x"), batch("b", id=5))).ids == ["a", "b"]
    assert read("b.jsonl", lines(batch("a", id=["x"]))).ids == ["a"]
    assert read("b.jsonl", lines(batch("a", id="x", method="GET"))).ids == ["a"]
    assert read("r.jsonl", lines({"id": "x", "custom_id": "a", "prompt": "p"})).ids == ["x"]
    assert read("r.jsonl", lines({"id": "", "custom_id": "a", "prompt": "p"})).ids == ["a"]
    assert read("r.jsonl", lines({"prompt": "p", "key": "C major", "request": "r"})).ids == [None]
    assert read("d.json", json.dumps({"0": {"custom_id": "a", "prompt": "p"}})).ids == ["a"]


@pytest.mark.parametrize("seed", ["1", "2", "3", "4", "5", "6"])
def test_of_two_bodies_every_process_takes_the_same(seed: str) -> None:
    line = batch("a", params={"x": 1}, request={"y": 1}, modelInput={"z": 1})
    code = f"from obatchd.jobs.formats import parse_request; print(parse_request({json.dumps(line).encode()}).prompt)"
    asked = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
    )
    assert (asked.stdout, asked.returncode) == ("Say hi\n", 0)


def test_a_conversation_beside_params_is_no_batch_line(read: Read) -> None:
    request = one(read, {"id": "c", "conversations": [{"from": "human", "value": "hi"}], "params": {"a": 1}})
    assert (said(request), given(request)) == ([("user", "hi")], {"params": {"a": 1}})


def test_what_the_names_of_a_data_set_hold_is_not_lost(read: Read) -> None:
    for row in (
        {"Instruction": "Translate.", "Input": "Good morning.", "Output": "x"},
        {"INSTRUCTION": "Translate.", "CONTEXT": "Good morning."},
    ):
        assert one(read, row).prompt == "Translate.\n\nGood morning."
    assert "--text-column" in refusal(read, {"Input": "x"})[1]
    assert one(read, {"instruction": "Sort.", "input": [3, 1]}).notes == [
        '"instruction" is the prompt; --template puts other fields into it: "input"'
    ]
    assert one(read, {"text": "Summarise: the cat", "input": "abc"}).prompt == "Summarise: the cat"
    assert one(read, {"text": None, "input": "abc"}).embed == "abc"


@pytest.mark.parametrize("text", ["text", "value", "content"])
def test_a_message_of_the_assistant_keeps_its_text(read: Read, text: str) -> None:
    chat = [
        {"role": "prompter", text: "q"},
        {"role": "assistant", text: "a", "rank": 0},
        {"role": "prompter", text: "z"},
    ]
    assert said(one(read, {"messages": chat})) == [("user", "q"), ("assistant", "a"), ("user", "z")]
    assert one(read, {"messages": [{"role": None, "from": "human", text: "q"}]}).prompt == "q"
    lost = [{"role": "user", "content": "q"}, {"role": "assistant", "message": "a"}, {"role": "user", "content": "z"}]
    assert "needs a content" in refusal(read, {"messages": lost})[1]
    empty = {"role": "assistant", "content": None}
    assert said(one(read, {"messages": [chat[0], empty, chat[2]]}))[1] == ("assistant", "")


def test_instructions_that_are_no_text_are_never_sent_as_python_writes_them(read: Read) -> None:
    body = {"input": "q", "instructions": [{"role": "developer", "content": "x"}]}
    assert "instructions must be a text" in refusal(read, body)[1]
    assert read("b.jsonl", lines(batch(url="/v1/responses", body=body))).refused["a"][0] == "invalid_request"


def test_a_column_of_ids_alone_leaves_the_prompt_to_the_reader(read: Read) -> None:
    rows: list[dict[str, Any]] = [
        {"mrn": "a", "instruction": "Translate.", "input": "Good morning."},
        {"mrn": "b", "instruction": "Say hi", "input": ""},
        {"mrn": "c", "instruction": "", "context": "Say hi"}, {"mrn": "d", "prompt": None, "text": "t"},
        {"mrn": "e", "instruction": "Say hi", "input": None, "context": "x"}, {"mrn": "f", "prompt": "", "text": "t"},
    ]  # fmt: skip
    named = read("r.jsonl", lines(*rows), RecordRules(id_column="mrn"))
    assert named.ids == list("abcdef")
    assert named.prompts == read("r.jsonl", lines(*rows)).prompts
    assert read("r.jsonl", lines({"mrn": "a"}), RecordRules(id_column="mrn")).refused["a"][0] == "missing_field"


@pytest.mark.parametrize("frame", FRAMES)
def test_a_data_frame_may_have_numbers_that_are_none(read: Read, frame: dict[str, Any]) -> None:
    text = json.dumps(frame).replace('"b"', '"b\\ud83d"')
    if "columns" in frame:
        text = text.replace("[1, ", "[NaN, ")
    reading = read("d.json", text)
    assert (reading.prompts, reading.refused) == (["a", "b\ufffd"], {})
    assert all("of the whole file: half of a character" in note for note in reading.notes)
    columns = {"prompt": {"0": "a", "1": "b"}, "score": {"0": float("nan"), "1": 1.5}}
    assert read("d.json", json.dumps(columns)).prompts == ["a", "b"]
    whole = {"about": "x", "rows": [{"prompt": "a", "n": float("nan")}]}
    assert "beside" in (note := read("w.json", json.dumps(whole)).notes[0])
    assert "NaN" in note


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_break_inside_a_text_of_json_is_never_read_as_blanks(read: Read, end: str) -> None:
    good = '{"id": "y",\t' + end + '"prompt": "p"}'
    for name, content in (("d.json", '[{"id": "x", "prompt": "a' + end + 'b"},' + good + "]"), ("d.jsonl", good)):
        reading = read(name, content)
        assert reading.prompts == ["p"]
        assert [code for code, _ in reading.refused.values()] == ["bad_json"] * (name == "d.json")
    assert read("d.json", '{"id": "x", "prompt": "a' + end + 'b"}').refused["x"][0] == "bad_json"
