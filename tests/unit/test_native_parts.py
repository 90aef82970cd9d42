"""Ollama's own API by parts: the models of a fleet as those of one Ollama, what calls ask for, and how answers look."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from settings_support import in_force
from test_models import FIRST, SECOND, Deaf, Hosts

from obatchd.control.auth import Access, Caller
from obatchd.control.programs import Piece, Programs
from obatchd.documents.native import RunningModels, StoredModels
from obatchd.errors import ApiError, ModelError
from obatchd.front.listener import Listener
from obatchd.front.native.asked import (
    CHAT,
    EMBED,
    GENERATE,
    is_for_the_model_alone,
    name_in,
    request_of,
    switch,
    unloads,
)
from obatchd.front.native.told import Teller, record_in
from obatchd.jobs.formats.request import parse_request
from obatchd.jobs.model import Profile, RequestRefused
from obatchd.ollama.api import ModelDetails, OllamaApi, StoredModel
from obatchd.operations.native import FleetModels, _changed_s
from obatchd.servers.server import RemoteServer, Server
from obatchd.servers.stores.known import as_told

SHOWN = {"details": {"family": "llama"}, "model_info": {"llama.context_length": 4096}, "capabilities": ["completion"]}


# The models of a fleet.


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("2026-01-01T00:00:00.123456789Z", "2026-01-01T00:00:01Z"), ("", "1999-01-01T00:00:00Z"),
     ("2026-01-01T02:00:00.5+02:00", "2026-01-01T01:00:00.25Z")],
)  # fmt: skip
def test_times_are_compared_as_such(earlier: str, later: str) -> None:
    one, other = (as_told(entry("m", at)) for at in (earlier, later))
    assert _changed_s(one) < _changed_s(other)


def entry(name: str, modified_at: str, digest: str = "d" * 64, **more: Any) -> StoredModel:
    details = ModelDetails("F16", "8B", format="gguf", family="llama", families=["llama"], **more)
    return StoredModel(name, digest, 1000, details, modified_at)


class Fleet:
    """Two servers elsewhere with stores of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts = Hosts(monkeypatch, {FIRST: {}, SECOND: {}})
        self.one, self.other = self.servers = list(self.hosts.fleet.servers.values())
        self.native = FleetModels(self.hosts.keeper, self.hosts.fleet)
        stored = {
            self.one.base_url: [entry("old:latest", "2025-01-01T00:00:00Z"), entry("both:7b", "2025-03-01T00:00:00Z")],
            self.other.base_url: [
                entry("both:7b", "2026-01-01T00:00:00Z", "e" * 64),
                entry("new", "2025-05-01T00:00:00Z"),
            ],
        }

        async def listed(api: OllamaApi, timeout_s: float) -> list[StoredModel]:
            return stored[api._base_url]

        monkeypatch.setattr(OllamaApi, "stored", listed)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(monkeypatch)


@pytest.mark.parametrize(
    ("versions", "told"),
    [(("0.24.0", "0.33.2"), "0.24.0"), (("0.9.1", "0.24.0"), "0.9.1"), (("", "0.33.2"), "0.33.2"),
     (("0.33.0", "0.33.0-rc2"), "0.33.0-rc2"), (("0.33.0-rc10", "0.32.15"), "0.32.15")],
)  # fmt: skip
def test_the_version_is_the_lowest(fleet: Fleet, versions: tuple[str, str], told: str) -> None:
    for server, version in zip(fleet.servers, versions, strict=True):
        server.version = version
    assert fleet.native.version() == told


def test_without_a_server_there_is_no_version(fleet: Fleet) -> None:
    with pytest.raises(ApiError) as caught:
        fleet.native.version()
    assert (caught.value.status, caught.value.code) == (503, "no_server")


async def test_the_models_are_those_of_all_servers_once_and_the_latest_first(fleet: Fleet) -> None:
    found = (await fleet.native.stored()).models
    assert [(model.name, model.digest[0]) for model in found] == [("new", "d"), ("both:7b", "d"), ("old:latest", "d")]
    assert json.loads(msgspec.json.encode(found[0])) == {
        "name": "new", "model": "new", "modified_at": "2025-05-01T00:00:00Z", "size": 1000, "digest": "d" * 64,
        "details": {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
                    "parameter_size": "8B", "quantization_level": "F16"},
    }  # fmt: skip


async def test_what_is_loaded_is_one_entry_for_each_model_and_context(fleet: Fleet) -> None:
    assert (await fleet.native.running()).models == []
    fleet.one.loaded = Profile("both:7b", 4096)
    [alone] = (await fleet.native.running()).models
    assert (alone.size, alone.size_vram, alone.context_length, alone.digest[0]) == (1000, 1000, 4096, "d")
    assert alone.expires_at > "2300"
    fleet.other.loaded = Profile("both:7b", 4096)
    [both] = (await fleet.native.running()).models
    assert (both.name, both.size) == ("both:7b", 2000)
    fleet.other.loaded = Profile("both:7b", 8192)
    assert [model.context_length for model in (await fleet.native.running()).models] == [4096, 8192]


async def test_sizes_of_a_model_are_what_its_server_told(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.one.loaded, fleet.other.loaded = Profile("both:7b", 4096), Profile("unknown", 4096)
    monkeypatch.setattr(RemoteServer, "model_vram_bytes", 5000)
    [both, unknown] = (await fleet.native.running()).models
    assert (both.size, both.size_vram) == (5000, 5000)
    assert unknown.name == "unknown:latest" and len(unknown.digest) == 64  # the ollama command cuts twelve digits off
    monkeypatch.setattr(RemoteServer, "model_vram_bytes", 0)  # on the CPU
    [both, _] = (await fleet.native.running()).models
    assert (both.size, both.size_vram) == (1000, 0)


async def test_a_model_is_unloaded_when_nobody_has_asked_for_it_so_long(fleet: Fleet) -> None:
    settings = in_force(servers={"idle_unload_s": 600})
    server: Server = RemoteServer(FIRST, settings, Deaf())
    server.state, server.loaded = fleet.one.state, Profile("old", 4096)
    server._used_s = time.monotonic() - 100
    assert server.unloads_in_s == pytest.approx(500, abs=5)
    fleet.hosts.fleet.servers = fleet.hosts.fleet.all = {server.id: server}
    [found] = (await fleet.native.running()).models
    assert found.expires_at < "2300"


async def test_a_model_is_shown_by_whichever_server_has_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def show_all(api: OllamaApi, model: str, timeout_s: float, *, verbose: bool) -> dict[str, msgspec.Raw]:
        asked.append(api._base_url)
        if api._base_url == fleet.one.base_url:
            raise ModelError("model 'new' not found", code="model_not_found")
        return {"verbose": msgspec.Raw(json.dumps(verbose).encode())}

    monkeypatch.setattr(OllamaApi, "show_all", show_all)
    assert await fleet.native.show("new", verbose=True) == {"verbose": msgspec.Raw(b"true")}
    assert asked == [fleet.one.base_url, fleet.other.base_url]
    await fleet.native.check("new")
    fleet.hosts.fleet.servers.popitem()
    for look in (fleet.native.show("new", verbose=False), fleet.native.check("new")):
        with pytest.raises(ApiError, match=r"model 'new' not found; .* obatchctl models pull new") as caught:
            await look
        assert caught.value.status == 404
    await fleet.hosts.used("old")
    seen = len(asked)
    await fleet.native.check("old")
    assert len(asked) == seen  # of one that was used nobody is asked again
    fleet.hosts.fleet.servers.clear()
    with pytest.raises(ApiError) as caught:
        await fleet.native.show("new", verbose=False)
    assert caught.value.status == 503


# Calls.


def asked(path: str, **body: Any) -> Any:
    return parse_request(request_of(path, body))


def test_a_chat_is_a_request() -> None:
    message = {"role": "user", "content": "why?", "images": ["aGk="]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    request = asked(
        CHAT, model="m", messages=[message], tools=tools, format="json", think=False, stream=True, keep_alive=-1,
        options={"num_ctx": 8192, "temperature": 0.5, "num_predict": 7, "stop": ["x"]}, shift=True, truncate=False,
        logprobs=False, n=3, urls=["https://elsewhere"], response_format="no field of this API",
    )  # fmt: skip
    assert (request.model, request.messages, request.format, request.think) == ("m", [message], "json", False)
    assert (request.context_length, request.n, request.urls, request.notes) == (8192, 1, [], [])
    assert request.options == {"num_ctx": 8192, "temperature": 0.5, "num_predict": 7, "stop": ["x"]}
    assert request.tools and request.url == CHAT


def test_a_prompt_is_a_request() -> None:
    request = asked(
        GENERATE, model="m", prompt="why?", system="Be brief.", images=["aGk="], raw=False, context=[], suffix=""
    )
    assert (request.prompt, request.system, request.images, request.context_length) == (
        "why?",
        "Be brief.",
        ["aGk="],
        None,
    )


def test_texts_are_a_request_for_vectors() -> None:
    request = asked(EMBED, model="m", input=["a", "b"], dimensions=3, truncate=True, prompt="x")
    assert (request.embed, request.dimensions) == (["a", "b"], 3)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (GENERATE, {"raw": True}, "raw"),
        (GENERATE, {"template": "{{ .Prompt }}"}, "template"),
        (GENERATE, {"suffix": "}"}, "suffix"),
        (GENERATE, {"context": [1, 2]}, "context"),
        (GENERATE, {"logprobs": True}, "logprobs"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"options": {"temperature": "hot"}}, "options.temperature"),
        (CHAT, {"options": {"num_ctx": -1}}, "options.num_ctx"),
        (CHAT, {"format": "xml"}, "format"),
        (CHAT, {"think": "a lot"}, "think"),
        (EMBED, {"input": [1, 2]}, "input"),
    ],
)
def test_what_cannot_be_done_is_refused_and_named(path: str, body: dict[str, Any], field: str) -> None:
    usual: dict[str, Any] = {
        CHAT: {"messages": [{"role": "user", "content": "x"}]},
        GENERATE: {"prompt": "x"},
        EMBED: {},
    }
    with pytest.raises(RequestRefused, match=field.replace(".", r"\.")):
        asked(path, model="m", **usual[path], **body)


@pytest.mark.parametrize(
    ("path", "body", "alone"),
    [
        (CHAT, {}, True), (CHAT, {"messages": []}, True), (CHAT, {"messages": [{}]}, False),
        (GENERATE, {}, True), (GENERATE, {"prompt": ""}, True), (GENERATE, {"prompt": " "}, False),
        (GENERATE, {"images": ["x"]}, False), (EMBED, {}, True), (EMBED, {"input": ""}, True),
        (EMBED, {"input": []}, True), (EMBED, {"input": [""]}, False),
    ],
)  # fmt: skip
def test_a_call_that_says_nothing_is_about_the_model_alone(path: str, body: dict[str, Any], alone: bool) -> None:
    assert is_for_the_model_alone(path, body) is alone


@pytest.mark.parametrize(
    ("kept", "is_none"),
    [(0, True), (0.0, True), ("0", True), ("0s", True), ("0m0s", True), ("5m", False), (-1, False), ("-1m", False),
     ("", False), (None, False), (False, False), ("10m", False)],
)  # fmt: skip
def test_no_time_at_all_unloads(kept: Any, is_none: bool) -> None:
    assert unloads({"keep_alive": kept}) is is_none


def test_a_model_has_to_be_named_and_a_switch_is_true_or_false() -> None:
    assert (name_in({"model": "m"}), name_in({"name": "m"}), switch({}, "stream", default=True)) == ("m", "m", True)
    for wrong in ({}, {"model": ""}, {"model": 7}):
        with pytest.raises(ApiError, match="model is required"):
            name_in(wrong)
    with pytest.raises(ApiError, match="stream must be"):
        switch({"stream": "no"}, "stream", default=True)


# Answers.

RECORD = {
    "id": "-", "outcome": "succeeded", "prompt": "why?", "response": "because", "think": "hm", "model": "tiny",
    "duration_s": 0.5, "prompt_tokens": 3, "response_tokens": 4, "tokens_per_s": 10.0, "done_reason": "stop",
}  # fmt: skip


def told(answer: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(msgspec.json.encode(answer))
    return document


def test_pieces_of_a_chat_and_their_end() -> None:
    teller = Teller("m", chat=True)
    first = told(teller.piece("be", "hm", []))
    assert first.pop("created_at").endswith("Z")
    assert first == {"model": "m", "message": {"role": "assistant", "content": "be", "thinking": "hm"}, "done": False}
    call = msgspec.Raw(b'{"function": {"name": "f", "arguments": {}}}')
    assert told(teller.piece("", "", [call]))["message"]["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]
    end = told(teller.end(record_in(json.dumps(RECORD).encode())))
    assert (end["done"], end["done_reason"], end["message"]["content"]) == (True, "stop", "")
    assert (end["prompt_eval_count"], end["eval_count"]) == (3, 4)
    assert (end["eval_duration"], end["prompt_eval_duration"]) == (400_000_000, 100_000_000)


def test_a_whole_answer_has_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic()
    teller = Teller("m", chat=False)
    monkeypatch.setattr("obatchd.front.native.told.time.monotonic", lambda: now_s + 2)
    whole = told(teller.whole(record_in(json.dumps(RECORD).encode())))
    assert (whole["response"], whole["thinking"], whole["done"]) == ("because", "hm", True)
    assert whole["total_duration"] / 1e9 == pytest.approx(2, abs=0.1)
    assert whole["load_duration"] / 1e9 == pytest.approx(1.5, abs=0.1)


def test_no_figures_where_there_are_none() -> None:
    assert set(told(Teller("m", chat=True).nothing("load"))) == {
        "model",
        "created_at",
        "message",
        "done",
        "done_reason",
    }
    record = record_in(json.dumps(RECORD | {"tokens_per_s": None, "response_tokens": 0}).encode())
    assert not {"eval_count", "eval_duration"} & told(Teller("m", chat=True).end(record)).keys()


def test_vectors() -> None:
    teller, shared = Teller("m", chat=False), {"duration_s": 0.1, "prompt_tokens": 2}
    one = record_in(json.dumps({"embedding": [1.5, 2], **shared}).encode())
    many = record_in(json.dumps({"embeddings": [[1], [2]], **shared}).encode())
    assert (told(teller.vectors(one))["embeddings"], told(teller.vectors(many))["embeddings"]) == (
        [[1.5, 2]],
        [[1], [2]],
    )
    assert told(teller.vectors(one))["prompt_eval_count"] == 2
    assert told(teller.vectors(None)) == {"model": "m", "embeddings": []}
    assert (told(teller.vector(one)), told(teller.vector(None))) == ({"embedding": [1.5, 2]}, {"embedding": []})


# The door.


class Answer:
    """Implements :class:`obatchd.control.programs.Awaited`: what is told comes when the test lets it."""

    def __init__(self, *coming: Piece | Exception | bytes) -> None:
        self.coming: asyncio.Queue[Piece | Exception | bytes] = asyncio.Queue()
        for one in coming:
            self.coming.put_nowait(one)
        self.found: Piece | Exception | bytes | None = None
        self.left = asyncio.Event()

    async def wait(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                self.found = await self.coming.get()
        except TimeoutError:
            return False
        if isinstance(self.found, Exception) and not isinstance(self.found, ApiError):
            raise self.found
        return True

    def fresh(self) -> Piece | None:
        return self.found if isinstance(self.found, Piece) else None

    async def result(self) -> bytes:
        found = self.found if self.found is not None else await self.coming.get()
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, bytes)
        return found

    def close(self) -> None:
        self.left.set()


class Asked:
    """Implements :class:`obatchd.control.programs.Asking`."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.calls: list[tuple[Caller, Any, bool]] = []

    async def ask(self, caller: Caller, raw: bytes, *, stream: bool) -> Answer:
        self.calls.append((caller, json.loads(raw), stream))
        return self.answer


class Models:
    """Implements :class:`obatchd.control.programs.NativeModels`."""

    def version(self) -> str:
        return "0.24.0"

    async def stored(self) -> StoredModels:
        return StoredModels([])

    async def running(self) -> RunningModels:
        return RunningModels([])

    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw]:
        if model != "tiny":
            raise ApiError(f"model '{model}' not found", status=404, code="model_not_found")
        return {name: msgspec.Raw(json.dumps(value).encode()) for name, value in SHOWN.items()}

    async def check(self, model: str) -> None:
        await self.show(model, verbose=False)


@pytest.fixture
def asking() -> Asked:
    return Asked()


@pytest.fixture
async def door(tmp_path: Path, asking: Asked) -> AsyncIterator[aiohttp.ClientSession]:
    """The API on its socket, where the kernel says who calls."""
    unused: Any = SimpleNamespace(listen=lambda listener: None)
    settings = in_force(http={"listen": ""})
    listener = Listener(
        Programs(unused, unused, unused, unused, native=Models(), asking=asking, sessions=unused),
        settings, tmp_path / "s", Access(settings.value.access),
    )  # fmt: skip
    await listener.start()
    async with aiohttp.ClientSession(
        "http://localhost", connector=aiohttp.UnixConnector(str(tmp_path / "s"))
    ) as session:
        yield session
    await listener.stop()


async def test_the_calls_that_look(door: aiohttp.ClientSession) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        async with door.head(path) as head:
            assert (head.status, await head.read()) == (200, b"")
    async with door.get("/") as root:
        assert (await root.text(), root.content_type) == ("Ollama is running", "text/plain")
    for path, body in (("version", {"version": "0.24.0"}), ("tags", {"models": []}), ("ps", {"models": []})):
        async with door.get(f"/api/{path}") as found:
            assert await found.json() == body
    for named in ({"model": "tiny"}, {"name": "tiny"}):
        async with door.post("/api/show", json=named) as shown:
            assert await shown.json() == SHOWN


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/show", b'{"model": "other"}', 404, "model 'other' not found"),
        ("/api/show", b"{}", 400, "model is required"),
        ("/api/show", b"[", 400, "must be a JSON object"),
        ("/api/nothing", b"{}", 404, "Invalid URL (POST /api/nothing)"),
        ("/api/tags", b"{}", 405, "Method Not Allowed"),
    ],
)
async def test_refusals_have_the_form_of_that_api(
    door: aiohttp.ClientSession, path: str, body: bytes, status: int, words: str
) -> None:
    async with door.post(path, data=body) as refused:
        found = await refused.json()
        assert (refused.status, list(found)) == (status, ["error"]) and words in found["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("POST", "/api/pull", {"model": "llama3.2"}, "obatchctl models pull llama3.2"),
        ("POST", "/api/pull", {"model": "x; rm"}, "obatchctl models pull 'x; rm'"),
        ("POST", "/api/pull", {}, "obatchctl models pull NAME"),
        ("DELETE", "/api/delete", {"name": "old"}, "obatchctl models rm old"),
        ("POST", "/api/create", {"model": "x"}, "obatchctl servers"),
        ("POST", "/api/copy", {"source": "x"}, "obatchctl servers"),
        ("POST", "/api/push", {"model": "x"}, "obatchctl servers"),
        ("POST", "/api/blobs/sha256:00", {}, "obatchctl servers"),
    ],
)  # fmt: skip
async def test_calls_that_change_models_are_refused_with_the_command(
    door: aiohttp.ClientSession, method: str, path: str, body: Any, words: str
) -> None:
    async with door.request(method, path, json=body) as refused:
        assert refused.status == 403 and words in (await refused.json())["error"]


async def test_a_large_blob_is_refused_before_it_comes(door: aiohttp.ClientSession) -> None:
    async def content() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield os.urandom(1024**2)

    try:
        async with door.post("/api/blobs/sha256:00", data=content()) as refused:
            assert refused.status == 403
    except aiohttp.ClientConnectionError:  # it was still sending
        pass


DONE = json.dumps(RECORD).encode()
CHATTED = {"model": "tiny", "messages": [{"role": "user", "content": "why?"}]}


async def test_a_stream_has_an_object_a_line(door: aiohttp.ClientSession, asking: Asked) -> None:
    asking.answer = Answer(Piece("be", "", []), Piece("cause", "", []), DONE)
    async with door.post("/api/chat", json=CHATTED) as found:
        assert (found.status, found.content_type) == (200, "application/x-ndjson")
        lines = [json.loads(line) for line in (await found.text()).splitlines()]
    assert [line["message"]["content"] for line in lines] == ["be", "cause", ""]
    assert [line["done"] for line in lines] == [False, False, True]
    [(caller, line, stream)] = asking.calls
    assert (caller.uid, caller.is_administrator, stream) == (os.geteuid(), False, True)
    assert line == {"custom_id": "-", "url": "/api/chat", "body": CHATTED}


async def test_who_waits_gets_a_sign_of_life_that_clients_pass_over(
    door: aiohttp.ClientSession, asking: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obatchd.front.waiting.SIGN_S", 0.01)
    async with door.post("/api/generate", json={"model": "tiny", "prompt": "why?"}) as found:
        assert await found.content.readexactly(3) == b"   "
        asking.answer.coming.put_nowait(Piece("because", "", []))
        first = await found.content.readline()
        assert json.loads(first)["response"] == "because"  # as clients read it: spaces in front do not matter
        asking.answer.coming.put_nowait(ApiError("its server died", status=500))
        assert json.loads(await found.content.read()) == {"error": "its server died"}


async def test_a_failure_before_the_first_piece_has_its_status(door: aiohttp.ClientSession, asking: Asked) -> None:
    for stream in (True, False):
        asking.answer = Answer(ApiError("too many", status=429, code="queue_full", final=False))
        async with door.post("/api/chat", json=CHATTED | {"stream": stream}) as found:
            assert (found.status, await found.json()) == (429, {"error": "too many"})
            assert found.headers["Retry-After"]
        assert asking.answer.left.is_set()


async def test_a_defect_in_a_stream_ends_it_visibly(door: aiohttp.ClientSession, asking: Asked) -> None:
    asking.answer = Answer(Piece("be", "", []), KeyError("a defect"))
    with pytest.raises(aiohttp.ClientPayloadError):
        async with door.post("/api/chat", json=CHATTED) as found:
            await found.read()


async def test_who_goes_gives_up_the_answer(door: aiohttp.ClientSession, asking: Asked) -> None:
    for body in (CHATTED, CHATTED | {"stream": False}):
        asking.answer = Answer(Piece("be", "", []))
        with contextlib.suppress(TimeoutError):
            async with door.post("/api/chat", json=body, timeout=aiohttp.ClientTimeout(0.2)) as found:
                await found.content.readline()
                found.close()
        async with asyncio.timeout(5):
            await asking.answer.left.wait()
