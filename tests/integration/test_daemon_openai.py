"""OpenAI batch files and vectors, through the whole daemon."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from daemon_support import Daemon, Document, digest
from openai_shapes import ERROR_LINE, OUTPUT_LINE

Start = Callable[..., Daemon]
CHAT = "/v1/chat/completions"
MODELS = [
    {"name": "caller", "capabilities": ["completion", "tools"]},
    {"name": "vectors", "capabilities": ["embedding"]},
]


def line(custom_id: Any, text: str, **changes: Any) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 30}
    whole = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(whole | changes).encode()


def broken(kind: int, number: int) -> tuple[bytes, str]:
    """One of ten kinds of lines that cannot be answered, and its code."""
    name, text = f"bad-{kind}-{number}", f"broken {number}"
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    without_id = {"method": "POST", "url": CHAT, "body": body}
    return [
        (line(name, text)[:-20], "invalid_json_line"),
        (line(name, text).replace(b"broken", b"\xff"), "invalid_json_line"),
        (json.dumps(without_id).encode(), "missing_required_parameter"),
        (line("ok-0", text), "duplicate_custom_id"),
        (line(name, text, method="GET"), "invalid_request"),
        (line(name, text, url="/v1/images/generations"), "url_mismatch"),
        (line(name, text, body={**body, "stream": True}), "unsupported_parameter"),
        (line(name, text, body={**body, "model": "other"}), "model_mismatch"),
        (line(name, text, body={"model": "tiny"}), "missing_required_parameter"),
        (line(name, "long " * 9000), "context_length_exceeded"),
    ][kind]


@pytest.mark.timeout(300)
def test_ten_thousand_lines_with_one_percent_broken_in_ten_ways(daemon: Start) -> None:
    d = daemon({"log_level": "info", "outbox": {"response_files": "never"}}, simulator={"answer": {"tokens": 2}})
    lines, codes = [], Counter[str]()
    for number in range(10_000):
        if number % 100 == 99:
            bad, code = broken(number // 100 % 10, number)
            codes[code] += 1
            lines.append(bad)
        else:
            lines.append(line(f"ok-{number}", f"what is {number}?"))
    d.drop("batch.jsonl", b"\n".join(lines) + b"\n")
    job = d.done("batch.jsonl", 240)
    output, errors = job.results, job.errors
    is_output, is_error = (jsonschema.Draft202012Validator(shape) for shape in (OUTPUT_LINE, ERROR_LINE))
    assert all(is_output.is_valid(found) for found in output)
    assert all(is_error.is_valid(found) for found in errors)
    # Every line is accounted for, answers in the order of their lines.
    assert len(output) + len(errors) == len(lines)
    assert [found["custom_id"] for found in output] == [f"ok-{n}" for n in range(10_000) if n % 100 != 99]
    for number, found in zip((n for n in range(10_000) if n % 100 != 99), output, strict=True):
        content = found["response"]["body"]["choices"][0]["message"]["content"]
        assert content.startswith(digest(f"what is {number}?"))
    assert Counter(_code(found) for found in errors) == codes
    assert len({found["id"] for found in output + errors}) == len(lines)
    assert {found["custom_id"] for found in errors} >= {"bad-0-99", "bad-4-499", "ok-0"}
    summary = job.summary
    assert (summary["requests"], summary["succeeded"], summary["failed"]) == (10_000, 9_900, 100)


def _code(found: Document) -> str:
    error = found["error"] or found["response"]["body"]["error"]
    return str(error["code"])


def test_vectors_come_many_in_a_call_and_each_to_its_own_request(daemon: Start) -> None:
    d = daemon(
        {"model": "vectors", "gpus": {"use": "simulated:1"}, "servers": {"slots": 8}}, simulator={"models": MODELS}
    )
    ours = [{"id": f"v{i}", "input": f"text {i}", "row": i} for i in range(300)]
    ours[7]["input"] = "much " * 9000
    lists = [{"id": "list", "input": ["one", "two"]}, {"id": "none", "input": []}]
    body = {"model": "vectors", "input": "text 3", "encoding_format": "float", "dimensions": 8}
    chats = (
        b'{"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "vectors", "messages": '
    )
    batch = [
        json.dumps({"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": body}).encode(),
        chats + b'[{"role": "user", "content": "x"}]}}',
    ]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"town": {}}}}}
    asked = {"model": "caller", "messages": [{"role": "user", "content": "weather?"}], "tools": [tool]}
    tools = {"custom_id": "t", "method": "POST", "url": CHAT, "body": asked}
    d.drop_all({"vectors.jsonl": [*ours, *lists], "batch.jsonl": b"\n".join(batch), "tools.jsonl": [tools]})
    vectors, api = d.done("vectors.jsonl"), d.done("batch.jsonl")
    found = {record["id"]: record for record in vectors.results}
    assert {e["id"]: e["code"] for e in vectors.errors} == {"v7": "context_exceeded", "none": "wrong_type"}
    assert vectors.errors[0]["input"] == {"row": 7}
    assert all(len(found[f"v{i}"]["embedding"]) == 64 for i in range(300) if i != 7)
    assert len({tuple(record["embedding"]) for record in found.values() if "embedding" in record}) == 299
    assert [len(vector) for vector in found["list"]["embeddings"]] == [64, 64]
    assert found["v3"]["input"] == {"row": 3}
    assert "response" not in found["v3"]
    responses = {path.name for path in (vectors.directory / "responses").iterdir()}
    assert "v3.json" in responses
    assert "v3.txt" not in responses
    [answer] = api.results
    jsonschema.validate(answer, OUTPUT_LINE)
    [call] = d.done("tools.jsonl").results
    jsonschema.validate(call, OUTPUT_LINE)
    [made] = call["response"]["body"]["choices"][0]["message"]["tool_calls"]
    assert json.loads(made["function"]["arguments"])["town"].startswith(digest("weather?"))
    # The same text has the same vector, whatever else was in its call.
    assert answer["response"]["body"]["data"][0]["embedding"] == found["v3"]["embedding"][:8]
    [error] = api.errors
    jsonschema.validate(error, ERROR_LINE)
    assert error["response"]["body"]["error"]["code"] == "not_supported"
    calls = [request["texts"] for request in d.received() if "texts" in request]
    assert max(calls) > 1
    assert len(calls) < 250
    assert vectors.summary["prompt_tokens"] == sum(record["prompt_tokens"] for record in vectors.results)
