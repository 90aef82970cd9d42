"""Requests for vectors: many in one call, each answered for itself."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from obatchd.dispatch.protocol import JobContext, Offer
from obatchd.dispatch.worker.embedding import Vectors, embed, may_join, size_of
from obatchd.jobs.formats import Request, parse_request
from obatchd.jobs.formats.lines import index_line
from obatchd.ollama import faults
from obatchd.ollama.client import Embedded

CONTEXT = JobContext(1, "job", "", {"temperature": 1, "num_gpu": 3}, 100)
OFFER = Offer("vectors", {"num_ctx": 8192}, [])


class Server:
    """Makes a vector of each text's length; texts that are called bad spoil their call."""

    def __init__(self, fault: faults.Fault | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self._fault = fault

    async def embed(self, body: dict[str, Any]) -> Embedded:
        self.asked.append(body)
        if self._fault is not None and "bad" in body["input"]:
            return Embedded([], 0, self._fault)
        vectors = [msgspec.Raw(json.dumps([len(text), 0.5]).encode()) for text in body["input"]]
        return Embedded(vectors, 3 * len(body["input"]), None)


def values(found: Vectors) -> Any:
    given = found.extra.get("embedding", found.extra.get("embeddings"))
    return json.loads(msgspec.json.encode(given)) if given is not None else None


async def test_many_requests_share_a_call_and_its_tokens() -> None:
    server = Server()
    requests = [Request(embed="a"), Request(embed=["bb", "ccc"]), Request(embed="dddd")]
    found = await embed(server.embed, requests, CONTEXT, OFFER)
    [body] = server.asked
    assert body == {
        "model": "vectors", "input": ["a", "bb", "ccc", "dddd"], "truncate": False,
        "options": {"temperature": 1, "num_ctx": 8192, "num_batch": 8192},
    }  # fmt: skip
    assert [values(one) for one in found] == [[1, 0.5], [[2, 0.5], [3, 0.5]], [4, 0.5]]
    assert sum(one.answer.prompt_tokens for one in found) == 12
    assert [one.extra["together"] for one in found] == [3, 3, 3]


async def test_a_model_of_text_is_not_loaded_again_for_vectors() -> None:
    server = Server()
    able = msgspec.structs.replace(OFFER, capabilities=["completion"])
    [found] = await embed(server.embed, [Request(embed="a")], CONTEXT, able, "0.24.0")
    assert values(found) and server.asked[0]["options"] == {"temperature": 1, "num_ctx": 8192}
    for version in ("0.30.0", "v0.33.2-rc1", "1.0.0"):
        [found] = await embed(server.embed, [Request(embed="a")], CONTEXT, able, version)
        assert found.answer.fault and found.answer.fault.code == "not_supported"
    assert len(server.asked) == 1
    for capabilities, version in ((["embedding"], "0.33.2"), ([], "0.33.2"), (["completion"], "custom")):
        offer = msgspec.structs.replace(OFFER, capabilities=capabilities)
        assert values((await embed(server.embed, [Request(embed="a")], CONTEXT, offer, version))[0])


async def test_a_call_of_two_says_so_and_a_call_of_one_does_not() -> None:
    two = await embed(Server().embed, [Request(embed="a"), Request(embed="b")], CONTEXT, OFFER)
    one = await embed(Server().embed, [Request(embed="a")], CONTEXT, OFFER)
    assert [found.extra.get("together") for found in [*two, *one]] == [2, 2, None]


async def test_a_request_that_spoils_its_call_fails_alone() -> None:
    too_long = faults.from_response(400, "the input length exceeds the context length")
    server = Server(too_long)
    found = await embed(server.embed, [Request(embed="a"), Request(embed="bad"), Request(embed="cc")], CONTEXT, OFFER)
    assert [one.answer.fault for one in found] == [None, too_long, None]
    assert [values(one) for one in found] == [[1, 0.5], None, [2, 0.5]]
    assert len(server.asked) == 4
    assert "together" not in found[0].extra


async def test_a_fault_of_the_server_is_that_of_all_and_nothing_is_asked_again() -> None:
    server = Server(faults.connection_lost("gone"))
    found = await embed(server.embed, [Request(embed="a"), Request(embed="bad")], CONTEXT, OFFER)
    assert [one.answer.fault.code for one in found if one.answer.fault] == ["connection_lost"] * 2
    assert len(server.asked) == 1


def test_what_may_share_a_call() -> None:
    first = Request(embed="a", options={"seed": 1})
    size = size_of(first)
    assert may_join(first, size, Request(embed=["b", "c"], options={"seed": 1}))
    assert not may_join(first, size, Request(embed="b"))
    assert not may_join(first, size, Request(embed="b", options={"seed": 1}, dimensions=4))
    assert not may_join(first, size, Request(prompt="b", options={"seed": 1}))
    assert not may_join(first, size, Request(embed=["b"] * 1000, options={"seed": 1})), "so many texts"
    assert not may_join(first, size, Request(embed="b" * 70_000, options={"seed": 1})), "so long a text"
    assert not may_join(first, size, Request(embed="b", options={"seed": 1}, url="/v1/embeddings"))


@pytest.mark.parametrize(
    ("line", "embedded", "code"),
    [
        ({"id": 1, "input": "a", "row": 2}, "a", ""),
        ({"input": ["a", "b"]}, ["a", "b"], ""),
        ({"input": "a", "prompt": "p"}, None, ""),
        ({"input": ""}, None, "wrong_type"),
        ({"input": []}, None, "wrong_type"),
        ({"input": [1, 2]}, None, "wrong_type"),
        ({"inputs": "a"}, None, "missing_prompt"),
    ],
)
def test_a_request_for_vectors_is_recognised(line: dict[str, Any], embedded: Any, code: str) -> None:
    raw = json.dumps(line).encode()
    entry = index_line(1, 0, raw)
    assert (entry.refusal.code if entry.refusal else "") == code
    if not code:
        request = parse_request(raw)
        assert request.embed == embedded
        unused = {"row": 2} if "row" in line else {"input": "a"} if "prompt" in line else {}
        assert {name: json.loads(bytes(value)) for name, value in request.input.items()} == unused
