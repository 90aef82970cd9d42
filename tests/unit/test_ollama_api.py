"""Supervision and burn-ins against a server that answers in every way we know of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from obatchd.dispatch.protocol import JobContext
from obatchd.dispatch.worker.body import request_body
from obatchd.errors import ModelError, ServerError
from obatchd.jobs.formats.request import Request
from obatchd.ollama.api import OllamaApi

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[OllamaApi]]


def answering(status: int, body: Any) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, body=body if isinstance(body, bytes) else json.dumps(body).encode())

    return handle


def streaming(*lines: dict[str, Any], hang: bool = False, cut: bool = False) -> Handler:
    """Sends these lines, then ends, says nothing more until it is left, or cuts the connection."""

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(json.dumps(line).encode() + b"\n")
        while hang and request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.001)
        if cut and request.transport is not None:
            request.transport.abort()
        return response

    return handle


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> OllamaApi:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runners.append(web.AppRunner(app, shutdown_timeout=0))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return OllamaApi(f"http://127.0.0.1:{runners[-1].addresses[0][1]}", "secret")

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_every_call_has_its_method_its_body_the_token_and_a_connection_of_its_own(serve: Serve) -> None:
    seen: list[tuple[str, str, Any]] = []
    peers: set[Any] = set()

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen.append((request.method, request.path, json.loads(body) if body else None))
        peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        assert request.headers["Authorization"] == "Bearer secret"
        return web.json_response({"version": "0.33.2", "models": None})

    api = await serve(handle)
    assert await api.version(5) == "0.33.2"
    assert await api.loaded(5) == []
    assert (await api.show("m", 5)).capabilities == []
    await api.delete("m", 5)
    await api.load("m", {"num_ctx": 4096}, 5, pin=True)
    await api.unload("m", 5)
    assert seen == [
        ("GET", "/api/version", None),
        ("GET", "/api/ps", None),
        ("POST", "/api/show", {"model": "m"}),
        ("DELETE", "/api/delete", {"model": "m"}),
        (
            "POST",
            "/api/generate",
            {"model": "m", "options": {"num_ctx": 4096}, "stream": False, "keep_alive": -1, "shift": False},
        ),
        ("POST", "/api/generate", {"model": "m", "keep_alive": 0, "stream": False}),
    ]
    assert len(peers) == len(seen)


@pytest.mark.parametrize(
    ("status", "text", "kind", "code", "words"),
    [
        (404, "model 'm' not found", ModelError, "model_not_found", "obatchctl models pull"),
        (500, "model requires more system memory (9 GiB) than is available", ModelError, "does_not_fit", "9 GiB"),
        (500, "llama runner process has terminated: cudaMalloc failed: out of memory", ModelError, "does_not_fit", ""),
        (400, '"m" does not support generate', ModelError, "not_supported", ""),
        (403, "no", ServerError, "forbidden", "(403): it does not take servers.remote_token; correct that."),
        (400, "the input length exceeds the context length", ServerError, "context_exceeded", ""),
        (500, "an error was encountered while running the model: CUDA error", ServerError, "server_error", "500: an"),
        (503, "server busy, please try again", ServerError, "server_error", "answered 503"),
        (302, "", ServerError, "not_ollama", "/api/generate answered 302, a redirect"),
        (404, "Not Found", ServerError, "not_ollama", "answered 404 (Not Found), not as Ollama does"),
    ],
)
async def test_the_table_of_faults_decides_what_an_error_answer_is(
    serve: Serve, status: int, text: str, kind: type[ServerError], code: str, words: str
) -> None:
    api = await serve(answering(status, {"error": text}))
    with pytest.raises(ServerError) as caught:
        await api.unload("m", 5)
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert words in caught.value.message


async def test_a_server_that_wants_a_token_and_gets_none(serve: Serve) -> None:
    api = await serve(answering(401, {"error": "no"}))
    with pytest.raises(ServerError, match=r"refuses us \(401\): set servers\.remote_token\."):
        await OllamaApi(api._base_url).version(5)


async def test_a_model_that_makes_only_vectors_is_loaded_and_tried_by_one(serve: Serve) -> None:
    asked: list[tuple[str, int | None]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked.append((request.path, body["options"].get("num_batch")))
        if request.path != "/api/embed":
            return web.json_response({"error": f'"{body["model"]}" does not support chat'}, status=400)
        return web.json_response({"embeddings": []})

    api = await serve(handle)
    await api.load("m", {"num_ctx": 8192}, 5, pin=False)
    await api.one_token("m", {"num_ctx": 8192}, 5, pin=False)
    # As with every request for vectors (dispatch.worker.embedding), or the model would be loaded again.
    assert asked == [("/api/generate", None), ("/api/embed", 8192), ("/api/chat", None), ("/api/embed", 8192)]


async def test_every_call_wants_the_model_loaded_as_prompts_do(serve: Serve) -> None:
    """Since 0.30 a call that says otherwise whether a context may shift, or nothing, loads the model again."""
    shifts: list[Any] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        shifts.append((await request.json()).get("shift"))
        return web.json_response({"done": True})

    api = await serve(handle)
    await api.load("m", {}, 5, pin=True)
    await api.one_token("m", {}, 5, pin=True)
    await api.generate("m", "x", {}, 5)
    shifts.append(request_body(Request(prompt="x"), JobContext(1, "job", "", {}, 500), "m", {})["shift"])
    assert shifts == [False] * 4


_DEEP = b'{"x":' + b"[" * 100_000


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"version": 5}', b"[]", b'{"version": "\xff"}', _DEEP])
async def test_something_else_on_the_port_is_not_taken_for_ollama(serve: Serve, body: bytes) -> None:
    api = await serve(answering(200, body))
    with pytest.raises(ServerError) as caught:
        await api.version(5)
    assert caught.value.code == "not_ollama"


@pytest.mark.parametrize("body", [b'{"models": [{"name": "\xff"}]}', _DEEP])
@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_that_nobody_can_read_is_an_error_of_the_server(serve: Serve, status: int, body: bytes) -> None:
    api = await serve(answering(status, body))
    with pytest.raises(ServerError) as caught:
        await api.loaded(5)
    assert caught.value.code == "not_ollama"


async def test_what_a_template_opens_is_among_the_abilities_of_its_model(serve: Serve) -> None:
    body = {"capabilities": ["completion"], "template": "{{ .Prompt }}<|Assistant|><think>\n"}
    assert (await (await serve(answering(200, body))).show("m", 5)).abilities == ["completion", "opens <think>"]
    assert (await (await serve(answering(200, body | {"template": "x"}))).show("m", 5)).abilities == ["completion"]


async def test_a_server_that_cannot_be_reached_or_does_not_answer_in_time(serve: Serve, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    with pytest.raises(ServerError, match=f"{url} cannot be reached: Connection refused.") as caught:
        await OllamaApi(url).generate("m", "p", {}, 5)
    assert caught.value.code == "server_unreachable"
    with pytest.raises(ServerError, match="cannot be reached: ") as caught:
        await OllamaApi(f"http://{'x' * 70}.invalid:1").version(5)
    assert caught.value.code == "server_unreachable"
    with pytest.raises(ServerError, match=r"within 0\.05 s") as caught:
        await (await serve(streaming(hang=True))).loaded(0.05)
    assert caught.value.code == "timeout"
    with pytest.raises(ServerError, match="broke off its answer") as caught:
        await (await serve(streaming({}, cut=True))).loaded(5)
    assert caught.value.code == "server_unreachable"


async def test_an_answer_to_a_raw_prompt(serve: Serve) -> None:
    bodies: list[Any] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        answer = {"response": "yes", "done": True, "eval_count": 2, "logprobs": [{"token": "yes", "logprob": -0.5}]}
        return web.json_response(answer)

    api = await serve(handle)
    answer = await api.generate("m", "p", {"seed": 1}, 5, logprobs=True)
    assert (answer.response, answer.eval_count) == ("yes", 2)
    assert [entry.logprob for entry in answer.logprobs or ()] == [-0.5]
    assert bodies == [
        {
            "model": "m", "prompt": "p", "raw": True, "stream": False, "truncate": False, "shift": False,
            "options": {"seed": 1}, "keep_alive": -1, "logprobs": True,
        }
    ]  # fmt: skip


async def test_a_raw_prompt_whose_answer_is_not_whole_or_whose_context_is_too_small(serve: Serve) -> None:
    api = await serve(answering(200, {"response": "yes yes", "done": False}))
    with pytest.raises(ServerError, match="did not finish") as caught:
        await api.generate("m", "p", {}, 5)
    assert caught.value.code == "server_error"
    words = "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it"
    nested = json.dumps({"error": {"code": 400, "message": words, "type": "exceed_context_size_error"}})
    api = await serve(answering(400, {"error": nested}))
    with pytest.raises(ServerError, match=r"\(4096 tokens\), try increasing it") as caught:
        await api.generate("m", "p", {}, 5)
    assert caught.value.code == "context_exceeded"
