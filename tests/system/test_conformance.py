"""The stand-in behaves like the real Ollama of each line: the same tests run on both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from exchanges import LINES, LONG, ask, chat, exchanges, recorded, shape
from ollama_support import (
    SIMULATED_COMMAND,
    Ollama,
    launch,
    real_command,
    real_line,
    real_models,
    serving,
    wait_for,
)

MODELS = [{"name": "tiny"}, {"name": "endless"}, {"name": "vectors", "capabilities": ["embedding"]}]
SLOW = {"tokens_per_s": 200, "answer": {"tokens": 8000}}


class Kind:
    """How to start one of them."""

    def __init__(self, name: str) -> None:
        self.real = name == "real"
        self.command = real_command() if self.real else SIMULATED_COMMAND
        if self.command is None:
            pytest.skip("no real Ollama: OBATCHD_TEST_OLLAMA and OBATCHD_TEST_MODELS are not set (scripts/real-ollama)")
        self.line = real_line() if self.real else name

    def arguments(self, directory: Path, **simulator: Any) -> dict[str, Any]:
        chosen = json.dumps({"ollama": self.line, "models": MODELS, **simulator})
        models = {"models": real_models()} if self.real else {"OBATCHD_SIMULATOR": chosen}
        return {"command": self.command, "directory": directory, **models}


@pytest.fixture(scope="module", params=[*LINES, pytest.param("real", marks=pytest.mark.real_ollama)])
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


@pytest.fixture(scope="module")
def server(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ollama]:
    with serving(**kind.arguments(tmp_path_factory.mktemp("server"))) as started:
        yield started


DETAILS = {
    "parent_model": "str",
    "format": "str",
    "family": "str",
    "families": ["str"],
    "parameter_size": "str",
    "quantization_level": "str",
}
TIMES = {
    "total_duration": "int",
    "load_duration": "int",
    "prompt_eval_count": "int",
    "prompt_eval_duration": "int",
    "eval_count": "int",
    "eval_duration": "int",
}
DONE = {"model": "str", "created_at": "str", "done": "bool", "done_reason": "str"}
JSON_OPTIONS = {"num_predict": 12, "seed": 1, "temperature": 0}


def test_liveness(server: Ollama, kind: Kind) -> None:
    answer = server.ask("GET", "/")
    assert (answer.status, answer.type, answer.body) == (200, "text/plain", b"Ollama is running")
    assert server.ask("HEAD", "/").status == 200
    version = server.ask("GET", "/api/version").json()["version"]
    assert version.startswith(f"{kind.line}.")
    assert version.endswith("-simulated") == (not kind.real)


def test_lists_models(server: Ollama) -> None:
    models = server.ask("GET", "/api/tags").json()["models"]
    assert "tiny:latest" in {model["name"] for model in models}


def test_shows_a_model(server: Ollama) -> None:
    shown = server.ask("POST", "/api/show", {"model": "tiny"}).json()
    assert {"modelfile", "template", "details", "model_info", "capabilities", "modified_at"} <= set(shown)
    assert shape(shown["details"]) == DETAILS
    assert shown["capabilities"] == ["completion"]
    architecture = shown["model_info"]["general.architecture"]
    assert isinstance(shown["model_info"][f"{architecture}.context_length"], int)


def test_loads_lists_and_unloads(server: Ollama, kind: Kind) -> None:
    loaded = server.ask("POST", "/api/generate", {"model": "tiny", "keep_alive": -1})
    assert (loaded.status, loaded.type) == (200, "application/json")
    assert shape(loaded.json()) == {**DONE, "response": "str"}
    assert (loaded.json()["done"], loaded.json()["done_reason"]) == (True, "load")
    (model,) = server.ask("GET", "/api/ps").json()["models"]
    text = dict.fromkeys(("name", "model", "digest", "expires_at"), "str")
    numbers = dict.fromkeys(("size", "size_vram", "context_length"), "int")
    assert shape(model) == {**text, **numbers, "details": DETAILS}
    assert (model["name"], model["context_length"]) == ("tiny:latest", 4096)
    # 0.33 takes every buffer for a GPU's whose name does not begin with CPU: that of a CPU with AMX, too.
    assert model["size_vram"] == 0 or (kind.real and kind.line == "0.33" and model["size_vram"] < model["size"])
    assert model["expires_at"] > "2200"
    unloaded = server.ask("POST", "/api/chat", {"model": "tiny", "messages": [], "keep_alive": 0})
    assert shape(unloaded.json()) == {**DONE, "message": {"role": "str", "content": "str"}}
    assert unloaded.json()["done_reason"] == "unload"
    wait_for(lambda: server.ask("GET", "/api/ps").json() == {"models": []}, "unloading")


@pytest.mark.parametrize("body", [{"messages": []}, {}], ids=["empty", "missing"])
def test_no_messages_load(server: Ollama, body: dict[str, Any]) -> None:
    answer = server.ask("POST", "/api/chat", {"model": "tiny", **body})
    assert (answer.status, answer.json()["done_reason"]) == (200, "load")


def test_chat_as_a_stream(server: Ollama) -> None:
    answer = server.ask("POST", "/api/chat", chat(options=JSON_OPTIONS, format="json"))
    assert (answer.status, answer.type) == (200, "application/x-ndjson")
    *pieces, last = answer.lines()
    message = {"role": "str", "content": "str"}
    assert pieces and all(
        shape(piece) == {"model": "str", "created_at": "str", "message": message, "done": "bool"} for piece in pieces
    )
    assert not any(piece["done"] for piece in pieces)
    assert shape(last) == {**DONE, **TIMES, "message": message}
    assert (last["done"], last["message"]["content"], last["model"]) == (True, "", "tiny")


def test_chat_as_a_whole(server: Ollama) -> None:
    answer = server.ask("POST", "/api/chat", chat(options=JSON_OPTIONS, format="json", stream=False))
    assert (answer.status, answer.type) == (200, "application/json")
    assert shape(answer.json()) == {**DONE, **TIMES, "message": {"role": "str", "content": "str"}}
    assert answer.json()["message"]["content"].startswith("{")


def test_generate(server: Ollama) -> None:
    body = {"model": "tiny", "prompt": "hello", "format": "json", "options": JSON_OPTIONS}
    *pieces, last = server.ask("POST", "/api/generate", body).lines()
    assert shape(pieces[0]) == {"model": "str", "created_at": "str", "response": "str", "done": "bool"}
    assert shape(last) == {**DONE, **TIMES, "response": "str", "context": ["int"]}
    whole = server.ask("POST", "/api/generate", {**body, "stream": False, "raw": True}).json()
    assert shape(whole) == {**DONE, **TIMES, "response": "str"}


def test_num_predict_ends_by_length(server: Ollama) -> None:
    answer = server.ask("POST", "/api/chat", chat(options={"num_predict": 4}, format="json", stream=False)).json()
    assert answer["done_reason"] in {"length", "stop"}
    assert answer["eval_count"] <= 4
    one = server.ask("POST", "/api/generate", {"model": "tiny", "prompt": "x", "options": {"num_predict": 1}})
    assert one.lines()[-1]["done_reason"] in {"length", "stop"}


def test_answers_follow_a_schema(server: Ollama) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answer = server.ask("POST", "/api/chat", chat(format=schema, stream=False)).json()
    assert answer["done_reason"] == "stop"
    assert answer["message"]["content"].replace(" ", "").strip() in ('{"a":true}', '{"a":false}')


def test_embed(server: Ollama) -> None:
    answer = server.ask("POST", "/api/embed", {"model": "vectors", "input": ["hello", "you"]}).json()
    times = dict.fromkeys(("total_duration", "load_duration", "prompt_eval_count"), "int")
    assert shape(answer) == {"model": "str", "embeddings": [["float"]], **times}
    assert len(answer["embeddings"]) == 2
    assert server.ask("POST", "/api/embed", {"model": "vectors"}).json() == {"model": "vectors", "embeddings": []}


def test_answers_are_those_that_were_recorded(server: Ollama, kind: Kind) -> None:
    """Of a real server of this line; so the stand-in answers as it does, wherever there is no real one."""
    assert {name: ask(server, kind.line, name) for name in exchanges(kind.line)} == recorded(kind.line)


def test_unknown_routes(server: Ollama) -> None:
    assert (server.ask("GET", "/nope").status, server.ask("GET", "/nope").body) == (404, b"404 page not found")
    assert (server.ask("GET", "/api/chat").status, server.ask("GET", "/api/chat").body) == (
        405,
        b"405 method not allowed",
    )


def test_forgiven(server: Ollama) -> None:
    """What one would call an error and Ollama does not."""
    cases: list[dict[str, Any]] = [{"think": False}, {"options": {"silly": 1}}, {"format": ""}]
    for fields in cases:
        options = {"num_predict": 2, **fields.get("options", {})}
        answer = server.ask("POST", "/api/chat", chat(**{**fields, "options": options, "stream": False}))
        assert (answer.status, answer.json()["done"]) == (200, True)
    cut = {"model": "tiny", "prompt": LONG, "stream": False, "options": {"num_predict": 2, "num_ctx": 512}}
    assert server.ask("POST", "/api/generate", cut).json()["prompt_eval_count"] <= 512


def test_a_pull_that_fails(server: Ollama) -> None:
    stream = server.ask("POST", "/api/pull", {"model": "missing:1"})
    first, last = stream.lines()
    assert (stream.status, stream.type, first) == (200, "application/x-ndjson", {"status": "pulling manifest"})
    assert last["error"].startswith("pull model manifest: ")
    whole = server.ask("POST", "/api/pull", {"model": "missing:1", "stream": False})
    assert (whole.status, whole.json()) == (500, last)


def test_another_context_loads_again(server: Ollama) -> None:
    def runners(tokens: int) -> set[int]:
        server.ask("POST", "/api/generate", {"model": "tiny", "options": {"num_ctx": tokens}})
        return {process.pid for process in server.runners()}

    # A runner that another test left may still be there, or end in between.
    first = runners(1024)
    assert first and runners(1024) <= first
    assert runners(2048) - first


def test_create_and_delete(kind: Kind, tmp_path: Path) -> None:
    arguments = {**kind.arguments(tmp_path), "models": tmp_path / "models"}
    if kind.real:  # the store of the real one is shared and stays as it is
        shutil.copytree(real_models(), tmp_path / "models")
    with serving(**arguments) as server:
        lines = server.ask("POST", "/api/create", {"model": "copy", "from": "tiny", "system": "be kind"}).lines()
        assert lines[-1] == {"status": "success"}
        assert server.ask("POST", "/api/show", {"model": "copy"}).json()["system"] == "be kind"
        deleted = server.ask("DELETE", "/api/delete", {"model": "copy"})
        assert (deleted.status, deleted.body) == (200, b"")
        assert server.ask("POST", "/api/show", {"model": "copy"}).status == 404


# Where the line about the port comes from, and the name of the engine.
LOGGED = {"0.24": ("routes.go:1864", "llama runner"), "0.33": ("routes.go:2008", "llama-server")}


def test_log(kind: Kind, tmp_path: Path) -> None:
    with serving(**kind.arguments(tmp_path)) as server:
        server.ask("POST", "/api/generate", {"model": "tiny"})
        log = server.log_text()
    source, engine = LOGGED[kind.line]
    assert f'level=INFO source={source} msg="Listening on {server.host} (version {kind.line}.' in log
    assert 'msg="inference compute" id=cpu library=cpu' in log
    assert f'msg="starting {engine.removeprefix("llama ")}"' in log
    assert f'msg="{engine} started in ' in log
    assert '| POST     "/api/generate"' in log


def test_sigterm_ends_at_once(kind: Kind, tmp_path: Path) -> None:
    with serving(**kind.arguments(tmp_path, **SLOW)) as server:
        endless = chat(model="endless", options={"num_predict": 8000})
        answers: list[Any] = []

        def ask() -> None:
            try:
                answers.append(server.ask("POST", "/api/chat", endless))
            except (OSError, ValueError) as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        (runner,) = wait_for(server.runners, "a runner")
        wait_for(lambda: server.ask("GET", "/api/ps").json()["models"], "loading")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        thread.join(10)
        assert not thread.is_alive()
        assert not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE


def test_the_runner_survives_a_killed_serve(kind: Kind, tmp_path: Path) -> None:
    with serving(**kind.arguments(tmp_path)) as server:
        server.ask("POST", "/api/generate", {"model": "tiny", "keep_alive": -1})
        (runner,) = server.runners()
        server.process.kill()
        server.process.wait()
        assert runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE
        assert os.getpgid(runner.pid) == server.process.pid
        os.killpg(server.process.pid, signal.SIGKILL)
        wait_for(lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE, "the end of the runner")


def test_a_dead_runner_fails_what_is_in_flight(kind: Kind, tmp_path: Path) -> None:
    text = "an error was encountered while running the model: unexpected EOF"
    with serving(**kind.arguments(tmp_path, **SLOW)) as server:
        server.ask("POST", "/api/generate", {"model": "endless"})
        answers: dict[bool, Any] = {}

        def ask(stream: bool) -> None:
            answers[stream] = server.ask(
                "POST", "/api/chat", chat(model="endless", stream=stream, options={"num_predict": 8000})
            )

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
        for thread in threads:
            thread.start()
        (runner,) = server.runners()
        # Both are in their slots once the process has used the CPU (real) or the state says so (simulated).
        if kind.real:
            used_s = runner.cpu_times().user
            wait_for(lambda: runner.cpu_times().user > used_s + 0.5, "work")
        else:
            wait_for(lambda: server.ask("GET", "/simulator/state").json()["in_flight"] == 2, "work")
            wait_for(lambda: server.ask("GET", "/simulator/state").json()["max_in_flight"] == 2, "work")
        runner.kill()
        for thread in threads:
            thread.join(30)
        assert (answers[False].status, answers[False].json()) == (500, {"error": text})
        if answers[True].status == 200:
            assert answers[True].lines()[-1] == {"error": text}
        again = server.ask("POST", "/api/chat", chat(model="endless", stream=False, options={"num_predict": 2}))
        assert (again.status, again.json()["done_reason"]) == (200, "length")


def test_a_port_in_use(kind: Kind, tmp_path: Path, server: Ollama) -> None:
    second = launch(**kind.arguments(tmp_path), port=str(server.port))
    assert second.process.wait(10) == 1
    assert f"listen tcp {server.host}: bind: address already in use" in second.log_text()


def test_a_context_that_may_shift_is_another_one_since_033(kind: Kind, tmp_path: Path) -> None:
    """llama-server has it as a flag: who loads a model without saying what prompts will say loads it twice."""
    with serving(**kind.arguments(tmp_path)) as server:

        def runner(**fields: Any) -> int:
            server.ask("POST", "/api/generate", {"model": "tiny", "keep_alive": -1, **fields})
            return max(server.runners(), key=lambda process: process.create_time()).pid

        loaded = runner(shift=False)
        assert runner(shift=False) == loaded
        assert (runner() == loaded) == (kind.line == "0.24")
