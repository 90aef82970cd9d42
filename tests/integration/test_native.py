"""Ollama's own client, unmodified, against the daemon, and what other programs send that were made for Ollama."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from daemon_support import Daemon, Document, wait_for
from programs_support import Programs, for_all_tests, over_http

EXAMPLES = Path(__file__).parents[2] / "etc" / "examples"
ANSWERS = {"answer": {"tokens": 6}, "models": [
    {"name": "tiny"}, {"name": "thinker", "capabilities": ["completion", "thinking", "tools"]},
    {"name": "eye", "capabilities": ["completion", "vision"], "modified_at": "2026-02-01T00:00:00Z"},
]}  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 32
USER = {"role": "user", "content": "Why is the sky blue?"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """One daemon for all tests that leave it as it was."""
    with for_all_tests(tmp_path_factory.mktemp("native"), simulator=ANSWERS) as found:
        yield found


def root_of(programs: Programs) -> str:
    return f"http://127.0.0.1:{programs.port}"


@pytest.fixture
def client(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Iterator[ollama.Client]:
    monkeypatch.setenv("OLLAMA_API_KEY", programs.key)
    monkeypatch.setenv("OLLAMA_HOST", root_of(programs))
    with ollama.Client() as client:
        yield client


def states(programs: Programs) -> list[Document]:
    """What the stand-in servers tell of themselves."""
    return [httpx.get(f"{server['url']}/simulator/state").json() for server in programs.d.servers()]


def loads(programs: Programs) -> int:
    return sum(len(state["loads"]) for state in states(programs))


# What the servers have.


def test_the_fleet_is_one_ollama(client: ollama.Client) -> None:
    first, *others = [model.model for model in client.list().models]
    assert first == "eye:latest" and set(others) == {"tiny:latest", "thinker:latest"}  # the latest first
    shown = client.show("thinker")
    assert shown.capabilities == ["completion", "thinking", "tools"]
    assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == 131072
    client.chat("tiny", [USER])
    [running, *_] = client.ps().models
    assert (running.model, running.context_length) == ("tiny:latest", 8192) and running.size_vram == running.size
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        client.show("nope")
    assert caught.value.status_code == 404


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda client: client.pull("llama3.2"), "obatchctl models pull llama3.2"),
        (lambda client: client.delete("tiny"), "obatchctl models rm tiny"),
        (lambda client: client.copy("tiny", "other"), "obatchctl servers"),
        (lambda client: client.create("other", from_="tiny"), "obatchctl servers"),
        (lambda client: client.push("me/tiny"), "obatchctl servers"),
        (lambda client: list(client.pull("llama3.2", stream=True)), "obatchctl models pull llama3.2"),
    ],
)
def test_models_are_not_changed_by_programs(
    client: ollama.Client, call: Callable[[ollama.Client], Any], words: str
) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        call(client)
    assert caught.value.status_code == 403 and words in caught.value.error
    assert {"tiny:latest", "eye:latest"} <= {model.model for model in client.list().models}


# Answers.


def test_a_chat_whole_and_in_pieces_says_the_same(client: ollama.Client) -> None:
    options = {"seed": 7, "temperature": 0}
    whole = client.chat("tiny", [USER], options=options)
    pieces = list(client.chat("tiny", [USER], options=options, stream=True))
    assert whole.message.content == "".join(piece.message.content or "" for piece in pieces) != ""
    for answer in (whole, pieces[-1]):
        assert (answer.done, answer.done_reason, answer.model) == (True, "stop", "tiny")
        assert (answer.eval_count or 0) > 0 and (answer.prompt_eval_count or 0) > 0
        assert (answer.total_duration or 0) >= (answer.eval_duration or 0) > 0
    assert not any(piece.done for piece in pieces[:-1])


def test_a_prompt_and_its_answer(client: ollama.Client) -> None:
    whole = client.generate("tiny", "why?", system="Be brief.", options={"num_predict": 3})
    assert whole.response and (whole.done_reason, whole.eval_count) == ("length", 3)
    pieces = list(client.generate("tiny", "why?", system="Be brief.", options={"num_predict": 3}, stream=True))
    assert "".join(piece.response for piece in pieces) == whole.response


def test_reasoning_tools_and_formats(client: ollama.Client) -> None:
    thought = client.chat("thinker", [USER], think=True)
    assert thought.message.thinking and thought.message.content
    assert client.generate("thinker", "why?", think=True).thinking

    def add(a: int, b: int) -> int:
        """Add numbers.

        Args:
          a: One
          b: Other
        """
        return a + b

    for stream in (False, True):
        answers = client.chat("thinker", [USER], tools=[add], stream=stream)  # type: ignore[call-overload]
        calls = [c for one in (answers if stream else [answers]) for c in one.message.tool_calls or ()]
        assert [call.function.name for call in calls] == ["add"]
    turns = [USER, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_name": "add", "content": "3"}]
    assert client.chat("thinker", turns).message.content
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    for stream in (False, True):
        answers = client.chat("tiny", [USER], format=schema, stream=stream)  # type: ignore[call-overload]
        text = "".join(one.message.content for one in (answers if stream else [answers]))
        assert isinstance(json.loads(text)["age"], int)
    assert json.loads(client.generate("tiny", "x", format="json").response) is not None


def test_images_go_to_models_that_can_see(client: ollama.Client) -> None:
    assert client.generate("eye", "what?", images=[PNG]).response
    assert client.chat("eye", [{**USER, "images": [PNG]}]).message.content
    with pytest.raises(ollama.ResponseError, match="cannot see images") as caught:
        client.generate("tiny", "what?", images=[PNG])
    assert caught.value.status_code == 400


def test_vectors(client: ollama.Client) -> None:
    one, two = client.embed("tiny", "a"), client.embed("tiny", ["a", "b"], dimensions=8)
    assert len(one.embeddings) == 1 and [len(vector) for vector in two.embeddings] == [8, 8]
    assert list(one.embeddings[0][:8]) == list(two.embeddings[0]) and (two.prompt_eval_count or 0) > 0
    assert list(client.embeddings("tiny", "a").embedding) == list(one.embeddings[0])
    assert list(client.embed("tiny", []).embeddings) == [] == list(client.embeddings("tiny", "").embedding)


def test_a_call_without_a_prompt_loads_nothing_and_is_answered(programs: Programs, client: ollama.Client) -> None:
    client.chat("tiny", [USER])
    before = loads(programs)
    for keep, reason in ((None, "load"), (0, "unload"), ("5m", "load")):
        assert client.generate("tiny", keep_alive=keep).done_reason == reason
        assert client.chat("tiny", keep_alive=keep).done_reason == reason
    assert client.generate("eye").done_reason == "load"
    assert loads(programs) == before and [model.model for model in client.ps().models] != ["eye:latest"]
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        client.generate("nope")
    assert caught.value.status_code == 404


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"model": "nope"}, 404, "not found"),
        ({"raw": True}, 400, "raw"),
        ({"template": "x"}, 400, "template"),
        ({"context": [1]}, 400, "context"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"options": {"top_k": "many"}}, 400, "options.top_k must be a whole number"),
        ({"prompt": "long " * 10000}, 400, "context"),
    ],
)
def test_errors_are_told_as_ollama_tells_them(
    client: ollama.Client, stream: bool, more: dict[str, Any], status: int, words: str
) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        answer = client.generate(**{"model": "tiny", "prompt": "x", "stream": stream, **more})
        list(answer)
    assert caught.value.status_code == status and words in caught.value.error


@pytest.mark.near
def test_many_at_once_with_the_asynchronous_client(programs: Programs, client: ollama.Client) -> None:
    async def one(asking: ollama.AsyncClient, number: int) -> str:
        if number % 2:
            return (await asking.generate("tiny", f"question {number}")).response
        pieces = await asking.chat("tiny", [{"role": "user", "content": f"question {number}"}], stream=True)
        return "".join([piece.message.content or "" async for piece in pieces])

    async def ask() -> list[str]:
        async with ollama.AsyncClient() as asking:
            answers = await asyncio.gather(*(one(asking, number) for number in range(20)))
            assert (await asking.embed("tiny", ["a"])).embeddings and (await asking.ps()).models
            return list(answers)

    served = sum(state["served"] for state in states(programs))
    answers = asyncio.run(ask())
    assert all(answers) and len(set(answers)) > 10
    assert sum(state["served"] for state in states(programs)) == served + 20


def test_the_context_that_is_loaded_reloads_nothing(programs: Programs, client: ollama.Client) -> None:
    client.chat("tiny", [USER])
    before = loads(programs)
    for num_ctx in (None, 8192, 8000):  # the last one is rounded up
        client.chat("tiny", [USER], options={"num_ctx": num_ctx} if num_ctx else None)
        client.generate(
            "tiny", "why?", options={"num_ctx": num_ctx, "num_gpu": 99, "num_thread": 3} if num_ctx else None
        )
    assert loads(programs) == before


@pytest.fixture
def slow(make_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A daemon whose answers take some five seconds."""
    faults = [
        {"kind": "runner_crash", "marker": "crash at once", "count": 1},
        {"kind": "runner_crash", "marker": "crash later", "after_tokens": 20, "count": 1},
    ]
    answer = {"tokens_per_s": 40, "answer": {"tokens": 200}, "chunk_s": 0.02, "faults": faults}
    found = over_http(make_daemon, simulator=answer)
    found.d.start().ready()
    monkeypatch.setenv("OLLAMA_API_KEY", found.key)
    return found


def in_flight(programs: Programs) -> int:
    return sum(state["in_flight"] for state in states(programs))


def test_who_goes_frees_the_slot_within_a_second(slow: Programs) -> None:
    with ollama.Client(root_of(slow)) as client:
        pieces = client.chat("tiny", [USER], stream=True)
        assert next(iter(pieces)).message.content and in_flight(slow) == 1
        pieces.close()  # type: ignore[attr-defined]
        wait_for(lambda: in_flight(slow) == 0, 1)
    with ollama.Client(root_of(slow), timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.generate("tiny", "why?")
    wait_for(lambda: in_flight(slow) == 0, 1)


def test_a_server_that_dies_is_not_seen_before_the_first_piece_and_told_after_it(slow: Programs) -> None:
    options = {"num_predict": 30}
    with ollama.Client(root_of(slow)) as client:
        pieces = [*client.generate("tiny", "crash at once", stream=True, options=options)]
        assert pieces[-1].eval_count == 30
        pieces = []
        with pytest.raises(ollama.ResponseError) as caught:
            for piece in client.generate("tiny", "crash later", stream=True, options=options):
                pieces.append(piece)
        assert pieces and caught.value.status_code == -1  # as of an error in a stream of Ollama's
        assert client.generate("tiny", "crash no more", options=options).response


def test_a_context_that_no_server_has_is_loaded_where_nothing_else_waits(slow: Programs) -> None:
    options = {"num_predict": 3, "num_ctx": 16384}
    with ollama.Client(root_of(slow)) as client:
        assert client.chat("tiny", [USER], options=options).done
        assert client.chat("tiny", [USER], options=options).done
        assert [model.context_length for model in client.ps().models] == [16384]
    assert loads(slow) == 1


# Open WebUI.


def test_the_calls_of_open_webui(programs: Programs) -> None:
    """Its order: whether there is an Ollama, its models, what is loaded, then a chat with what it always sends."""
    headers = {"Authorization": f"Bearer {programs.key}", "Content-Type": "application/json"}
    with httpx.Client(base_url=root_of(programs), headers=headers) as web:
        assert web.get("/api/version").json().keys() == {"version"}
        names = [model["model"] for model in web.get("/api/tags").json()["models"]]
        assert "tiny:latest" in names
        assert all(model["expires_at"] for model in web.get("/api/ps").json()["models"])
        payload = {
            "model": "tiny:latest", "messages": [{"role": "user", "content": "hello"}], "stream": True, "options": {},
            "keep_alive": "5m", "format": None, "metadata": {"chat_id": "x"},
        }  # fmt: skip
        with web.stream("POST", "/api/chat", json=payload) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            lines = [json.loads(line) for line in answer.iter_lines()]
        assert lines[-1]["done"] and "".join(line["message"]["content"] for line in lines)
        assert web.get("/api/ps").json()["models"][0]["expires_at"]


# Who may ask.


def test_without_a_key_only_the_first_two_answer(programs: Programs) -> None:
    for method, path in (("GET", "/"), ("HEAD", "/"), ("GET", "/api/version"), ("HEAD", "/api/version")):
        assert programs.call(method, path, Authorization="").status == 200
    calls = [
        ("GET", "/api/tags"), ("GET", "/api/ps"), ("POST", "/api/show"), ("POST", "/api/chat"),
        ("POST", "/api/generate"), ("POST", "/api/embed"), ("POST", "/api/embeddings"), ("POST", "/api/pull"),
        ("DELETE", "/api/delete"), ("GET", "/api/nothing"),
    ]  # fmt: skip
    for method, path in calls:
        refused = programs.call(method, path, {"model": "tiny"} if method == "POST" else None, Authorization="")
        assert (refused.status, list(refused.document)) == (401, ["error"])
        assert "obatchctl key add" in refused.document["error"]
    wrong = {"Authorization": "Bearer obk_wrong"}
    with ollama.Client(root_of(programs), headers=wrong) as client, pytest.raises(ollama.ResponseError) as caught:
        client.list()
    assert "expired" in caught.value.error and caught.value.status_code == 401
    batches_alone = programs.make_key("--scope", "batches")
    for path in ("/api/tags", "/api/ps"):
        assert programs.call("GET", path, Authorization=f"Bearer {batches_alone}").status == 200
    refused = programs.call("POST", "/api/chat", {"model": "tiny"}, Authorization=f"Bearer {batches_alone}")
    assert refused.status == 403 and "not for inference" in refused.document["error"]


def test_a_page_of_another_site_is_turned_away(programs: Programs) -> None:
    for wrong in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        refused = programs.call("GET", "/api/tags", **wrong)
        assert refused.status == 403 and list(refused.document) == ["error"]
    assert programs.call("GET", "/api/tags", Host="evil.example").status == 421


def test_over_the_socket_the_kernel_says_who_asks(programs: Programs) -> None:
    transport = httpx.HTTPTransport(uds=str(programs.socket_path))
    with ollama.Client("http://localhost", transport=transport) as client:
        assert client.chat("tiny", [USER]).message.content


def test_somebody_without_a_key_where_that_is_allowed(make_daemon: Callable[..., Daemon]) -> None:
    found = over_http(make_daemon, {"http": {"keyless_owner": str(os.geteuid())}})
    found.d.start().ready()
    with ollama.Client(root_of(found)) as client:
        assert client.chat("tiny", [USER]).message.content and client.list().models
        with pytest.raises(ollama.ResponseError) as caught:
            client.delete("tiny")
        assert caught.value.status_code == 403
        wait_for(lambda: client.ps().models)
    findings = json.loads(found.d.control("doctor", "--json").stdout)["findings"]
    [door] = [one for one in findings if one["about"] == "http"]
    assert door["level"] == "warn" and "keyless_owner" in door["text"]


def test_the_keyless_owner_has_to_be_somebody_whom_the_daemon_answers(make_daemon: Callable[..., Daemon]) -> None:
    found = over_http(make_daemon, {"http": {"keyless_owner": str(os.geteuid() + 54321)}})
    found.d.start().ready()
    refused = found.call("GET", "/api/tags", Authorization="")
    assert refused.status == 403 and "may not use this daemon" in refused.document["error"]
    assert found.call("GET", "/api/version", Authorization="").status == 200


# The example.


def test_the_example_asks_all_servers(
    programs: Programs, client: ollama.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EXAMPLES / "ollama_client.py"
    assert len(path.read_text().splitlines()) <= 15
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 3
