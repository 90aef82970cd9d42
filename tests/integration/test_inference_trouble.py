"""OpenAI's own client asks for answers at once, while clients go, servers die, and others want the same slots."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import httpx2
import ollama
import openai
import pytest
from daemon_support import Daemon, Document, prompts, wait_for
from here_support import daemon_here
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from programs_support import CHAT, Programs, over_http

from obatchd.client.runtime import HTTP_SOCKET, read_record

Make = Callable[..., Daemon]
pytestmark = pytest.mark.timeout(120)
# Answers of some five seconds, in many pieces.
SLOW = {"tokens_per_s": 40, "answer": {"tokens": 200}, "chunk_s": 0.02}


def said(text: str = "Why is the sky blue?") -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture
def start(make_daemon: Make) -> Callable[..., Programs]:
    """Starts daemons with every server READY."""

    def begin(config: Document | None = None, **simulator: Any) -> Programs:
        found = over_http(make_daemon, config, simulator={**SLOW, **simulator})
        found.d.start().ready()
        return found

    return begin


def in_flight(programs: Programs) -> int:
    states = [httpx.get(f"{server['url']}/simulator/state").json() for server in programs.d.servers()]
    return sum(state["in_flight"] for state in states)


def crash(marker: str, **more: Any) -> Document:
    return {"kind": "runner_crash", "marker": marker, **more}


class Counting(httpx2.HTTPTransport):
    """Counts calls."""

    calls = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.calls += 1
        return super().handle_request(request)


class CountingToo(httpx2.AsyncHTTPTransport):
    """Counts calls."""

    calls = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.calls += 1
        return await super().handle_async_request(request)


def retrying(programs: Programs) -> tuple[OpenAI, Counting]:
    """The client with its usual two retries."""
    transport = Counting()
    return programs.client(max_retries=2, http_client=httpx2.Client(transport=transport)), transport


# Clients that go.


def test_who_goes_frees_the_slot_within_a_second(start: Callable[..., Programs]) -> None:
    found = start()
    with found.client() as client:
        stream = client.chat.completions.create(model="tiny", messages=said(), stream=True)
        assert next(iter(stream)).choices and in_flight(found) == 1
        stream.close()
        wait_for(lambda: in_flight(found) == 0, 1)
    with found.client(timeout=0.5) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="tiny", messages=said())
    wait_for(lambda: in_flight(found) == 0, 1)


def test_three_tries_of_a_call_that_takes_too_long_leave_nothing_running(start: Callable[..., Programs]) -> None:
    found = start()
    client, transport = retrying(found)
    with client, pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.4).chat.completions.create(model="tiny", messages=said())
    assert transport.calls == 3
    wait_for(lambda: in_flight(found) == 0, 1)


# Servers that die.


def test_a_server_that_dies_is_not_seen_before_the_first_token_and_told_after_it(
    start: Callable[..., Programs],
) -> None:
    found = start(faults=[crash("at once", count=1), crash("later", after_tokens=20, count=1)])
    with found.client() as client:
        for stream in (True, False):
            answer: Any = client.chat.completions.create(
                model="tiny", messages=said(f"at once {stream}"), stream=stream, max_tokens=20
            )
            text = "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message
            assert text
        chunks = []
        with pytest.raises(openai.APIError) as caught:
            for chunk in client.chat.completions.create(model="tiny", messages=said("later"), stream=True):
                chunks.append(chunk)
        assert chunks and caught.value.code == "runner_crash"
        assert client.chat.completions.create(model="tiny", messages=said("no more"), max_tokens=3).choices


def test_the_frame_of_an_error_ends_the_stream(start: Callable[..., Programs]) -> None:
    found = start(faults=[crash("later", after_tokens=20, count=1)])
    body = {"model": "tiny", "messages": said("later"), "stream": True}
    *events, last, rest = found.call("POST", CHAT, body).body.decode().split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert rest == "" and len(events) > 1 and error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"


def test_by_its_usual_retries_a_request_crashes_two_servers_and_no_batch_loses_an_attempt(
    start: Callable[..., Programs],
) -> None:
    found = start({"dispatch": {"max_attempts": 1}}, faults=[crash("CRASH")], answer={"tokens": 40})
    asked = prompts(24)
    found.d.drop("batch.jsonl", asked)
    wait_for(lambda: in_flight(found) >= 2)
    for stream in (False, True):
        client, transport = retrying(found)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="tiny", messages=said(f"CRASH {stream}"), stream=stream)
        assert transport.calls == 1 and caught.value.code == "poison"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(found.d.events("interactive_poison")) == 1 + stream
        with client, pytest.raises(openai.InternalServerError, match="ten minutes"):
            client.chat.completions.create(model="tiny", messages=said(f"CRASH {stream}"), stream=stream)
    assert sum(one["prompt"].startswith("CRASH") for one in found.d.received()) == 4
    found.d.done("batch", 90).check(asked)
    assert "CRASH" not in found.d.log()


# Too many, and states of the daemon.


def test_a_full_queue_says_when_to_come_again(start: Callable[..., Programs]) -> None:
    found = start({"dispatch": {"interactive_queue": 4}, "servers": {"slots": 1}, "gpus": {"use": "simulated:1"}})
    with ThreadPoolExecutor(4) as threads, found.client() as client:

        def ask(number: int) -> Future[ChatCompletion]:
            return threads.submit(client.chat.completions.create, model="tiny", messages=said(f"q {number}"))

        asked = [ask(0)]
        wait_for(lambda: in_flight(found) == 1)
        asked += [ask(1), ask(2)]
        wait_for(lambda: found.d.status()["interactive"]["waiting"] == 2)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="tiny", messages=said("one more"), stream=stream)
            assert caught.value.code == "queue_full" and 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
            assert caught.value.type == "rate_limit_error"
        assert all(one.result().choices for one in asked)


@pytest.mark.parametrize(("command", "code"), [("pause", "paused"), ("drain", "draining")])
def test_a_daemon_that_is_held_says_when_to_come_again(start: Callable[..., Programs], command: str, code: str) -> None:
    found = start()
    assert found.d.control(command).returncode == 0
    with found.client() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=said())
    assert (caught.value.status_code, caught.value.code) == (503, code)
    assert int(caught.value.response.headers["Retry-After"]) >= 5 and not caught.value.response.headers.get(
        "x-should-retry"
    )


# Others.


def test_a_batch_of_somebody_else_goes_on(start: Callable[..., Programs]) -> None:
    if os.geteuid():
        pytest.skip("only root can make files of others")
    found = start({"servers": {"slots": 2}, "gpus": {"use": "simulated:1"}}, tokens_per_s=200, answer={"tokens": 20})
    stop = threading.Event()

    def ask(number: int) -> int:
        answered = 0
        with found.client() as client:
            while not stop.is_set():
                client.chat.completions.create(model="tiny", messages=said(f"{number} {answered}"))
                answered += 1
        return answered

    with ThreadPoolExecutor(8) as threads:
        try:
            asking = [threads.submit(ask, number) for number in range(8)]
            wait_for(lambda: found.d.status().get("interactive", {}).get("answered", 0) > 10)
            asked = prompts(40)
            found.d.drop("batch.jsonl", asked, owner=4001)
            found.d.done("batch", 60).check(asked)
        finally:
            stop.set()
        assert all(one.result() > 0 for one in asking)


# Signs of life.


async def test_signs_of_life_keep_impatient_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only slot is taken for three seconds, and clients give up after one without a byte."""
    monkeypatch.setattr("obatchd.front.waiting.SIGN_S", 0.3)
    monkeypatch.setenv("OBATCHD_SIMULATOR", json.dumps({**SLOW, "answer": {"tokens": 120}}))
    one_slot: Any = {"gpus": {"use": "simulated:1"}, "servers": {"slots": 1}}
    async with daemon_here(tmp_path, **one_slot):
        path = read_record(tmp_path / "s").runtime_dir / HTTP_SOCKET
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with AsyncOpenAI(
            base_url="http://localhost/v1", api_key="-", max_retries=0, timeout=1.0,
            http_client=httpx2.AsyncClient(transport=transport), _strict_response_validation=True,
        ) as client, ollama.AsyncClient(
            "http://localhost", transport=httpx.AsyncHTTPTransport(uds=str(path)), timeout=1.0
        ) as native:  # fmt: skip
            holder = await client.chat.completions.create(model="tiny", messages=said("long"), stream=True)
            await anext(aiter(holder))
            began_s = time.monotonic()
            answers = await asyncio.gather(
                _whole(client), _chunks(client), native.chat("tiny", said("c"), options={"num_predict": 3}),
                native.generate("tiny", "d", options={"num_predict": 3}), native.embed("tiny", "e"),
                native.embeddings("tiny", "f"), return_exceptions=True,
            )  # fmt: skip
            assert time.monotonic() - began_s > 2
            for answer in answers:
                assert answer and not isinstance(answer, BaseException), answer
            await holder.close()


async def _whole(client: AsyncOpenAI) -> str:
    answer = await client.chat.completions.create(model="tiny", messages=said("a"), max_tokens=3)
    return answer.choices[0].message.content or ""


async def _chunks(client: AsyncOpenAI) -> str:
    stream = await client.chat.completions.create(model="tiny", messages=said("b"), max_tokens=3, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def test_a_whole_answer_that_fails_after_a_sign_of_life_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status was good already, so nobody may take what stands there for an answer."""
    monkeypatch.setattr("obatchd.front.waiting.SIGN_S", 0.3)
    monkeypatch.setenv("OBATCHD_SIMULATOR", json.dumps({**SLOW, "faults": [crash("CRASH", after_tokens=40)]}))
    async with daemon_here(tmp_path):
        path = read_record(tmp_path / "s").runtime_dir / HTTP_SOCKET
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(base_url="http://localhost", transport=transport, timeout=30) as client:
            body = {"model": "tiny", "messages": said("CRASH")}
            read = b""
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                async with client.stream("POST", CHAT, json=body) as answer:
                    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
                    async for piece in answer.aiter_raw():
                        read += piece
            assert read.startswith(b" ") and json.loads(read)["error"]["code"] == "poison"
            again = await client.post(CHAT, json=body)
            assert (again.status_code, again.headers["x-should-retry"]) == (500, "false")


async def test_a_second_call_is_told_what_the_first_could_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks again by itself where the connection broke: not for another answer that takes too long."""
    monkeypatch.setattr("obatchd.front.waiting.SIGN_S", 0.3)
    monkeypatch.setenv("OBATCHD_SIMULATOR", json.dumps(SLOW))
    async with daemon_here(tmp_path, dispatch={"request_timeout_s": 2}) as here:
        path = str(read_record(tmp_path / "s").runtime_dir / HTTP_SOCKET)
        transport = CountingToo(uds=path)
        async with AsyncOpenAI(
            base_url="http://localhost/v1", api_key="-", max_retries=2,
            http_client=httpx2.AsyncClient(transport=transport, timeout=30),
        ) as client:  # fmt: skip
            for asked in (1, 2):  # somebody who asks anew is asking
                with pytest.raises(openai.InternalServerError) as caught:
                    await client.chat.completions.create(model="tiny", messages=said())
                assert (caught.value.status_code, caught.value.code) == (504, "timeout")
                assert (transport.calls, here.desk.figures.ended["failed"]) == (asked * 2, asked)
