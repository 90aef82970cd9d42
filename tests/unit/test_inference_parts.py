"""Chats and vectors at once: what calls ask, chunks, refusals, from the parts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from obatchd.control.auth import Caller
from obatchd.control.programs import Piece
from obatchd.dispatch.interactive.lease import Ended
from obatchd.errors import ApiError, InteractiveError
from obatchd.front.answers import refusal
from obatchd.front.inference.told import Chunks, Whole
from obatchd.operations.asking import Asked, Questions

RECORD = {
    "id": "-", "line": 1, "url": "/v1/chat/completions", "model": "m", "response": "yes", "done_reason": "stop",
    "prompt_tokens": 3, "response_tokens": 2, "finished_at": "2026-11-28T00:00:00.000Z", "attempts": 1,
}  # fmt: skip
WHO = Caller(1000, is_administrator=False)


class Held:
    """A lease that has ended."""

    def __init__(self, ended: Ended) -> None:
        self._ended = ended

    async def result(self) -> Ended:
        return self._ended


def awaited(**changes: Any) -> Any:
    held: Any = Held(Ended(True, json.dumps(RECORD | changes).encode()))
    return Asked(held)


def events(told: bytes) -> list[Any]:
    *whole, rest = told.decode().split("\n\n")
    assert rest == ""
    return [one if (one := event.removeprefix("data: ")) == "[DONE]" else json.loads(one) for event in whole]


def call(name: str) -> msgspec.Raw:
    return msgspec.Raw(json.dumps({"function": {"name": name, "arguments": {"a": 1}}}).encode())


async def test_the_role_comes_first_and_once() -> None:
    chunks = Chunks("k", "m", False)
    told = events(chunks.piece(Piece("be", "", [])) + chunks.piece(Piece("", "hm", [])) + await chunks.end(awaited()))
    deltas = [chunk["choices"][0]["delta"] for chunk in told[:-1]]
    assert deltas == [{"role": "assistant", "content": "", "refusal": None}, {"content": "be"}, {"reasoning": "hm"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told[:-1]] == [None, None, None, "stop"]
    assert told[-1] == "[DONE]" and {chunk["id"] for chunk in told[:-1]} == {"chatcmpl-k"}
    assert all("usage" not in chunk for chunk in told[:-1])


async def test_an_answer_without_a_piece_has_its_role_and_its_end() -> None:
    first, last, usage, done = events(await Chunks("k", "m", True).end(awaited(done_reason="length")))
    assert first["choices"][0]["delta"]["role"] == "assistant" and first["usage"] is None
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert usage["choices"] == [] and usage["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
    }
    assert done == "[DONE]"


async def test_calls_of_functions_are_numbered_over_the_whole_answer() -> None:
    chunks = Chunks("k", "m", False)
    told = events(chunks.piece(Piece("", "", [call("f"), call("g")])) + chunks.piece(Piece("", "", [call("h")])))
    calls = [one for chunk in told for one in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [(one["index"], one["id"], one["function"]["name"]) for one in calls] == [
        (0, "call_k-1", "f"),
        (1, "call_k-2", "g"),
        (2, "call_k-3", "h"),
    ]
    assert all(json.loads(one["function"]["arguments"]) == {"a": 1} and one["type"] == "function" for one in calls)
    whole = json.loads(await Whole("k", "m").end(awaited(tool_calls=[json.loads(bytes(call("f")))], response="")))
    assert whole["choices"][0]["message"]["tool_calls"][0]["id"] == "call_k-1"


async def test_several_answers_come_whole() -> None:
    choices = [{"response": f"no {number}", "done_reason": "stop", "tool_calls": []} for number in range(2)]
    told = events(await Chunks("k", "m", False).end(awaited(choices=choices)))[:-1]
    said = [(one["index"], one["delta"].get("content"), one["finish_reason"]) for c in told for one in c["choices"]]
    assert said == [(0, "no 0", None), (0, None, "stop"), (1, "no 1", None), (1, None, "stop")]
    assert all(chunk["choices"][0]["delta"].get("role", "assistant") == "assistant" for chunk in told)


async def test_large_results_are_the_same() -> None:
    vectors = [[0.5] * 100_000, [0.25]]
    body = await awaited(url="/v1/embeddings", embeddings=vectors).body("k", "m")
    assert [one["embedding"] for one in json.loads(body)["data"]] == vectors


def test_an_error_in_a_stream_is_an_event() -> None:
    [event] = events(Chunks("k", "m", False).problem(ApiError("it died", status=500, code="runner_crash")))
    assert event == {"error": {"message": "it died", "type": "server_error", "param": None, "code": "runner_crash"}}


@pytest.mark.parametrize(
    ("ended", "status", "code", "again", "after"),
    [
        (Ended(False, code="poison", again=False), 500, "poison", "false", None),
        (Ended(False, code="runner_crash"), 500, "runner_crash", None, None),
        (Ended(False, code="timeout"), 504, "timeout", "false", None),
        (Ended(False, code="paused", retry_after_s=30.0), 503, "paused", None, "30"),
        (Ended(False, code="server_busy"), 503, "server_busy", None, "5"),
        (Ended(False, code="context_exceeded", again=False), 400, "context_length_exceeded", None, None),
        (Ended(False, code="format_mismatch", again=False), 400, "format_mismatch", None, None),
    ],
)
async def test_what_clients_are_told_of_another_try(
    ended: Ended, status: int, code: str, again: str | None, after: str | None
) -> None:
    held: Any = Held(ended)
    with pytest.raises(ApiError) as caught:
        await Asked(held).body("k", "m")
    told = refusal(caught.value)
    assert (told.status, caught.value.code) == (status, code)
    assert (told.headers.get("x-should-retry"), told.headers.get("Retry-After")) == (again, after)


async def test_the_desk_says_when_to_come_again() -> None:
    class Full:
        def ask(self, question: object, owner: int) -> Any:
            raise InteractiveError("too many", code="queue_full", retry_after_s=12.3)

    full: Any = Full()
    with pytest.raises(ApiError) as caught:
        await Questions(full).ask(WHO, b"{}", stream=False)
    assert (refusal(caught.value).headers["Retry-After"], caught.value.status) == ("13", 429)
