"""The real ``ollama`` command and Ollama's own client against the daemon on a real Ollama."""

from __future__ import annotations

import json
import operator
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import ollama
import pytest
from daemon_support import Daemon
from ollama_support import real_version
from programs_support import Programs, over_http

Start = Callable[..., Daemon]
pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(240)]
USER = {"role": "user", "content": "Why is the sky blue?"}


def real(make_daemon: Start, **http: Any) -> Programs:
    """A daemon on one real CPU server."""
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    own = {"ollama": program, "models_dir": models, "cpu_servers": 1, "slots": 4}
    config = {"gpus": {"use": "none"}, "max_response_tokens": 30, "servers": own, "http": http}
    found = over_http(make_daemon, config)
    found.d.start().ready()
    return found


def command(programs: Programs, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the ``ollama`` command says, with the door as its server."""
    environment = {**os.environ, "OLLAMA_HOST": f"http://127.0.0.1:{programs.port}", "TERM": "dumb"}
    environment["HOME"] = str(programs.d.spool)
    ran = [os.environ["OBATCHD_TEST_OLLAMA"], *arguments]
    return subprocess.run(ran, capture_output=True, text=True, env=environment, timeout=100, stdin=subprocess.DEVNULL)


def test_the_ollama_command(make_daemon: Start) -> None:
    found = real(make_daemon, keyless_owner=str(os.geteuid()))
    listed = command(found, "list")
    assert listed.returncode == 0 and {"tiny:latest", "vectors:latest"} <= set(listed.stdout.split()), listed.stderr
    shown = command(found, "show", "tiny")
    assert shown.returncode == 0 and "context length" in shown.stdout and "Capabilities" in shown.stdout
    ran = command(found, "run", "tiny", "Why is the sky blue?")
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr
    figures = command(found, "run", "tiny", "--verbose", "Why is the sky blue?")
    assert figures.returncode == 0 and "eval rate" in figures.stderr, figures.stderr
    loaded = command(found, "ps")
    [_, row] = loaded.stdout.splitlines()
    assert row.split()[0] == "tiny:latest" and "8192" in row and "Forever" in row and "100% CPU" in row
    vectors = command(found, "run", "vectors", "a text")
    assert vectors.returncode == 0 and len(json.loads(vectors.stdout)) > 8, vectors.stderr
    stopped = command(found, "stop", "tiny")
    assert stopped.returncode == 0, stopped.stderr
    for arguments, words in (
        (("pull", "llama3.2"), "obatchctl models pull llama3.2"),
        (("rm", "tiny"), "obatchctl models rm tiny"),
        (("cp", "tiny", "other"), "obatchctl servers"),
        (("run", "nope", "x"), "obatchctl models pull nope"),
    ):
        refused = command(found, *arguments)
        assert refused.returncode != 0 and words in refused.stderr, refused.stderr
    assert "tiny:latest" in command(found, "list").stdout


def test_the_ollama_command_without_anybody_named(make_daemon: Start) -> None:
    found = real(make_daemon)
    for arguments in (("list",), ("ps",), ("show", "tiny"), ("stop", "tiny")):
        refused = command(found, *arguments)
        assert refused.returncode == 1 and refused.stdout == "", refused
        assert refused.stderr.endswith("something went wrong, please see the ollama server logs for details\n")
    ran = command(found, "run", "tiny", "x")  # it takes each 401 for one of ollama.com
    assert "need to be signed in to Ollama" in ran.stdout + ran.stderr
    assert found.d.servers()[0]["requests_done"] == 0
    assert real_version() in command(found, "--version").stdout  # that of the fleet


def test_the_client(make_daemon: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    found = real(make_daemon)
    monkeypatch.setenv("OLLAMA_API_KEY", found.key)
    monkeypatch.setenv("OLLAMA_HOST", f"http://127.0.0.1:{found.port}")
    [server] = found.d.servers()
    with ollama.Client() as client, ollama.Client(server["url"]) as direct:
        compare(client, direct)


def compare(client: ollama.Client, direct: ollama.Client) -> None:
    """The door against the server behind it."""
    names = [{model.model for model in one.list().models} for one in (client, direct)]
    assert names[0] == names[1] and client.show("tiny") == direct.show("tiny")
    options = {"seed": 1, "temperature": 0.0, "num_predict": 20}
    whole = client.chat("tiny", [USER], options=options)
    pieces = list(client.chat("tiny", [USER], options=options, stream=True))
    assert whole.message.content == "".join(piece.message.content or "" for piece in pieces)
    assert pieces[-1].done_reason == whole.done_reason in ("stop", "length")
    assert client.generate("tiny", "why?").response
    one, two = client.embed("vectors", "a text"), client.embed("vectors", ["a text", "another"])
    assert len(two.embeddings) == 2 and len(one.embeddings[0]) == len(two.embeddings[0]) > 8
    assert list(direct.embed("vectors", "a text").embeddings[0]) == pytest.approx(list(one.embeddings[0]), abs=1e-4)
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answer = client.chat("tiny", [USER], format=schema, options={"num_predict": 30})
    assert isinstance(json.loads(str(answer.message.content))["a"], bool)
    with pytest.raises(ollama.ResponseError, match="context"):
        client.generate("tiny", "word " * 9000)
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.chat("nope", [USER])


def shape(value: Any) -> Any:
    """The fields of a JSON value and their types, without what is data."""
    if isinstance(value, dict):
        return {name: shape(field) for name, field in value.items() if name not in ("model_info", "tensors")}
    if isinstance(value, list):
        return [shape(entry) for entry in value[:1]]
    return type(value)


def test_objects_are_those_of_the_server(make_daemon: Start) -> None:
    """Every field that obatchd shows is one of Ollama's, with its type; only ``context`` is missing."""
    found = real(make_daemon)
    [server] = found.d.servers()
    limit = {"num_predict": 4, "seed": 1}
    calls: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", "/api/chat", {"model": "tiny", "messages": [USER], "stream": False, "options": limit}),
        ("POST", "/api/generate", {"model": "tiny", "prompt": "why?", "stream": False, "options": limit}),
        ("POST", "/api/chat", {"model": "tiny"}),
        ("POST", "/api/generate", {"model": "tiny", "keep_alive": -1}),
        ("GET", "/api/ps", None),
        ("GET", "/api/tags", None),
        ("GET", "/api/version", None),
        ("POST", "/api/show", {"model": "tiny"}),
        ("POST", "/api/show", {"model": "nope"}),
        ("POST", "/api/embed", {"model": "vectors", "input": ["a", "b"]}),
        ("POST", "/api/embeddings", {"model": "vectors", "prompt": "a"}),
    ]
    headers = {"Authorization": f"Bearer {found.key}"}
    for method, path, body in calls:
        ours, theirs = (
            httpx.request(method, url + path, json=body, headers=headers, timeout=60)
            for url in (f"http://127.0.0.1:{found.port}", server["url"])
        )
        expected = shape(theirs.json())
        if isinstance(expected, dict):
            expected.pop("context", None)
        assert ours.status_code == theirs.status_code, (path, body, ours.text)
        assert shape(ours.json()) == expected, (path, body)
        if path in ("/api/version", "/api/show") and ours.status_code == 200:
            assert ours.json() == theirs.json()
        elif path == "/api/tags":  # the order of those that changed in one second is nobody's
            both = [sorted(one.json()["models"], key=operator.itemgetter("name")) for one in (ours, theirs)]
            assert both[0] == both[1]
    lines = {}
    for url in (f"http://127.0.0.1:{found.port}", server["url"]):
        body = {"model": "tiny", "messages": [USER], "options": limit}
        with httpx.stream("POST", f"{url}/api/chat", json=body, headers=headers, timeout=60) as answer:
            lines[url] = [json.loads(line) for line in answer.iter_lines()]
            assert answer.headers["content-type"] == "application/x-ndjson"
    ours_streamed, theirs_streamed = lines.values()
    assert [shape(told[place]) for told in (ours_streamed,) for place in (0, -1)] == [
        shape(told[place]) for told in (theirs_streamed,) for place in (0, -1)
    ]


def test_a_thousand_calls_beside_a_batch_load_nothing_again(
    make_daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = real(make_daemon)
    monkeypatch.setenv("OLLAMA_API_KEY", found.key)
    log = found.d.spool / "work" / "logs" / "cpu0.log"
    limit = {"num_predict": 4}

    def loads() -> int:
        return log.read_text(errors="replace").count('msg="loaded runners"')

    with ollama.Client(f"http://127.0.0.1:{found.port}") as client, ThreadPoolExecutor(4) as pool:
        client.chat("tiny", [USER], options=limit)
        before = loads()
        lines = [{"id": f"p{number}", "prompt": "why?", "max_response_tokens": 4} for number in range(400)]
        found.d.drop("beside.jsonl", lines)

        def call(number: int) -> None:
            options = {**limit, **({"num_ctx": 8192, "num_thread": 7} if number % 2 else {})}
            match number % 4:
                case 0 | 1:
                    assert client.chat("tiny", [USER], options=options, keep_alive=0).done
                case 2:
                    assert [*client.chat("tiny", [USER], options=options, stream=True)][-1].done
                case _:
                    assert client.generate("tiny", "why?", options=options, keep_alive="1s").done
            if number % 50 == 0:
                assert client.generate("tiny", keep_alive=0).done_reason == "unload"

        assert len([*pool.map(call, range(600))]) == 600
        assert len(found.d.done("beside.jsonl", 120).results) == 400
    assert loads() == before == 1
