"""The stand-in server: slots, loads and every fault, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from obatchd.simulator.answers import digest
from obatchd.simulator.config import Config, Distribution, Fault, ModelSpec
from obatchd.simulator.scheduler import Limits, Scheduler
from obatchd.simulator.server import Server
from obatchd.simulator.store import ModelStore

FAST = Config(answer=Distribution(tokens=5))
MODELS = [ModelSpec("tiny"), ModelSpec("other"), ModelSpec("thinker", capabilities=["completion", "thinking"])]


class Client:
    """Asks one stand-in server that lives in this process."""

    def __init__(self, session: aiohttp.ClientSession, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.session = session

    async def chat(self, prompt: str = "hello", **fields: Any) -> tuple[int, list[dict[str, Any]]]:
        """HTTP status and NDJSON lines."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], **fields}
        async with self.session.post("/api/chat", json=body) as response:
            return response.status, [json.loads(line) for line in (await response.read()).splitlines()]

    async def state(self) -> dict[str, Any]:
        async with self.session.get("/simulator/state") as response:
            state: dict[str, Any] = await response.json()
            return state

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while not condition(state := await self.state()):
                await asyncio.sleep(0.01)
            return state


@contextlib.asynccontextmanager
async def simulator(tmp_path: Path, config: Config = FAST, slots: int = 2, gpus: int = 0) -> AsyncIterator[Client]:
    limits = Limits(slots, context_length=4096, max_queue=8, max_loaded=1, keep_alive_s=300.0)
    scheduler = Scheduler(config, limits, gpus, None)
    application = Server(scheduler, ModelStore(tmp_path, MODELS)).application()
    async with (
        TestServer(application) as server,
        aiohttp.ClientSession(server.make_url("/"), connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        try:
            yield Client(session, scheduler)
        finally:
            await scheduler.close()


def with_fault(**fields: Any) -> Config:
    return Config(answer=Distribution(tokens=5), faults=[Fault(**fields)])


async def test_every_prompt_gets_its_own_answer(tmp_path: Path) -> None:
    async with simulator(tmp_path) as client:
        await client.chat()
        prompts = [f"prompt number {number}" for number in range(20)]
        answers = await asyncio.gather(*(client.chat(prompt) for prompt in prompts))
        for prompt, (status, lines) in zip(prompts, answers, strict=True):
            text = "".join(line["message"]["content"] for line in lines)
            assert status == 200
            assert text.startswith(f"digest:{digest(prompt)} ")
            assert (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("stop", 5)
            assert lines[-1]["prompt_eval_count"] == len(prompt.split()) + 4
        state = await client.state()
        assert (state["served"], len(state["loads"])) == (21, 1)
        async with client.session.get("/simulator/requests") as response:
            recent = (await response.json())["requests"][1:]
        assert {request["digest"] for request in recent} == {digest(prompt) for prompt in prompts}


async def test_slots_limit_what_runs_and_the_rest_waits_in_order(tmp_path: Path) -> None:
    config = Config(service_s=Distribution(value=0.02), answer=Distribution(tokens=5), load_s=1)
    async with simulator(tmp_path, config, slots=2) as client:  # all six come while it loads
        finished: list[int] = []

        async def ask(number: int) -> None:
            await client.chat(f"prompt {number}")
            finished.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(ask(number))
                await client.until(lambda state, want=number + 1: state["requests"] >= want)  # type: ignore[misc]
        state = await client.state()
        assert state["max_in_flight"] == 2
        assert state["max_queued"] >= 2
        assert sorted(finished[:2]) == [0, 1] and sorted(finished[4:]) == [4, 5]


async def test_too_many_requests_during_a_load_are_refused(tmp_path: Path) -> None:
    async with simulator(tmp_path, Config(load_s=0.2)) as client:
        statuses = [status for status, _lines in await asyncio.gather(*(client.chat() for _ in range(10)))]
        assert sorted(statuses) == [200] * 8 + [503] * 2


async def test_the_pace_of_tokens_shows_in_the_times(tmp_path: Path) -> None:
    config = Config(tokens_per_s=100, prompt_tokens_per_s=100, answer=Distribution(tokens=20), load_s=0.1)
    async with simulator(tmp_path, config) as client:
        pace = {"prompt_eval_duration": pytest.approx(0.1e9, rel=0.5), "eval_duration": pytest.approx(0.2e9, rel=0.5)}
        loads_s: list[float] = []
        for _ in range(5):  # what else the machine does can only make it slower
            _status, lines = await client.chat("one two three four five six")
            last = lines[-1]
            loads_s.append(last["load_duration"] / 1e9)
            if all(last[name] == due for name, due in pace.items()):
                break
        assert len(lines) == 5
        assert loads_s[0] >= 0.1
        assert {name: last[name] for name in pace} == pace


async def test_a_thinking_model_thinks_unless_told_not_to(tmp_path: Path) -> None:
    async with simulator(tmp_path) as client:
        _status, lines = await client.chat(model="thinker", stream=False)
        assert lines[0]["message"]["thinking"]
        assert lines[0]["eval_count"] == 8 + 5
        _status, lines = await client.chat(model="thinker", stream=False, think=False)
        assert "thinking" not in lines[0]["message"]


async def test_a_model_is_evicted_only_when_it_is_idle(tmp_path: Path) -> None:
    config = Config(service_s=Distribution(value=0.2), answer=Distribution(tokens=2))
    async with simulator(tmp_path, config) as client:
        first = asyncio.create_task(client.chat("first"))
        await client.until(lambda state: state["in_flight"] == 1)
        second = asyncio.create_task(client.chat("second", model="other"))
        assert (await first)[0] == 200
        assert (await second)[0] == 200
        state = await client.state()
        assert [load["model"] for load in state["loads"]] == ["tiny:latest", "other:latest"]
        assert state["loaded"] == ["other:latest"]


async def test_another_context_loads_again_and_keep_alive_zero_unloads(tmp_path: Path) -> None:
    async with simulator(tmp_path) as client:
        for tokens in (1024, 1024, 2048):
            await client.chat(options={"num_ctx": tokens})
        assert [load["num_ctx"] for load in (await client.state())["loads"]] == [1024, 2048]
        await client.chat(options={"num_ctx": 2048}, keep_alive=0)
        assert (await client.state())["loaded"] == []


async def test_a_client_that_leaves_frees_its_slot(tmp_path: Path) -> None:
    config = Config(service_s=Distribution(value=60.0), answer=Distribution(tokens=2))
    async with simulator(tmp_path, config, slots=1) as client:
        task = asyncio.create_task(client.chat())
        await client.until(lambda state: state["in_flight"] == 1)
        task.cancel()
        await client.until(lambda state: state["in_flight"] == 0)


async def test_vram_tells_what_fits(tmp_path: Path) -> None:
    small = Config(gpu_memory_bytes=1024**3, answer=Distribution(tokens=1))
    for config, whole in ((FAST, True), (small, False), (with_fault(kind="cpu"), False)):
        async with simulator(tmp_path, config, gpus=1) as client:
            await client.chat()
            async with client.session.get("/api/ps") as response:
                (model,) = (await response.json())["models"]
            assert (model["size_vram"] == model["size"]) is whole


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ({"kind": "status", "status": 500, "message": "boom"}, 500, "boom"),
        ({"kind": "busy"}, 503, "server busy, please try again.  maximum pending requests exceeded"),
        ({"kind": "runner_crash"}, 500, "an error was encountered while running the model: unexpected EOF"),
        ({"kind": "load_failure"}, 500, "llama runner process has terminated: exit status 2"),
    ],
)
async def test_faults_that_are_errors(tmp_path: Path, fault: dict[str, Any], status: int, error: str) -> None:
    async with simulator(tmp_path, with_fault(**fault, at=1)) as client:
        assert await client.chat() == (status, [{"error": error}])
        assert (await client.chat())[0] == 200
        assert (await client.state())["fired"] == {fault["kind"]: 1}


async def test_faults_that_look_like_success(tmp_path: Path) -> None:
    endings = {}
    for kind in ("not_done", "no_reason", "empty", "cut"):
        async with simulator(tmp_path, with_fault(kind=kind, after_tokens=2)) as client:
            status, lines = await client.chat()
            assert status == 200
            endings[kind] = lines
    assert endings["not_done"][-1]["done"] is False and "done_reason" not in endings["not_done"][-1]
    assert endings["no_reason"][-1]["done"] is True and "done_reason" not in endings["no_reason"][-1]
    assert [line["done_reason"] for line in endings["empty"]] == ["length"]
    assert endings["empty"][0]["message"]["content"] == ""
    assert len(endings["cut"]) == 1 and endings["cut"][0]["done"] is False


async def test_a_runner_crash_in_mid_stream_is_an_error_line(tmp_path: Path) -> None:
    async with simulator(tmp_path, with_fault(kind="runner_crash", after_tokens=2)) as client:
        status, lines = await client.chat()
        assert (status, len(lines)) == (200, 2)
        assert "unexpected EOF" in lines[-1]["error"]


async def test_a_hang_wedges_the_runner_until_it_is_killed(tmp_path: Path) -> None:
    async with simulator(tmp_path, with_fault(kind="hang", marker="poison")) as client:
        poisoned = asyncio.create_task(client.chat("poison"))
        await client.until(lambda state: state["fired"] == {"hang": 1})
        innocent = asyncio.create_task(client.chat("innocent"))
        state = await client.until(lambda state: state["in_flight"] == 2)
        assert not poisoned.done() and not innocent.done()
        next(iter(client.scheduler.loaded.values())).runner.kill()
        assert [(await task)[0] for task in (poisoned, innocent)] == [500, 500]
        assert state["served"] == 0
        assert (await client.chat("innocent"))[0] == 200


async def test_a_short_hang_goes_on(tmp_path: Path) -> None:
    async with simulator(tmp_path, with_fault(kind="hang", seconds=0.2)) as client:
        status, lines = await client.chat()
        assert (status, lines[-1]["done_reason"]) == (200, "stop")
        assert lines[-1]["eval_duration"] >= 0.2e9


async def test_slow_multiplies_the_time(tmp_path: Path) -> None:
    config = Config(service_s=Distribution(value=0.02), faults=[Fault("slow", factor=10)])
    async with simulator(tmp_path, config) as client:
        _status, lines = await client.chat()
        assert lines[-1]["eval_duration"] >= 0.15e9


async def test_faults_can_be_switched_at_run_time(tmp_path: Path) -> None:
    async with simulator(tmp_path) as client:
        async with client.session.post("/simulator/faults", json=[{"kind": "busy", "count": 1}]) as response:
            assert response.status == 200
        assert [(await client.chat())[0] for _ in range(2)] == [503, 200]
        async with client.session.post("/simulator/faults", json=[{"kind": "nonsense"}]) as response:
            assert response.status == 400


async def test_pulls_show_progress_and_keep_the_model(tmp_path: Path) -> None:
    async with simulator(tmp_path) as client:
        async with client.session.post("/api/pull", json={"model": "fresh"}) as response:
            lines = (await response.text()).splitlines()
        assert '"completed":1000000' in "".join(lines)
        assert lines[-1] == '{"status":"success"}'
        assert (await client.chat(model="fresh"))[0] == 200
