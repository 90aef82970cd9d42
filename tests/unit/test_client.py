"""The client against a server that misbehaves in every way we know of."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from obatchd.ollama.client import Answer, OllamaClient
from obatchd.ollama.faults import ANSWER, CRASH, NOBODY, REQUEST, SERVER

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "why?"}]}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Ask = Callable[..., Awaitable[Answer]]


def line(content: str = "", *, thinking: str = "", **fields: Any) -> bytes:
    message = {"role": "assistant", "content": content} | ({"thinking": thinking} if thinking else {})
    return json.dumps({"model": "tiny", "message": message, "done": False, **fields}).encode() + b"\n"


DONE = line(
    done=True, done_reason="stop", prompt_eval_count=7, eval_count=3, total_duration=9_000_000_000,
    load_duration=1_000_000_000, prompt_eval_duration=1_000_000_000, eval_duration=2_000_000_000,
)  # fmt: skip


def streaming(*pieces: bytes, cut: bool = False, hang: bool = False) -> Handler:
    """A handler that sends these pieces one by one, then ends, cuts the connection or says nothing more."""

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.001)
        while hang and request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.005)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handle


def failing(status: int, body: bytes, **headers: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, body=body, headers=headers)

    return handle


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    runners: list[web.AppRunner] = []
    clients: list[OllamaClient] = []

    async def run(
        handler: Handler, *, token: str = "", on_token: Callable[[], None] = lambda: None, **more: str
    ) -> Answer:
        app = web.Application()
        app.router.add_post("/api/chat", handler)
        runners.append(web.AppRunner(app, shutdown_timeout=0))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runners[-1].addresses[0][1]}"
        clients.append(OllamaClient(url, token, connect_timeout_s=1))
        return await clients[-1].chat(BODY, on_token, **more)

    yield run
    for client in clients:
        await client.close()
    for runner in runners:
        await runner.cleanup()


def blame(answer: Answer) -> tuple[str, str]:
    assert answer.fault is not None
    return answer.fault.kind, answer.fault.code


async def test_a_whole_answer(ask: Ask) -> None:
    tokens = []
    pieces = [line(thinking="hm"), line("be"), line("cause"), DONE]
    answer = await ask(streaming(*pieces), on_token=lambda: tokens.append(1))
    assert answer.fault is None
    assert (answer.text, answer.think, answer.done_reason) == ("because", "hm", "stop")
    assert (answer.prompt_tokens, answer.response_tokens, answer.eval_s) == (7, 3, 2.0)
    assert answer.wait_s == 5.0
    assert tokens


async def test_lines_may_be_cut_anywhere_between_two_packets(ask: Ask) -> None:
    whole = line("Grüße, ") + line("世界") + DONE.rstrip(b"\n")
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    answer = await ask(streaming(*pieces))
    assert (answer.text, answer.fault) == ("Grüße, 世界", None)


async def test_what_the_server_is_sent(ask: Ask) -> None:
    seen: list[web.Request] = []
    bodies: list[Any] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        bodies.append(await request.json())
        return web.Response(body=line("yes") + DONE)

    await ask(handle, token="secret")
    assert bodies == [BODY]
    assert seen[0].headers["Authorization"] == "Bearer secret"
    assert seen[0].headers["Content-Type"] == "application/json"


async def test_a_stream_that_just_ends_is_no_answer(ask: Ask) -> None:
    assert blame(await ask(streaming(line("be"), line("cau")))) == (ANSWER, "incomplete")


async def test_an_empty_body_is_no_answer(ask: Ask) -> None:
    assert blame(await ask(streaming())) == (ANSWER, "incomplete")


async def test_a_stream_that_is_cut_is_a_crash(ask: Ask) -> None:
    assert blame(await ask(streaming(line("be"), cut=True))) == (CRASH, "connection_lost")


async def test_a_connection_closed_before_the_answer_is_a_crash(ask: Ask) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert blame(await ask(handle)) == (CRASH, "connection_lost")


async def test_an_error_line_after_200_is_that_error(ask: Ask) -> None:
    error = b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'
    assert blame(await ask(streaming(line("be"), error))) == (CRASH, "runner_crash")
    assert blame(await ask(streaming(line("be"), error.rstrip(b"\n")))) == (CRASH, "runner_crash")


async def test_the_text_of_an_error_status_decides(ask: Ask) -> None:
    answer = await ask(failing(500, b'{"error":"invalid JSON schema in format"}'))
    assert blame(answer) == (REQUEST, "invalid_format")
    assert answer.fault is not None
    assert answer.fault.message == "invalid JSON schema in format"


PAGE = b"<html><head><title>Sorry</title></head><body>%s</body></html>" % (b"x" * 10_000)
SPRING = b'{"timestamp": 1, "status": 400, "error": "Bad Request", "path": "/api/chat"}'


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (404, PAGE, "not_ollama", "(Sorry)"),
        (404, b"404 page not found", "not_ollama", "[ollama_instances]"),
        (404, b'{"error": "Not Found"}', "not_ollama", "(Not Found)"),
        (405, b'{"detail": "Method Not Allowed"}', "not_ollama", "Method Not Allowed"),
        (400, PAGE, "not_ollama", "[ollama_instances]"),
        (400, SPRING, "not_ollama", "[ollama_instances]"),
        (500, PAGE, "not_ollama", "[ollama_instances]"),
        (502, b"", "not_ollama", "does not reach it"),
        (503, PAGE, "not_ollama", "does not reach it"),
        (504, PAGE, "not_ollama", "proxy_read_timeout"),
        (413, PAGE, "not_ollama", "client_max_body_size"),
        (429, b"slow down", "not_ollama", "servers.remote_slots"),
        (401, b"", "forbidden", "servers.remote_token"),
        (403, PAGE, "forbidden", "servers.remote_token"),
        (200, PAGE, "not_ollama", "(Sorry)"),
        (200, b'{"status": "ok"}', "not_ollama", "[ollama_instances]"),
        (204, b"", "not_ollama", "[ollama_instances]"),
    ],
)
async def test_an_answer_of_somebody_else_is_no_verdict_and_says_where_it_came_from(
    ask: Ask, status: int, body: bytes, code: str, words: str
) -> None:
    tokens: list[int] = []
    answer = await ask(failing(status, body), on_token=lambda: tokens.append(1))
    assert blame(answer) == ("foreign", code)
    assert answer.fault is not None
    message = answer.fault.message
    assert re.match(rf"http://127\.0\.0\.1:\d+/api/chat answered {status}\b", message)
    assert words in message and "<" not in message and len(message) < 500
    assert tokens == []


@pytest.mark.parametrize(("status", "target"), [(301, "https://front.example/api/chat"), (302, "/login"), (308, "")])
async def test_a_redirect_is_not_followed_and_its_target_is_told(ask: Ask, status: int, target: str) -> None:
    answer = await ask(failing(status, PAGE, **({"Location": f"{target}?secret=1"} if target else {})))
    assert blame(answer) == ("foreign", "not_ollama")
    assert answer.fault is not None
    assert f"answered {status}, a redirect{target and f' to {target}'}, and" in answer.fault.message
    assert "[ollama_instances]" in answer.fault.message and "secret" not in answer.fault.message


async def test_an_empty_answer_with_500_is_of_ollama_itself(ask: Ask) -> None:
    assert blame(await ask(failing(500, b""))) == (SERVER, "server_error")


async def test_a_tag_that_the_template_opened_is_closed_in_the_text(ask: Ask) -> None:
    answer = await ask(streaming(line("plan</think>Paris"), DONE), opened="<think>")
    assert (answer.text, answer.think) == ("Paris", "plan")
    answer = await ask(streaming(line("plan</think>Paris"), DONE))
    assert (answer.text, answer.think) == ("plan</think>Paris", "")


async def test_reasoning_that_the_token_limit_cut_is_no_answer(ask: Ask) -> None:
    cut = line(done=True, done_reason="length")
    assert blame(await ask(streaming(line("<think>plan"), cut))) == (REQUEST, "empty_response")
    answer = await ask(streaming(line("<think> is a tag of DeepSeek."), DONE))
    assert (answer.text, answer.fault) == ("<think> is a tag of DeepSeek.", None)


@pytest.mark.parametrize(
    "garbage",
    [b"<html>hello</html>\n", b"{]\n", b"\xff\xfe\n", b'{"message": 5}\n', b"[1]\n", b'{"error": "\xff"}\n'],
)
async def test_an_answer_that_is_not_ollamas_is_the_servers_fault(ask: Ask, garbage: bytes) -> None:
    kind, _ = blame(await ask(streaming(line("be"), garbage, DONE)))
    assert kind == SERVER


@pytest.mark.parametrize("absent", ["thinking", "tool_calls", "content"])
async def test_null_stands_for_what_is_absent(ask: Ask, absent: str) -> None:
    fields = dict.fromkeys(
        ("done_reason", "prompt_eval_count", "eval_count", "eval_duration", "load_duration", "error")
    )
    nulls = {"model": "tiny", "message": {"role": "assistant", "content": "yes", absent: None}, "done": None, **fields}
    end = {**nulls, "message": None, "done": True, "done_reason": "stop"}
    answer = await ask(streaming(line("oh "), json.dumps(nulls).encode() + b"\n", json.dumps(end).encode() + b"\n"))
    assert answer.fault is None
    assert (answer.text, answer.prompt_tokens, answer.eval_s) == ("oh " if absent == "content" else "oh yes", 0, 0.0)


@pytest.mark.parametrize("error", [{"message": "unexpected EOF", "code": 500}, {"code": 1, "message": "CUDA error: x"}])
async def test_an_error_may_be_an_object(ask: Ask, error: dict[str, Any]) -> None:
    words = {"error": {**error, "message": f"an error was encountered while running the model: {error['message']}"}}
    assert blame(await ask(streaming(line("be"), json.dumps(words).encode()))) == (CRASH, "runner_crash")


async def test_fields_of_a_later_version_are_passed_over(ask: Ask) -> None:
    answer = await ask(streaming(line("yes", logprobs=[{"token": "yes"}], novelty={"a": 1}), DONE))
    assert (answer.text, answer.fault) == ("yes", None)


async def test_nobody_listening_is_nobodys_fault(unused_tcp_port: int) -> None:
    client = OllamaClient(f"http://127.0.0.1:{unused_tcp_port}", "", connect_timeout_s=1)
    assert blame(await client.chat(BODY, lambda: None)) == (NOBODY, "unreachable")
    await client.close()


async def test_the_proxies_of_the_environment_are_not_used(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert (await ask(streaming(line("yes"), DONE))).fault is None
