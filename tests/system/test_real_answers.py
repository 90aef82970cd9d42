"""Prompts and answers with a real Ollama: its text is gibberish, so forms and counts are what is checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from daemon_support import Daemon
from ollama_support import real_line
from openai_shapes import ERROR_LINE, OUTPUT_LINE

Start = Callable[..., Daemon]
pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(180)]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
}


@pytest.fixture
def real(make_daemon: Start) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon on one real CPU server."""
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")

    def start(**config: Any) -> Daemon:
        own = {"ollama": program, "models_dir": models, "cpu_servers": 1, "slots": 4}
        return (
            make_daemon({"gpus": {"use": "none"}, "max_response_tokens": 200, "servers": own, **config}).start().ready()
        )

    yield start


def test_tables_chats_schemas_and_images(real: Start) -> None:
    d = real()
    table = b"mrn,note\n" + b"".join(b"M%d,person %d\n" % (i, i) for i in range(40))
    settings = b'template = "Who is it? {note}"\nid_column = "mrn"\nin_source = ["name"]\n[format]\n'
    settings += (
        b'type = "object"\nrequired = ["name", "age"]\n[format.properties.name]\ntype = "string"\nmaxLength = 20\n'
    )
    settings += b'[format.properties.age]\ntype = "integer"\nmaximum = 120\n'
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    requests = [
        {"id": "chat", "messages": chat, "max_response_tokens": 8},
        {"id": "think", "prompt": "why?", "think": True, "max_response_tokens": 8, "options": {"num_thread": 7}},
        {"id": "picture", "prompt": "what is it?", "images": [picture]},
        {"id": "schema", "prompt": "x", "format": {"type": "strange"}},
    ]
    d.drop_all({"notes": {"t.csv": table, "job.toml": settings}, "mixed.jsonl": requests})
    notes, mixed = d.done("notes", 90), d.done("mixed.jsonl", 90)
    records = sorted(notes.results + notes.errors, key=lambda record: record["line"])
    assert [record["input"] for record in records] == [{"mrn": f"M{i}", "note": f"person {i}"} for i in range(40)]
    for record in notes.results:
        jsonschema.validate(record["data"], SCHEMA)
        assert json.loads(record["response"]) == record["data"]
        assert record["response_tokens"] > 0
        assert {found["field"] for found in record["ungrounded"]} <= {"name"}
    assert set(notes.codes()) <= {"format_mismatch"}
    assert len(notes.results) > 20, notes.codes()
    found = {record["id"]: record for record in mixed.results}
    assert set(found) == {"chat", "think"}
    assert [note.partition(" is left out")[0] for note in found["think"]["notes"]] == ["options.num_thread", "think"]
    assert {e["id"]: e["code"] for e in mixed.errors} == {"picture": "not_supported", "schema": "invalid_format"}


def test_a_batch_file_and_vectors(real: Start) -> None:
    d = real(max_response_tokens=16)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 1}
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": chat} for i in range(20)
    ] + [
        {"custom_id": "t", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "say"}},
        {"custom_id": "s", "method": "POST", "url": "/v1/chat/completions", "body": {**chat, "stream": True}},
    ]
    embed = {"model": "vectors", "input": ["a b", "c"]}
    embeddings = [{"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": embed}]
    vectors: list[dict[str, Any]] = [{"id": f"v{i}", "input": f"text number {i % 10}"} for i in range(120)]
    vectors += [{"id": "page", "input": "word " * 500}, {"id": "long", "input": "word " * 20_000}]
    vectors = [{**request, "model": "vectors"} for request in vectors]
    vectors.append({"id": "text", "input": "made by a model of text", "model": "tiny"})
    d.drop_all({"vectors.jsonl": vectors})
    found = d.done("vectors.jsonl", 90)
    d.drop_all({"batch.jsonl": lines, "embeddings.jsonl": embeddings})
    batch, of_vectors = d.done("batch.jsonl", 90), d.done("embeddings.jsonl", 90)
    for line in batch.results + of_vectors.results:
        jsonschema.validate(line, OUTPUT_LINE)
    bodies = {line["custom_id"]: line["response"]["body"] for line in batch.results + of_vectors.results}
    assert set(bodies) == {*(f"c{i}" for i in range(20)), "t", "e"}
    assert all(0 < body["usage"]["completion_tokens"] <= 16 for name, body in bodies.items() if name != "e")
    assert [len(entry["embedding"]) for entry in bodies["e"]["data"]] == [64, 64]
    [error] = batch.errors
    jsonschema.validate(error, ERROR_LINE)
    by_id = {record["id"]: record for record in found.results}
    refused = {"text": "not_supported"} if real_line() == "0.33" else {}  # 0.24 makes vectors with any model
    assert {e["id"]: e["code"] for e in found.errors} == {"long": "context_exceeded", **refused}
    assert len(by_id["page"]["embedding"]) == 64
    for i in range(120):
        assert len(by_id[f"v{i}"]["embedding"]) == 64
        near = zip(by_id[f"v{i}"]["embedding"], by_id[f"v{i % 10}"]["embedding"], strict=True)
        assert all(abs(one - other) < 0.01 for one, other in near)
    assert max(record.get("together", 1) for record in found.results) > 1


def test_a_model_is_loaded_once_and_no_word_of_a_prompt_is_logged(real: Start) -> None:
    d = real(max_response_tokens=16)
    [server] = d.servers()
    d.drop("job.jsonl", [{"id": f"r{i}", "prompt": f"xylophone {i}"} for i in range(20)])
    assert d.done("job.jsonl", 90).errors == []
    log = (d.spool / "work" / "logs" / f"{server['id']}.log").read_text(errors="replace")
    assert log.count('msg="loaded runners"') == 1
    assert "xylophone" not in log
    # The engine of 0.33 would keep up to 8 GiB of old prompts in the memory of the host.
    assert ("prompt cache is disabled" in log) == (real_line() == "0.33")
