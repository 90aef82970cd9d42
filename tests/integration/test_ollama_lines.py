"""A whole daemon with stand-ins for each line of Ollama's versions, whose differences nobody shall notice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from daemon_support import Daemon
from programs_support import over_http

LONG = "word " * 9000
MODELS = [{"name": "tiny"}, {"name": "vectors", "capabilities": ["embedding"]}]
RUNNER = {"0.24": "llama runner started in", "0.33": "llama-server started in"}


@pytest.mark.parametrize("line", ["0.24", "0.33"])
def test_a_job_ends_alike_on_every_line_of_ollama(daemon: Callable[..., Daemon], line: str) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}}, simulator={"ollama": line, "models": MODELS})
    [server] = d.servers()
    d.drop(
        "mixed.jsonl",
        [
            {"id": "good", "prompt": "hello"},
            {"id": "long", "prompt": LONG, "context_length": 4096},
            {"id": "schema", "prompt": "hello", "format": {"type": "silly"}},
            {"id": "vector", "input": "hello", "model": "vectors"},
            {"id": "page", "input": "the " * 3000, "model": "vectors", "context_length": 4096},
            {"id": "long vector", "input": LONG, "model": "vectors", "context_length": 4096},
            {"id": "missing", "prompt": "hello", "model": "missing"},
        ],
    )
    job = d.done("mixed.jsonl")
    assert {record["id"] for record in job.results} == {"good", "vector", "page"}
    assert {record["id"]: record["code"] for record in job.errors} == {
        "long": "context_exceeded",
        "schema": "invalid_format",
        "long vector": "context_exceeded",
        "missing": "model_not_found",
    }
    assert not [record for record in job.errors if "{" in record["message"]]  # no JSON inside the words
    assert {use["ollama_version"].rpartition(".")[0] for use in job.summary["servers"].values()} == {line}
    [seen] = d.seen()
    loads = Counter((load["model"], load["num_ctx"]) for load in seen["loads"])
    assert set(loads.values()) == {1}  # since 0.30 whoever does not say how contexts shift loads a model once more
    log = (d.spool / "work" / "logs" / f"{server['id']}.log").read_text()
    assert log.count(RUNNER[line]) == len(loads)


@pytest.mark.parametrize("line", ["0.24", "0.33"])
def test_questions_and_vectors_by_turns_load_nothing_again(make_daemon: Callable[..., Daemon], line: str) -> None:
    found = over_http(make_daemon, {"gpus": {"use": "simulated:1"}}, simulator={"ollama": line, "models": MODELS})
    found.d.start().ready()
    said = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    for _ in range(5):
        assert found.call("POST", "/v1/chat/completions", said).status == 200
        vector = found.call("POST", "/v1/embeddings", {"model": "tiny", "input": "hello"})
        assert vector.status == 200 if line == "0.24" else vector.error["code"] == "not_supported"
    assert [load["model"] for load in found.d.seen()[0]["loads"]] == ["tiny:latest"]


def test_a_model_of_text_that_033_makes_no_vectors_with_is_named(daemon: Callable[..., Daemon]) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}}, simulator={"ollama": "0.33"})
    d.drop("vectors.jsonl", [{"id": "v", "input": "hello"}, {"id": "t", "prompt": "hello"}])
    job = d.done("vectors.jsonl")
    assert [record["id"] for record in job.results] == ["t"]
    [error] = job.errors
    assert error["code"] == "not_supported"
    assert "tiny makes no vectors" in error["message"] and "embedding model" in error["message"]
    assert error["attempts"] == 1
