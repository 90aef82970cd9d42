"""OpenAI batch files: recognised by content, read line by line, and answered in that API's lines."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai_shapes import CHAT, COMPLETION, EMBEDDINGS, ERROR_LINE, OUTPUT_LINE

from obatchd.dispatch.protocol import JobContext
from obatchd.dispatch.worker.body import request_body
from obatchd.jobs.formats import Format, Request, parse_request, read_entries, recognise, request_file
from obatchd.jobs.formats.request import parse_batch_request
from obatchd.jobs.model import Entry, Outcome, RequestRefused
from obatchd.results.rows import ResultSet
from obatchd.settings.tables.spool import InboxSettings
from obatchd.spool.batch_lines import batch_line

PNG = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"town": {"type": "string"}}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}


def line(custom_id: Any = "a", url: Any = "/v1/chat/completions", method: Any = "POST", **body: Any) -> bytes:
    if url == "/v1/chat/completions":
        body.setdefault("messages", [{"role": "user", "content": "hello"}])
    body.setdefault("model", "tiny")
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body}).encode()


def parsed(**body: Any) -> Request:
    return parse_request(line(**body))


def read(tmp_path: Path, name: str, content: bytes) -> list[Entry]:
    path = tmp_path / "input"
    path.write_bytes(content)
    return list(read_entries(path, name, InboxSettings()))


# Recognised.


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("b.jsonl", line() + b"\n" + line("b"), Format.BATCH),
        ("b.json", line() + b"\n" + line("b") + b"\n", Format.BATCH),
        ("b.json", line(), Format.BATCH),
        ("b.jsonl", b"{broken\n\n" + line() + b"\n", Format.BATCH),
        ("b.jsonl", line(messages=[{"role": "user", "content": "x" * 100_000}]) + b"\n" + line("b"), Format.BATCH),
        ("b.jsonl", b'{"prompt": "x"}\n' + line() + b"\n", Format.LINES),
        ("b.jsonl", b'{"prompt": "x", "custom_id": "1", "url": "u", "body": {}}\n', Format.LINES),
        ("b.jsonl", b'{"custom_id": "1", "prompt": "about url and body"}\n', Format.LINES),
    ],
)
def test_a_batch_file_is_recognised_by_its_content(tmp_path: Path, name: str, content: bytes, form: Format) -> None:
    (tmp_path / "input").write_bytes(content)
    assert recognise(tmp_path / "input", name) is form


# Read.


def test_what_a_chat_asks_for_is_kept() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "what"}, {"type": "text", "text": "is it?"},
                                     {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]},
        {"role": "assistant", "content": None},
    ]  # fmt: skip
    schema = {"type": "object"}
    request = parsed(
        messages=messages, max_tokens=7, temperature=0, top_p=0.5, seed=3, stop="END", frequency_penalty=1, top_k=5,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}},
        reasoning_effort="none", user="u", store=True, metadata={"a": "b"}, n=1, logprobs=False, tools=[],
    )  # fmt: skip
    assert request.id == "a"
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "what\nis it?", "images": [PNG]},
        {"role": "assistant", "content": ""},
    ]
    assert request.options == {
        "temperature": 0, "top_p": 0.5, "seed": 3, "stop": ["END"], "frequency_penalty": 1, "top_k": 5
    }  # fmt: skip
    assert (request.max_response_tokens, request.format, request.think) == (7, schema, False)
    assert (request.prompt, request.url, request.input) == ("what\nis it?", "/v1/chat/completions", {})
    assert parsed(max_completion_tokens=5, max_tokens=9).max_response_tokens == 5
    assert parsed(response_format={"type": "json_object"}).format == "json"
    assert parsed(response_format={"type": "text"}).format == ""


def test_tools_and_their_answers_are_passed_on() -> None:
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    request = parsed(messages=messages, tools=[TOOL], tool_choice="auto")
    assert request.messages[1]["tool_calls"] == [{"function": {"name": "weather", "arguments": {"town": "Ulm"}}}]
    assert request.messages[2] == {"role": "tool", "content": "rain", "tool_name": "weather"}
    assert request_body(request, JobContext(1, "job", "", {}, 5), "m", {})["tools"] == [TOOL]
    assert parsed(tools=[TOOL], tool_choice="none").tools == []


def test_completions_and_embeddings_are_read() -> None:
    request = parse_request(line(url="/v1/completions", prompt=["say"], max_tokens=3))
    assert (request.prompt, request.max_response_tokens, request.embed) == ("say", 3, None)
    request = parse_request(line(url="/v1/embeddings", input=["a", "b"], dimensions=8, encoding_format="base64"))
    assert (request.embed, request.dimensions, request.encoding) == (["a", "b"], 8, "base64")
    assert parse_request(line(url="/v1/embeddings", input="a")).prompt == "a"


BAD: list[tuple[bytes, str, str]] = [
    (b"{", "invalid_json_line", "its end is missing"),
    (b"[1]", "invalid_json_line", "not a JSON object"),
    (b'{"method": "POST", "url": "/v1/completions", "body": {}}', "missing_required_parameter", "no custom_id"),
    (b'{"custom_id": "a", "method": "POST", "url": "/v1/completions"}', "missing_required_parameter", "no body"),
    (line(custom_id={}), "invalid_request", "custom_id must be a text"),
    (line(custom_id=""), "invalid_request", "custom_id must be a text"),
    (line(method="GET"), "invalid_request", "'GET' is not POST"),
    (line(url="/v1/audio/speech"), "url_mismatch", "/v1/audio/speech"),
    (line(stream=True), "unsupported_parameter", "stream"),
    (line(n=17), "unsupported_parameter", "n is not supported: it must be a whole number from 1 to 16"),
    (line(best_of=2), "unsupported_parameter", "best_of must be 1"),
    (line(tools=[{"type": "function"}]), "invalid_request", "tools must be a list of functions"),
    (line(tools=[TOOL], tool_choice="required"), "unsupported_parameter", "tool_choice"),
    (line(messages=[{"role": "assistant", "tool_calls": [{"id": "c"}]}]), "invalid_request", "a tool call needs"),
    (
        line(messages=[{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "no"}}]}]),
        "invalid_request",
        "must be a JSON object",
    ),
    (
        line(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}]),
        "invalid_request",
        "must be a JSON object",
    ),
    (line(functions=[{"name": "f"}]), "unsupported_parameter", "functions"),
    (line(logprobs=True), "unsupported_parameter", "logprobs"),
    (line(messages=[]), "missing_required_parameter", "no messages"),
    (line(messages=["hello"]), "invalid_request", "needs a role"),
    (line(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), "invalid_request", "list of texts"),
    (
        line(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]),
        "unsupported_parameter",
        "not fetched",
    ),
    (line(model=5), "invalid_request", "model"),
    (line(max_tokens=0), "invalid_request", "token limit"),
    (line(max_tokens=-1), "invalid_request", "token limit"),
    (line(temperature="hot"), "invalid_request", "temperature must be a number"),
    (line(stop=[1]), "invalid_request", "stop"),
    (line(response_format="xml"), "invalid_request", "response_format"),
    (line(reasoning_effort="huge"), "invalid_request", "reasoning_effort"),
    (line(reasoning_effort=["low"]), "invalid_request", "reasoning_effort"),
    (line(url="/v1/completions"), "missing_required_parameter", "no prompt"),
    (line(url="/v1/completions", prompt=["a", "b"]), "unsupported_parameter", "one text"),
    (line(url="/v1/completions", prompt="a", echo=True), "unsupported_parameter", "echo"),
    (line(url="/v1/embeddings"), "missing_required_parameter", "no input"),
    (line(url="/v1/embeddings", input=[1, 2]), "invalid_request", "tokens are not supported"),
    (line(url="/v1/embeddings", input="a", encoding_format="int8"), "invalid_request", "encoding_format"),
]


@pytest.mark.parametrize(("raw", "code", "words"), BAD)
def test_what_cannot_be_run_is_refused_in_the_apis_words(raw: bytes, code: str, words: str) -> None:
    with pytest.raises(RequestRefused, match=words) as refused:
        parse_batch_request(raw)
    assert refused.value.code == code


def test_bad_lines_fail_alone_with_line_offset_and_what_can_be_made_out_of_the_id(tmp_path: Path) -> None:
    rows = [
        line("a"),
        b'{"custom_id": "broken \\"1\\"", "method": "POST", ',
        b"\xff",
        line("c", model="other"),
        line("d", messages=[{"role": "user", "content": "  "}]),
        line("e", url="/v1/completions", prompt="mixed endpoints are fine, as in vLLM"),
        b'{"prompt": "one of ours"}',
    ]
    entries = read(tmp_path, "b.jsonl", b"\n".join(rows) + b"\n")
    assert [entry.id for entry in entries] == ["a", 'broken "1"', None, "c", "d", "e", None]
    codes = {entry.line: entry.refusal.code for entry in entries if entry.refusal}
    assert codes == {
        2: "invalid_json_line", 3: "invalid_utf8", 4: "model_mismatch", 5: "invalid_request",
        7: "missing_required_parameter",
    }  # fmt: skip
    refusal = entries[3].refusal
    assert refusal is not None
    assert refusal.message.startswith("line 4: it asks for other, line 1 for tiny")


def test_a_batch_file_in_a_folder_or_packed_is_read_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(line("a") + b"\n" + line("b", stream=True) + b"\n")
    (folder / "b.jsonl").write_bytes(b'{"prompt": "ours"}\n')
    entries = list(read_entries(folder, "f", InboxSettings()))
    assert [entry.refusal.code if entry.refusal else "" for entry in entries] == ["", "unsupported_parameter", ""]
    content = request_file(folder).read_bytes()
    assert parse_request(content[: entries[0].length]).url == "/v1/chat/completions"


# Answered.


def record(**fields: Any) -> bytes:
    whole = {
        "id": "a", "line": 3, "outcome": "succeeded", "prompt": "p", "response": "yes", "model": "tiny", "attempts": 1,
        "finished_at": "2026-11-23T13:36:48.965Z", "prompt_tokens": 4, "response_tokens": 5, "done_reason": "stop",
    }  # fmt: skip
    return json.dumps(whole | fields).encode()


def test_answers_have_the_published_shape() -> None:
    chat = json.loads(batch_line("job", Outcome.SUCCEEDED, record(url="/v1/chat/completions", think="hm")))
    jsonschema.validate(chat, OUTPUT_LINE)
    jsonschema.validate(chat["response"]["body"], CHAT)
    body = chat["response"]["body"]
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "yes", "refusal": None, "reasoning": "hm"}
    assert body["created"] == 1795441008
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    cut = json.loads(batch_line("job", Outcome.SUCCEEDED, record(url="/v1/completions", done_reason="length")))
    jsonschema.validate(cut["response"]["body"], COMPLETION)
    assert cut["response"]["body"]["choices"][0] == {
        "index": 0, "logprobs": None, "finish_reason": "length", "text": "yes"
    }  # fmt: skip


def test_several_answers_are_the_choices_of_one_line() -> None:
    calls = [{"function": {"name": "weather", "arguments": {"town": "Ulm"}}}]
    choices = [
        {"index": 0, "response": "yes", "done_reason": "stop", "think": "hm"},
        {"index": 1, "response": "no", "done_reason": "length"},
        {"index": 2, "response": "", "done_reason": "stop", "tool_calls": calls},
    ]
    raw = record(url="/v1/chat/completions", choices=choices, prompt_tokens=12, response_tokens=15)
    whole = json.loads(batch_line("job", Outcome.SUCCEEDED, raw))
    jsonschema.validate(whole, OUTPUT_LINE)
    body = whole["response"]["body"]
    jsonschema.validate(body, CHAT)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["yes", "no", None]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length", "tool_calls"]
    assert body["usage"] == {"prompt_tokens": 12, "completion_tokens": 15, "total_tokens": 27}
    texts = json.loads(batch_line("job", Outcome.SUCCEEDED, record(url="/v1/completions", choices=choices[:2])))
    assert [choice["text"] for choice in texts["response"]["body"]["choices"]] == ["yes", "no"]


def test_several_answers_are_read_again_from_their_line(tmp_path: Path) -> None:
    choices = [{"index": 0, "response": "yes", "think": "hm"}, {"index": 1, "response": "no"}]
    line = batch_line("job", Outcome.SUCCEEDED, record(url="/v1/chat/completions", choices=choices))
    (tmp_path / "results.jsonl").write_bytes(line + b"\n")
    [row] = ResultSet(tmp_path / "results.jsonl").rows()
    assert (row.record["response"], row.record["line"], row.record["choices"]) == ("yes", 3, choices)
    strange = {"custom_id": "a", "response": {"body": {"choices": [{"text": "yes"}, 5, {"message": "no"}]}}}
    (tmp_path / "results.jsonl").write_text(json.dumps(strange))
    [row] = ResultSet(tmp_path / "results.jsonl").rows()
    assert [choice["response"] for choice in row.record["choices"]] == ["yes", ""]


def test_answers_of_other_endpoints_have_their_shapes() -> None:
    def body(url: str, **fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(batch_line("job", Outcome.SUCCEEDED, record(url=url, **fields)))
        return found["response"]["body"]  # type: ignore[no-any-return]

    answer = body("/v1/responses", think="hm", done_reason="length")
    assert (answer["object"], answer["status"]) == ("response", "incomplete")
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    thought, message = answer["output"]
    assert (thought["type"], thought["summary"][0]["text"]) == ("reasoning", "hm")
    assert (message["role"], message["content"][0]["text"]) == ("assistant", "yes")
    assert answer["usage"] == {"input_tokens": 4, "output_tokens": 5, "total_tokens": 9}
    calls = [{"function": {"name": "weather", "arguments": {"town": "Ulm"}}}]
    [call] = body("/v1/responses", response="", tool_calls=calls)["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "weather", {"town": "Ulm"})
    native = body("/api/chat", think="hm", tool_calls=calls)
    assert native["message"] == {"role": "assistant", "content": "yes", "thinking": "hm", "tool_calls": calls}
    assert (native["done"], native["done_reason"], native["eval_count"]) == (True, "stop", 5)
    assert body("/api/generate")["response"] == "yes"
    assert body("/api/embed", embedding=[1.5])["embeddings"] == [[1.5]]


def test_a_call_of_a_tool_has_the_published_shape() -> None:
    calls = [{"function": {"name": "weather", "arguments": {"town": "Ulm"}}}]
    raw = record(url="/v1/chat/completions", response="", tool_calls=calls)
    body = json.loads(batch_line("job", Outcome.SUCCEEDED, raw))["response"]["body"]
    jsonschema.validate(body, CHAT)
    choice = body["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    [call] = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"town": "Ulm"}


def test_vectors_have_the_published_shape() -> None:
    many = json.loads(batch_line("job", Outcome.SUCCEEDED, record(url="/v1/embeddings", embeddings=[[1.5], [2.5]])))
    jsonschema.validate(many["response"]["body"], EMBEDDINGS)
    assert [entry["embedding"] for entry in many["response"]["body"]["data"]] == [[1.5], [2.5]]
    packed = json.loads(
        batch_line("job", Outcome.SUCCEEDED, record(url="/v1/embeddings", embedding=[1.5, -2], encoding="base64"))
    )
    jsonschema.validate(packed["response"]["body"], EMBEDDINGS)
    text = packed["response"]["body"]["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(text)) == (1.5, -2.0)


@pytest.mark.parametrize(
    ("fields", "outcome", "status", "code"),
    [
        ({"code": "context_exceeded", "attempts": 1}, Outcome.FAILED, 400, "context_length_exceeded"),
        ({"code": "stalled", "attempts": 5}, Outcome.FAILED, 500, "stalled"),
        ({"code": "model_not_found", "attempts": 1}, Outcome.FAILED, 404, "model_not_found"),
        ({"code": "bad_json", "attempts": 0}, Outcome.FAILED, None, "invalid_json_line"),
        ({"code": "duplicate_id", "attempts": 0}, Outcome.FAILED, None, "duplicate_custom_id"),
        ({"code": "cancelled", "attempts": 2}, Outcome.CANCELLED, None, "batch_cancelled"),
        ({"code": "expired", "attempts": 0}, Outcome.EXPIRED, None, "batch_expired"),
    ],
)
def test_failures_have_the_published_shape(
    fields: dict[str, Any], outcome: Outcome, status: int | None, code: str
) -> None:
    found = json.loads(batch_line("job", outcome, record(message="why", **fields)))
    jsonschema.validate(found, ERROR_LINE)
    if status is None:
        assert (found["response"], found["error"]) == (None, {"code": code, "message": "why"})
    else:
        assert found["error"] is None
        assert found["response"]["status_code"] == status
        assert found["response"]["body"]["error"]["code"] == code


@pytest.mark.parametrize(
    ("status", "kind", "codes"),
    [
        (400, "invalid_request_error", ["context_exceeded", "invalid_format", "format_mismatch", "invalid_option"]),
        (400, "invalid_request_error", ["bad_request", "not_supported", "empty_prompt", "empty_response"]),
        (403, "invalid_request_error", ["forbidden"]),
        (404, "invalid_request_error", ["model_not_found"]),
        (500, "server_error", ["stalled", "poison", "crash", "a code of tomorrow"]),
        (504, "server_error", ["timeout"]),
    ],
)
def test_the_status_of_a_failure_tells_a_client_whether_to_ask_again(status: int, kind: str, codes: list[str]) -> None:
    """Libraries for that API ask again after 5xx and give a request up after 4xx."""
    for code in codes:
        found = json.loads(batch_line("job", Outcome.FAILED, record(code=code, message="why", attempts=1)))
        response = found["response"]
        assert (code, response["status_code"], response["body"]["error"]["type"]) == (code, status, kind)


def test_an_answer_without_thoughts_has_no_field_for_them() -> None:
    chat = json.loads(batch_line("job", Outcome.SUCCEEDED, record(url="/v1/chat/completions")))
    [choice] = chat["response"]["body"]["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes", "refusal": None}
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")


def test_several_calls_of_tools_have_ids_of_their_own_beside_the_text() -> None:
    calls = [{"function": {"name": name}} for name in ("weather", "time")]
    raw = record(url="/v1/chat/completions", response="I look.", tool_calls=calls)
    [choice] = json.loads(batch_line("job", Outcome.SUCCEEDED, raw))["response"]["body"]["choices"]
    assert choice["message"]["content"] == "I look."
    found = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in choice["message"]["tool_calls"]
    ]
    assert found == [("call_job-3-1", "weather", "{}"), ("call_job-3-2", "time", "{}")]


def test_a_line_and_its_parts_can_be_told_from_those_of_other_lines() -> None:
    """Clients file answers by these ids; the line of the drop makes them unique in a job."""
    line = json.loads(batch_line("job", Outcome.SUCCEEDED, record(id="mine", line=17, url="/v1/chat/completions")))
    assert (line["id"], line["custom_id"]) == ("batch_req_job-17", "mine")
    assert (line["response"]["request_id"], line["response"]["body"]["id"]) == ("req_job-17", "chatcmpl-job-17")
    line = json.loads(batch_line("job", Outcome.SUCCEEDED, record(line=17, url="/v1/completions")))
    assert line["response"]["body"]["id"] == "cmpl-job-17"


def test_vectors_count_the_tokens_of_their_inputs() -> None:
    line = json.loads(batch_line("job", Outcome.SUCCEEDED, record(url="/v1/embeddings", embedding=[])))
    body = line["response"]["body"]
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": []}]
    assert body["model"] == "tiny"


def test_results_of_a_batch_file_are_read_in_the_order_of_its_lines(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"job": "20261123-133648-darg"}')
    rows = [
        (Outcome.SUCCEEDED, record(id="a", line=1, url="/v1/chat/completions")),
        (Outcome.FAILED, record(id="b", line=2, code="bad_json", attempts=0)),
        (Outcome.SUCCEEDED, record(id="c", line=3, url="/v1/embeddings", embedding=[1.0])),
        (Outcome.SUCCEEDED, record(id="d", line=4, url="/v1/responses", think="hm")),
        (Outcome.SUCCEEDED, record(id="e", line=5, url="/api/generate")),
        (Outcome.SUCCEEDED, record(id="f", line=6, url="/api/embed", embedding=[2.0])),
    ]
    for name, wanted in (("results.jsonl", True), ("errors.jsonl", False)):
        lines = [batch_line("20261123-133648-darg", o, raw) for o, raw in rows if (o is Outcome.SUCCEEDED) is wanted]
        (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in lines))
    found = [row.record for row in ResultSet(tmp_path).rows()]
    assert [(r["id"], r["line"], r["outcome"]) for r in found] == [
        ("a", 1, "succeeded"), ("b", 2, "failed"), ("c", 3, "succeeded"), ("d", 4, "succeeded"), ("e", 5, "succeeded"),
        ("f", 6, "succeeded"),
    ]  # fmt: skip
    assert [found[place]["response"] for place in (0, 3, 4)] == ["yes"] * 3
    assert (found[3]["think"], found[5]["embeddings"]) == ("hm", [[2.0]])
