"""The worker against a server that does as it is told, without processes: frames in, frames out.

Of :mod:`obatchd.dispatch.worker.worker` and :mod:`obatchd.dispatch.worker.attempts`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from obatchd import frames
from obatchd.context.model import Context
from obatchd.daemon.process import PRELOADED
from obatchd.dispatch import protocol
from obatchd.dispatch.protocol import Cancel, Configure, GiveUp, JobContext, Offer, OfferItem, Recall, ToMain
from obatchd.dispatch.worker.worker import Worker
from obatchd.frames import Channel
from obatchd.jobs.model import repeated_line
from obatchd.ollama import faults

CONTEXT = JobContext(1, "job", "", {}, 100)
ANSWER = json.dumps({"message": {"content": "yes"}, "done": True, "done_reason": "stop"}).encode() + b"\n"


class Wire:
    """Both ends of a worker's socket in one."""

    def __init__(self) -> None:
        self.sent: list[ToMain] = []
        self.reader = asyncio.StreamReader()

    def write(self, data: bytes) -> None:
        while data:
            size = 4 + int.from_bytes(data[:4], "little")
            self.sent.append(protocol.to_main.decode(data[4:size]))
            data = data[size:]

    def is_closing(self) -> bool:
        return False

    def feed(self, *messages: protocol.ToWorker) -> None:
        self.reader.feed_data(b"".join(frames.frame(message) for message in messages))

    async def until(self, found: Callable[[], Any]) -> Any:
        async with asyncio.timeout(5):
            while not (value := found()):
                await asyncio.sleep(0.005)
        return value

    def results(self) -> dict[tuple[int, int], protocol.ResultItem]:
        frames = [message for message in self.sent if isinstance(message, protocol.Results)]
        return {(item.job, item.line): item for frame in frames for item in frame.items}

    def started(self) -> list[tuple[int, int]]:
        return [key for message in self.sent if isinstance(message, protocol.Started) for key in message.keys]


class Server:
    """An ``/api/chat`` whose answers wait until ``go`` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = 0
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.content, self.thinking, self.done_reason = "yes", "", "stop"
        self.tool_calls: list[dict[str, Any]] = []

    async def chat(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.asked += 1
        await self.go.wait()
        if request.path == "/api/embed":
            return web.json_response({"embeddings": [[1.5] for _ in body["input"]], "prompt_eval_count": 1})
        message = {"content": self.content, "thinking": self.thinking, "tool_calls": self.tool_calls}
        given = {name: value for name, value in message.items() if value}
        end = {"message": given, "done": True, "done_reason": self.done_reason}
        return web.Response(body=json.dumps(end).encode() + b"\n")


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/api/chat", handler)
    app.router.add_post("/api/embed", handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    async with serving(made.chat) as made.url:
        yield made
        made.go.set()


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire()
    worker = Worker(Channel(wire.reader, wire, protocol.to_worker))  # type: ignore[arg-type]
    task = asyncio.create_task(worker.run())
    yield wire
    wire.reader.feed_eof()
    await task
    if worker._attempts.client is not None:
        await worker._attempts.client.close()


def configure(url: str, *, slots: int = 2, stall_s: float = 60.0, request_timeout_s: float = 30.0) -> Configure:
    return Configure("gpu0", "GPU-0", url, "", slots, 1.0, stall_s, request_timeout_s)


def offer(job: int, *lines: int, raw: bytes = b'{"id": "a", "prompt": "why?"}') -> Offer:
    return Offer("tiny", {"num_ctx": 4096}, [OfferItem(job, line, 1, raw) for line in lines])


async def test_a_request_cancelled_in_the_moment_it_is_offered_gives_its_slot_back(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure(server.url), CONTEXT, offer(1, 1, 2), Cancel(1))
    wire.feed(JobContext(2, "next", "", {}, 100), offer(2, 1, 2, 3))
    await wire.until(lambda: len(wire.results()) == 3)
    assert {key[0] for key in wire.results()} == {2}


async def test_a_request_is_told_to_have_begun_while_it_runs(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, 1, 2))
    await wire.until(lambda: wire.started() == [(1, 1)])
    assert wire.results() == {}
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 2)
    assert wire.started() == [(1, 1), (1, 2)]


async def test_a_request_that_has_ended_is_not_told_to_have_begun(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure(server.url), CONTEXT, offer(1, *range(1, 21)))
    await wire.until(lambda: len(wire.results()) == 20)
    ended = set[tuple[int, int]]()
    for message in wire.sent:
        if isinstance(message, protocol.Results):
            ended |= {(item.job, item.line) for item in message.items}
        assert not isinstance(message, protocol.Started) or not ended.intersection(message.keys)


async def test_what_is_given_up_ends_and_its_slot_goes_on(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, 1))
    await wire.until(lambda: server.asked)
    wire.feed(GiveUp(faults.CRASH, "server_hung", "no token"))
    result = (await wire.until(wire.results))[1, 1]
    assert (result.fault, result.code, result.succeeded) == (faults.CRASH, "server_hung", False)
    assert json.loads(result.record)["id"] == "a"
    server.go.set()
    wire.feed(offer(1, 2))
    await wire.until(lambda: (1, 2) in wire.results())
    assert wire.results()[1, 2].succeeded


async def test_what_is_given_up_and_cancelled_as_its_answer_comes_has_no_result_and_its_slot_goes_on(
    server: Server, wire: Wire
) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, 1))
    await wire.until(lambda: server.asked)
    wire.feed(GiveUp(faults.CRASH, "server_hung", "no token"), Cancel(1))
    server.go.set()
    wire.feed(JobContext(2, "next", "", {}, 100), offer(2, 1))
    await wire.until(wire.results)
    assert [(key, result.code) for key, result in wire.results().items()] == [((2, 1), "")]


async def test_a_limit_that_becomes_shorter_ends_what_runs_already(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url), CONTEXT, offer(1, 1))
    await wire.until(lambda: server.asked)
    wire.feed(configure(server.url, request_timeout_s=0.1))
    result = (await wire.until(wire.results))[1, 1]
    assert (result.fault, result.code) == (faults.SERVER, "timeout")


async def test_an_attempt_without_end_runs_into_its_limit(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1, request_timeout_s=0.2), CONTEXT, offer(1, 1, 2))
    await wire.until(lambda: len(wire.results()) == 2)
    assert {(result.fault, result.code) for result in wire.results().values()} == {(faults.SERVER, "timeout")}


async def test_an_answer_that_stops_while_others_go_on_is_given_up_alone(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obatchd.dispatch.worker.worker._PROGRESS_S", 0.02)
    over = asyncio.Event()

    async def chat(request: web.Request) -> web.StreamResponse:
        stuck = "stuck" in (await request.read()).decode()
        response = web.StreamResponse()
        await response.prepare(request)
        while not over.is_set():
            await response.write(b'{"message": {"content": "yes"}}\n')
            await (over.wait() if stuck else asyncio.sleep(0.01))
        await response.write(ANSWER)
        return response

    async with serving(chat) as url:
        wire.feed(configure(url, stall_s=0.5), CONTEXT, offer(1, 1), offer(1, 2, raw=b'{"prompt": "stuck"}'))
        try:
            result = (await wire.until(wire.results))[1, 2]
            assert (result.fault, result.code) == (faults.SERVER, "stalled")
            assert (1, 1) not in wire.results()
        finally:
            over.set()
        await wire.until(lambda: (1, 1) in wire.results())
    assert wire.results()[1, 1].succeeded


async def test_cancelled_in_the_middle_a_slot_goes_on_with_the_next(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, 1))
    await wire.until(lambda: server.asked)
    wire.feed(Cancel(1), JobContext(2, "next", "", {}, 100), offer(2, 1))
    await wire.until(lambda: server.asked == 2)
    server.go.set()
    await wire.until(lambda: (2, 1) in wire.results())
    assert (1, 1) not in wire.results()


async def test_a_defect_costs_one_attempt_and_neither_the_slot_nor_the_request(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure(server.url, slots=1), CONTEXT)
    wire.feed(offer(9, 1), offer(1, 2))  # job 9 was never described
    await wire.until(lambda: len(wire.results()) == 2)
    odd = wire.results()[9, 1]
    assert (odd.fault, odd.code) == (faults.ANSWER, "worker_defect")
    assert json.loads(odd.record)["id"] == "a"
    assert wire.results()[1, 2].succeeded


async def test_new_timeouts_do_not_end_what_runs(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url), CONTEXT, offer(1, 1))
    await wire.until(lambda: server.asked)
    wire.feed(configure(server.url, request_timeout_s=99.0), offer(1, 2))
    await wire.until(lambda: server.asked == 2)
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 2)
    assert all(result.succeeded for result in wire.results().values())


async def test_a_recall_gives_back_what_has_no_slot(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url), CONTEXT, offer(1, 1, 2, 3, 4))
    await wire.until(lambda: server.asked == 2)
    wire.feed(Recall(9))
    returned = await wire.until(lambda: [m for m in wire.sent if isinstance(m, protocol.Returned)])
    assert sorted(returned[0].keys) == [(1, 3), (1, 4)]
    assert wire.started() == [(1, 1), (1, 2)]
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 2)


async def test_more_slots_are_filled_at_once(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, 1, 2, 3))
    await wire.until(lambda: server.asked == 1)
    wire.feed(configure(server.url, slots=3))
    await wire.until(lambda: server.asked == 3)
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 3)


VECTOR = b'{"input": "text"}'


async def test_requests_for_vectors_share_a_call_and_half_of_what_waits_stays(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, *range(1, 10), raw=VECTOR), offer(1, 10))
    await wire.until(lambda: server.asked == 1)
    wire.feed(Recall(99))
    returned = await wire.until(lambda: [m for m in wire.sent if isinstance(m, protocol.Returned)])
    assert sorted(line for _, line in returned[0].keys) == [6, 7, 8, 9, 10]
    assert wire.started() == [(1, 1)]
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 5)
    assert all(json.loads(result.record)["embedding"] == [1.5] for result in wire.results().values())
    assert server.asked == 1


async def test_vectors_share_a_call_past_what_another_job_asks_between_them(server: Server, wire: Wire) -> None:
    other = JobContext(2, "other", "", {}, 100)
    mixed = [message for line in range(1, 9) for message in (offer(1, line, raw=VECTOR), offer(2, line))]
    wire.feed(configure(server.url, slots=1), CONTEXT, other, *mixed)
    await wire.until(lambda: server.asked == 1)
    wire.feed(Recall(99))
    returned = await wire.until(lambda: [m for m in wire.sent if isinstance(m, protocol.Returned)])
    assert sorted(returned[0].keys) == [(2, line) for line in range(1, 9)]
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 8)
    assert all(result.vectors for result in wire.results().values())


async def test_a_line_nobody_can_parse_fails_alone_and_not_the_call_it_might_have_joined(
    server: Server, wire: Wire
) -> None:
    deep = b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    offers = [offer(1, 1, raw=VECTOR), offer(1, 2, raw=deep), offer(1, 3, 4, 5, raw=VECTOR)]
    server.go.set()
    wire.feed(configure(server.url, slots=1), CONTEXT, *offers)
    await wire.until(lambda: len(wire.results()) == 5)
    assert {key[1]: result.code for key, result in wire.results().items() if not result.succeeded} == {2: "bad_json"}


async def test_a_call_for_vectors_that_is_given_up_ends_for_all_in_it(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, 1, 2, 3, raw=VECTOR))
    await wire.until(lambda: server.asked == 1)
    wire.feed(GiveUp(faults.CRASH, "server_hung", "no token"))
    await wire.until(lambda: len(wire.results()) == 2)
    assert {result.code for result in wire.results().values()} == {"server_hung"}
    server.go.set()
    await wire.until(lambda: (1, 3) in wire.results())
    assert wire.results()[1, 3].succeeded


async def test_a_job_that_is_cancelled_ends_its_call_for_vectors(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, 1, 2, 3, raw=VECTOR))
    await wire.until(lambda: server.asked == 1)
    wire.feed(Cancel(1), JobContext(2, "next", "", {}, 100), offer(2, 1, raw=VECTOR))
    server.go.set()
    await wire.until(lambda: (2, 1) in wire.results())
    assert {job for job, _ in wire.results()} == {2}


async def test_a_defect_in_a_call_for_vectors_loses_none_of_its_requests(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), offer(9, 1, 2, 3, raw=VECTOR))  # job 9 was never described
    await wire.until(lambda: len(wire.results()) == 3)
    assert {result.code for result in wire.results().values()} == {"worker_defect"}


# What is asked, and what is recorded of it.


async def recorded(
    server: Server, wire: Wire, request: dict[str, Any], *, capabilities: Sequence[str] = (), prepared: bytes = b""
) -> tuple[protocol.ResultItem, dict[str, Any]]:
    """The result of one request, and its record."""
    server.go.set()
    item = OfferItem(1, 1, 1, json.dumps(request).encode(), [], None, prepared)
    wire.feed(configure(server.url), CONTEXT, Offer("tiny", {}, [item], list(capabilities)))
    await wire.until(wire.results)
    result = wire.results()[1, 1]
    return result, json.loads(result.record)


async def test_sources_are_put_into_the_prompt_and_recorded(server: Server, wire: Wire) -> None:
    prepared = msgspec.msgpack.encode(Context("the text, and why?", [{"url": "http://192.0.2.1/"}], False))
    result, record = await recorded(server, wire, {"prompt": "why?", "urls": ["x"]}, prepared=prepared)
    assert result.succeeded and record["sources"] == [{"url": "http://192.0.2.1/"}]
    assert server.bodies[0]["messages"][-1]["content"] == "the text, and why?"


@pytest.mark.parametrize("named", [{"urls": ["http://192.0.2.1/"]}, {"files": ["a.txt"]}])
async def test_a_request_whose_sources_nobody_fetched_fails(server: Server, wire: Wire, named: dict[str, Any]) -> None:
    result, _ = await recorded(server, wire, {"prompt": "why?", **named})
    assert (result.succeeded, result.code, server.asked) == (False, "context_off", 0)


@pytest.mark.parametrize(
    ("capabilities", "asked"), [(["completion"], 0), (["completion", "vision"], 1), ([], 1)], ids=["no", "yes", "?"]
)
async def test_a_model_that_cannot_see_gets_no_images(
    server: Server, wire: Wire, capabilities: list[str], asked: int
) -> None:
    image = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    result, _ = await recorded(server, wire, {"prompt": "what?", "images": [image]}, capabilities=capabilities)
    assert (result.succeeded, server.asked) == (bool(asked), asked)
    assert result.code == ("" if asked else "not_supported")


async def test_what_the_reader_noted_comes_with_the_answer(server: Server, wire: Wire) -> None:
    _, record = await recorded(server, wire, {"prompt": "why?", "stream": True, "temperature": 0, "keep_alive": 1})
    assert [note.partition(":")[0] for note in record["notes"]] == ["stream is left out", "keep_alive is left out"]
    assert server.bodies[0]["options"]["temperature"] == 0


@pytest.mark.parametrize(("capabilities", "noted"), [(["completion"], True), (["embedding"], False), ([], False)])
async def test_vectors_of_a_model_for_answers_are_noted(
    server: Server, wire: Wire, capabilities: list[str], noted: bool
) -> None:
    _, record = await recorded(server, wire, {"input": "what?"}, capabilities=capabilities)
    assert ("--text-column input" in "".join(record.get("notes", []))) is noted


async def test_an_answer_that_must_be_json_is_checked(server: Server, wire: Wire) -> None:
    server.content = '{"a": 1}'
    result, record = await recorded(server, wire, {"prompt": "what?", "format": "json"})
    assert (result.succeeded, record["data"]) == (True, {"a": 1})
    assert record["outcome"] == "succeeded" and "code" not in record


async def test_a_model_that_asks_for_a_tool_need_not_answer_in_json(server: Server, wire: Wire) -> None:
    server.tool_calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "what?"}], "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }  # fmt: skip
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    result, record = await recorded(server, wire, request)
    assert result.succeeded and record["tool_calls"] == server.tool_calls
    assert record["url"] == "/v1/chat/completions"


async def test_what_a_request_asked_for_in_vain_is_noted(server: Server, wire: Wire) -> None:
    _, record = await recorded(server, wire, {"prompt": "what?", "keep_alive": "5m", "format": "json"})
    assert record["notes"] == ["keep_alive is left out: the daemon keeps models loaded"]


async def test_a_vector_has_no_speed_and_an_answer_its_reasoning(server: Server, wire: Wire) -> None:
    server.thinking = "hm"
    _, record = await recorded(server, wire, {"prompt": "why?"})
    assert (record["think"], record["response"], record["truncated"]) == ("hm", "yes", False)
    wire.feed(offer(1, 2, raw=VECTOR))
    await wire.until(lambda: (1, 2) in wire.results())
    vector = json.loads(wire.results()[1, 2].record)
    assert vector["tokens_per_s"] is None and "response" not in vector


async def test_reasoning_that_the_template_began_is_told_apart(server: Server, wire: Wire) -> None:
    server.go.set()
    server.content = "plan</think>Paris"
    opens = Offer("tiny", {"num_ctx": 4096}, offer(1, 1).items, ["completion", "opens <think>"])
    wire.feed(configure(server.url), CONTEXT, opens)
    await wire.until(wire.results)
    record = json.loads(wire.results()[1, 1].record)
    assert (record["response"], record["think"]) == ("Paris", "plan")


@pytest.mark.parametrize(("able", "succeeds"), [(["completion", "thinking"], True), (["completion"], False)])
async def test_a_cut_answer_of_a_model_that_was_told_not_to_reason_is_one(
    server: Server, wire: Wire, able: list[str], succeeds: bool
) -> None:
    """Where it can be told: else its template began to reason all the same."""
    server.content, server.done_reason = "Paris is the", "length"
    result, record = await recorded(
        server, wire, {"prompt": "where?", "think": False}, capabilities=[*able, "opens <think>"]
    )
    assert (result.succeeded, record["response"]) == (succeeds, "Paris is the" if succeeds else "")


async def test_a_ping_is_answered_with_the_state_of_the_work(server: Server, wire: Wire) -> None:
    wire.feed(protocol.Ping())
    [first] = await wire.until(lambda: [m for m in wire.sent if isinstance(m, protocol.Progress)])
    assert (first.tokens, first.active, first.silent_s) == (0, 0, 0.0)
    wire.feed(configure(server.url), CONTEXT, offer(1, 1))
    await wire.until(lambda: server.asked)
    wire.feed(protocol.Ping())
    progress = await wire.until(lambda: [m for m in wire.sent if isinstance(m, protocol.Progress)][1:])
    assert progress[0].active == 1 and progress[0].silent_s > 0
    server.go.set()
    await wire.until(wire.results)


async def test_a_job_that_is_over_is_forgotten(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure(server.url), CONTEXT, offer(1, 1))
    await wire.until(wire.results)
    wire.feed(protocol.Forget(1), protocol.Forget(2), offer(1, 2))
    await wire.until(lambda: (1, 2) in wire.results())
    assert wire.results()[1, 2].code == "worker_defect"  # nothing is known of the job any more


async def test_another_server_is_asked_when_the_worker_is_told_so(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure("http://127.0.0.1:1"), CONTEXT, offer(1, 1))
    await wire.until(wire.results)
    assert wire.results()[1, 1].fault == faults.NOBODY
    wire.feed(configure(server.url), offer(1, 2))
    await wire.until(lambda: (1, 2) in wire.results())
    assert wire.results()[1, 2].succeeded


def test_the_forkserver_imports_nothing_that_only_the_daemon_needs() -> None:
    script = f"import sys, {', '.join(PRELOADED)}\nsys.exit(str({{'aiohttp', 'pydantic'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).stderr == b"set()\n"


# Repeated requests, and those that ask for several answers.

CHAT = {"custom_id": "a", "url": "/v1/chat/completions", "method": "POST"}


def choosing(n: int, **body: Any) -> bytes:
    whole = {"messages": [{"role": "user", "content": "why?"}], "n": n, **body}
    return json.dumps({**CHAT, "body": whole}).encode()


async def test_a_repeated_request_is_asked_with_its_own_seed_which_is_recorded(server: Server, wire: Wire) -> None:
    server.go.set()
    first, second = repeated_line(7, 1), repeated_line(7, 2)
    wire.feed(configure(server.url), CONTEXT, offer(1, first, second))
    wire.feed(offer(1, repeated_line(8, 2), raw=b'{"prompt": "b", "options": {"seed": 40}}'))
    await wire.until(lambda: len(wire.results()) == 3)
    records = [json.loads(wire.results()[1, line].record) for line in (first, second, repeated_line(8, 2))]
    assert [record["id"] for record in records] == ["a#1", "a#2", "0000008#2"]
    assert [(record["line"], record["repeat"]) for record in records] == [(7, 1), (7, 2), (8, 2)]
    assert sorted(record["seed"] for record in records) == sorted(body["options"]["seed"] for body in server.bodies)
    assert records[2]["seed"] == 41
    assert len({record["seed"] for record in records}) == 3


async def test_several_answers_are_one_result(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure(server.url), CONTEXT, offer(1, 3, raw=choosing(3, seed=5)))
    result = (await wire.until(wire.results))[1, 3]
    record = json.loads(result.record)
    assert [(c["index"], c["response"], c["seed"]) for c in record["choices"]] == [
        (0, "yes", 5), (1, "yes", 6), (2, "yes", 7)
    ]  # fmt: skip
    assert (result.succeeded, record["id"], record["response"], record["truncated"]) == (True, "a", "yes", False)
    assert "seed" not in record
    assert sorted(body["options"]["seed"] for body in server.bodies) == [5, 6, 7]
    assert all("n" not in body for body in server.bodies)


async def test_several_answers_fail_as_a_whole_if_one_fails(wire: Wire) -> None:
    asked = 0

    async def chat(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if json.loads(await request.read())["options"]["seed"] == 6:
            return web.json_response({"error": "the input length exceeds the context length"}, status=400)
        return web.Response(body=ANSWER)

    async with serving(chat) as url:
        wire.feed(configure(url, slots=1), CONTEXT, offer(1, 3, raw=choosing(9, seed=5)))
        result = (await wire.until(wire.results))[1, 3]
    record = json.loads(result.record)
    assert (result.succeeded, result.code, asked) == (False, "context_exceeded", 2)
    assert record["message"].startswith("answer 2 of 9: ")
    assert "choices" not in record


async def test_answers_that_must_have_a_form_have_it_each(server: Server, wire: Wire) -> None:
    server.go.set()
    server.content, server.thinking, server.done_reason = '{"a": 1}', "hm", "length"
    wire.feed(configure(server.url), CONTEXT, offer(1, 3, raw=choosing(2, response_format={"type": "json_object"})))
    record = json.loads((await wire.until(wire.results))[1, 3].record)
    assert [(choice["data"], choice["think"]) for choice in record["choices"]] == [({"a": 1}, "hm"), ({"a": 1}, "hm")]
    assert (record["data"], record["truncated"]) == ({"a": 1}, True)
    assert [choice["truncated"] for choice in record["choices"]] == [True, True]


async def test_several_answers_have_the_slots_that_nobody_else_needs(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=4), CONTEXT, offer(1, 1, raw=choosing(6)))
    await wire.until(lambda: server.asked == 4)
    wire.feed(offer(1, 2, 3, 4))
    await wire.until(wire.started)
    assert wire.started() == [(1, 1)], "never more at a server than it has slots"
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 4)
    assert len(json.loads(wire.results()[1, 1].record)["choices"]) == 6
    assert server.asked == 9


async def test_an_idle_server_works_for_one_request_with_all_its_slots_and_others_come_in_between(
    server: Server, wire: Wire
) -> None:
    order: list[str] = []

    async def chat(request: web.Request) -> web.Response:
        order.append(json.loads(await request.read())["messages"][-1]["content"])
        await asyncio.sleep(0)
        return web.Response(body=ANSWER)

    async with serving(chat) as url:
        wire.feed(configure(url, slots=2), CONTEXT, offer(1, 1, raw=choosing(16)), offer(1, 2, raw=b'{"prompt": "me"}'))
        await wire.until(lambda: len(wire.results()) == 2)
    assert order.index("me") < 4, order


@pytest.mark.parametrize("beside", [1, 3])
async def test_what_is_given_up_or_cancelled_ends_all_its_answers(server: Server, wire: Wire, beside: int) -> None:
    wire.feed(configure(server.url, slots=beside + 1), CONTEXT, offer(1, 1, raw=choosing(8)))
    await wire.until(lambda: server.asked == beside + 1)
    wire.feed(GiveUp(faults.CRASH, "server_hung", "no token"))
    result = (await wire.until(wire.results))[1, 1]
    assert (result.code, result.succeeded) == ("server_hung", False)
    wire.feed(offer(1, 2, raw=choosing(8)))
    await wire.until(lambda: server.asked == 2 * (beside + 1))
    wire.feed(Cancel(1), JobContext(2, "next", "", {}, 100), offer(2, 1))
    await wire.until(lambda: server.asked == 2 * (beside + 1) + 1)
    server.go.set()
    await wire.until(lambda: (2, 1) in wire.results())
    assert (1, 2) not in wire.results()


async def test_a_request_that_waits_for_its_last_answers_in_other_slots_can_be_given_up(wire: Wire) -> None:
    asked, over = 0, asyncio.Event()

    async def chat(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if json.loads(await request.read())["options"]["seed"] != 1:
            await over.wait()
        return web.Response(body=ANSWER)

    def answer_came() -> bool:  # that with seed 1
        wire.feed(protocol.Ping())
        return any(message.tokens for message in wire.sent if isinstance(message, protocol.Progress))

    async with serving(chat) as url:
        wire.feed(configure(url, slots=2), CONTEXT, offer(1, 1, raw=choosing(2, seed=0)))
        try:
            await wire.until(lambda: asked == 2)
            await wire.until(answer_came)
            wire.feed(GiveUp(faults.CRASH, "server_hung", "no token"), offer(1, 2))
            assert (await wire.until(wire.results))[1, 1].code == "server_hung"
        finally:
            over.set()
        await wire.until(lambda: (1, 2) in wire.results())


async def test_each_of_several_answers_may_take_as_long_as_an_attempt(wire: Wire) -> None:
    async def chat(request: web.Request) -> web.Response:
        await asyncio.sleep(0.15)
        return web.Response(body=ANSWER)

    async with serving(chat) as url:
        wire.feed(configure(url, slots=1, request_timeout_s=0.4), CONTEXT, offer(1, 1, raw=choosing(5)))
        assert (await wire.until(wire.results))[1, 1].succeeded


async def test_time_in_borrowed_slots_is_told_apart(wire: Wire) -> None:
    async def chat(request: web.Request) -> web.Response:
        await asyncio.sleep(0.1)
        return web.Response(body=ANSWER)

    async with serving(chat) as url:
        wire.feed(configure(url, slots=4), CONTEXT, offer(1, 1, raw=choosing(4)))
        result = (await wire.until(wire.results))[1, 1]
    assert result.beside_s > 1.5 * result.duration_s
    assert json.loads(result.record)["duration_s"] == pytest.approx(result.duration_s, abs=1e-3)
    assert json.loads(result.record)["beside_s"] == pytest.approx(result.beside_s, abs=1e-3)


# Interactive requests.


def chunk(content: str = "", **message: Any) -> bytes:
    return json.dumps({"message": {"content": content, **message}}).encode() + b"\n"


END = json.dumps({"message": {}, "done": True, "done_reason": "stop", "eval_count": 2}).encode() + b"\n"


def people(line: int, *, stream: bool = True, capabilities: Sequence[str] = (), **fields: Any) -> Offer:
    raw = json.dumps({"prompt": "who?", **fields}).encode()
    return Offer("tiny", {"num_ctx": 4096}, [OfferItem(0, line, 1, raw)], [*capabilities], 1, stream)


PEOPLE = JobContext(0, "interactive", "", {}, 100)


class Pieces:
    """An ``/api/chat`` that sends its pieces one by one, each when it is told to."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.next = asyncio.Semaphore(0)
        self.left = asyncio.Event()  # the client went away

    async def chat(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for piece in self.pieces:
                await self.next.acquire()
                await response.write(piece)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response

    def go(self, count: int = 1) -> None:
        for _ in range(count):
            self.next.release()


def pieces_of(wire: Wire) -> list[protocol.TokenItem]:
    return [item for message in wire.sent if isinstance(message, protocol.Tokens) for item in message.items]


async def test_one_of_a_higher_rank_begins_before_all_that_the_worker_holds(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, PEOPLE, offer(1, 1, 2, 3))
    await wire.until(lambda: server.asked == 1)
    wire.feed(people(7), protocol.Ping())
    await wire.until(lambda: any(isinstance(message, protocol.Progress) for message in wire.sent))
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 4)
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert asked == ["why?", "who?", "why?", "why?"]


async def test_a_recall_takes_requests_of_batches_first(server: Server, wire: Wire) -> None:
    wire.feed(configure(server.url, slots=1), CONTEXT, PEOPLE, offer(1, 1, 2))
    await wire.until(lambda: server.asked == 1)
    wire.feed(people(7), Recall(1), Recall(1))
    await wire.until(lambda: len([m for m in wire.sent if isinstance(m, protocol.Returned)]) == 2)
    assert [m.keys for m in wire.sent if isinstance(m, protocol.Returned)] == [[(1, 2)], [(0, 7)]]
    server.go.set()
    await wire.until(wire.results)


async def test_an_answer_is_sent_piece_by_piece(wire: Wire) -> None:
    call = {"function": {"name": "look", "arguments": {}}}
    made = Pieces(chunk(thinking="hm"), chunk("be"), chunk("cause"), chunk(tool_calls=[call]), END)
    async with serving(made.chat) as url:
        wire.feed(configure(url), PEOPLE, people(7))
        made.go()
        await wire.until(lambda: pieces_of(wire))
        assert pieces_of(wire) == [protocol.TokenItem(0, 7, 1, "", "hm")]
        made.go(4)
        record = json.loads((await wire.until(wire.results))[0, 7].record)
    assert "".join(item.text for item in pieces_of(wire)) == record["response"] == "because"
    assert "".join(item.think for item in pieces_of(wire)) == record["think"] == "hm"
    assert [json.loads(item.calls) for item in pieces_of(wire) if item.calls] == [[call]]
    kinds = [type(message) for message in wire.sent if not isinstance(message, protocol.Progress)]
    assert kinds.index(protocol.Results) == len(kinds) - 1, "the result comes after the last piece"


async def test_a_request_that_wants_no_stream_gives_its_first_sign_alone(wire: Wire) -> None:
    made = Pieces(chunk("be"), chunk("cause"), END)
    async with serving(made.chat) as url:
        wire.feed(configure(url), PEOPLE, people(7, stream=False))
        made.go()
        await wire.until(lambda: pieces_of(wire))
        made.go(2)
        await wire.until(wire.results)
    assert pieces_of(wire) == [protocol.TokenItem(0, 7, 1)]


async def test_an_answer_that_comes_at_once_is_all_that_is_told(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure(server.url), PEOPLE, people(7, stream=False))
    await wire.until(wire.results)
    assert [type(message) for message in wire.sent] == [protocol.Hello, protocol.Results]


async def test_a_batch_sends_no_pieces(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure(server.url), CONTEXT, offer(1, 1))
    await wire.until(wire.results)
    assert pieces_of(wire) == []


@pytest.mark.parametrize("able", [[], ["completion", "opens <think>"]])
async def test_reasoning_in_tags_is_no_text_of_the_answer(wire: Wire, able: list[str]) -> None:
    opening = "" if able else "<think>"
    made = Pieces(chunk(opening), chunk("hm"), chunk("</think>yes"), END)
    async with serving(made.chat) as url:
        wire.feed(configure(url), PEOPLE, people(7, capabilities=able))
        made.go(4)
        await wire.until(wire.results)
    assert ("".join(i.text for i in pieces_of(wire)), "".join(i.think for i in pieces_of(wire))) == ("yes", "hm")


async def test_a_text_that_begins_like_a_tag_is_sent_when_it_is_none(wire: Wire) -> None:
    made = Pieces(chunk("["), chunk("see"), chunk(" here]"), END)
    async with serving(made.chat) as url:
        wire.feed(configure(url), PEOPLE, people(7))
        made.go(2)
        await wire.until(lambda: any(item.text for item in pieces_of(wire)))
        made.go(2)
        await wire.until(wire.results)
    assert "".join(item.text for item in pieces_of(wire)) == "[see here]"


async def test_an_answer_that_is_checked_comes_in_one_piece(wire: Wire) -> None:
    made = Pieces(chunk('{"a"'), chunk(":1}"), END)
    async with serving(made.chat) as url:
        wire.feed(configure(url), PEOPLE, people(7, format="json"))
        made.go(3)
        await wire.until(wire.results)
    assert [item.text for item in pieces_of(wire)] == ["", '{"a":1}']


async def test_cancelling_one_request_closes_its_connection_and_frees_its_slot(wire: Wire) -> None:
    made = Pieces(chunk("be"), chunk("cause"), END)
    async with serving(made.chat) as url:
        wire.feed(configure(url, slots=1), CONTEXT, PEOPLE, people(7), offer(1, 1))
        made.go()
        await wire.until(lambda: pieces_of(wire))
        wire.feed(protocol.CancelOne(0, 7))
        returned = await wire.until(lambda: [m for m in wire.sent if isinstance(m, protocol.Returned)])
        assert returned == [protocol.Returned([(0, 7)])]
        await wire.until(lambda: wire.started() == [(0, 7), (1, 1)])
        made.go(6)  # those of the one that was cancelled, too: this server does not look whether anybody listens
        await wire.until(wire.results)
        assert [*wire.results()] == [(1, 1)]


async def test_one_that_has_ended_is_not_cancelled(server: Server, wire: Wire) -> None:
    server.go.set()
    wire.feed(configure(server.url), PEOPLE, people(7))
    await wire.until(wire.results)
    wire.feed(protocol.CancelOne(0, 7))
    returned = await wire.until(lambda: [m for m in wire.sent if isinstance(m, protocol.Returned)])
    assert returned == [protocol.Returned([])]


async def test_one_for_a_vector_shares_no_call(server: Server, wire: Wire) -> None:
    raw = b'{"input": "a text"}'
    items = [OfferItem(1, line, 1, raw) for line in range(1, 13)]
    wire.feed(configure(server.url, slots=1), CONTEXT, PEOPLE, Offer("tiny", {"num_ctx": 4096}, items))
    await wire.until(lambda: server.asked == 1)
    wire.feed(Offer("tiny", {"num_ctx": 4096}, [OfferItem(0, 7, 1, raw)], [], 1), protocol.Ping())
    await wire.until(lambda: any(isinstance(message, protocol.Progress) for message in wire.sent))
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 13)
    assert [len(body["input"]) for body in server.bodies][1] == 1
    assert all(len(body["input"]) > 1 for body in server.bodies[:1])


async def test_it_tells_how_many_requests_it_holds_and_how_many_it_ever_got(server: Server, wire: Wire) -> None:
    def told() -> list[tuple[int, int, int, int]]:
        said = [message for message in wire.sent if isinstance(message, protocol.Progress)]
        return [(one.held, one.got, one.offered, one.got_then) for one in said]

    wire.feed(configure(server.url, slots=1), CONTEXT, offer(1, 1, 2), protocol.Ping(2), offer(1, 3), Recall(1))
    await wire.until(lambda: any(isinstance(message, protocol.Returned) for message in wire.sent))
    assert told()[0] == (2, 2, 2, 2)
    wire.feed(protocol.Ping(3))
    await wire.until(lambda: len(told()) >= 2)
    assert told()[1] == (2, 3, 3, 3)
    server.go.set()
    await wire.until(lambda: len(wire.results()) == 2)
    wire.feed(protocol.Ping(4))  # one that never came
    await wire.until(lambda: told()[-1][2] == 4)
    assert told()[-1] == (0, 3, 4, 3)
