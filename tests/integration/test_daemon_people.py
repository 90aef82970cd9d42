"""People beside batches in a whole daemon with stand-in servers: streams, closed connections, servers that die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from daemon_support import Job, digest, jsonl, prompts
from here_support import Here, daemon_here

from obatchd.dispatch.interactive.lease import Lease, Question
from obatchd.errors import InteractiveError

OWNER = 4242
pytestmark = [pytest.mark.timeout(120), pytest.mark.over_channel]


async def until(look: Callable[[], Any], timeout_s: float = 30) -> Any:
    async with asyncio.timeout(timeout_s):
        while not (value := look()):
            await asyncio.sleep(0.01)
    return value


def ask(here: Here, prompt: str, *, stream: bool = True, **fields: Any) -> Lease:
    return here.desk.ask(Question(json.dumps({"prompt": prompt, **fields}).encode(), stream), OWNER)


def simulate(monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
    monkeypatch.setenv("OBATCHD_SIMULATOR", json.dumps(config))


def server_of(here: Here, lease: Lease) -> Any:
    """The server that has it."""
    links = here.head.engine.dispatcher.links.values()
    return next((link.server for link in links if (0, lease.number) in link.offers), None)


@pytest.mark.near
async def test_an_answer_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, tokens_per_s=40, answer={"tokens": 20}, chunk_s=0.02)
    async with daemon_here(tmp_path) as here:
        times, texts = [], []
        async with ask(here, "how are you?") as lease:
            async for delta in lease:
                times.append(time.monotonic())
                texts.append(delta.text)
            ended = await lease.result()
        record = msgspec.json.decode(ended.record)
        assert ended.succeeded and "".join(texts) == record["response"]
        assert record["response"].startswith(digest("how are you?"))
        assert len(texts) >= 4 and times[-1] - times[0] > 0.2
        state: Any = here.desk.state()
        assert (state.answered, state.in_flight, state.waiting) == (1, 0, 0)
    assert not list((tmp_path / "s" / "work" / "jobs").iterdir())


@pytest.mark.near
async def test_a_batch_goes_on_beside_people_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, tokens_per_s=200, answer={"tokens": 20}, chunk_s=0.02)
    asked = prompts(120)
    async with daemon_here(tmp_path) as here:
        here.drop("batch.jsonl", jsonl(asked))
        await until(here.head.engine.dispatcher.busy)
        ends = []
        for number in range(25):
            lease = ask(here, f"people {number}")
            if number % 5 == 4:  # some go away, at once or in the middle
                await asyncio.sleep(0.05 * (number % 2))
                lease.close()
            ends.append(await lease.result())
        [directory] = await until(lambda: here.outbox("batch"), 60)
    assert [ended.code for ended in ends if not ended.succeeded] == ["closed"] * 5
    Job(directory).check(asked)


@pytest.mark.near
async def test_closing_one_frees_its_slot_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, tokens_per_s=5, answer={"tokens": 1000}, chunk_s=0.02)
    async with daemon_here(tmp_path, gpus={"use": "simulated:1"}, servers={"slots": 1}) as here:
        first = ask(here, "a long story")
        await anext(first)
        second = ask(here, "a question")
        began_s = time.monotonic()
        first.close()
        await anext(second)
        assert time.monotonic() - began_s < 1.0
        second.close()


@pytest.mark.near
async def test_a_server_killed_before_the_first_token_is_not_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(monkeypatch, tokens_per_s=40, prompt_tokens_per_s=5, answer={"tokens": 5}, chunk_s=0.02)
    async with daemon_here(tmp_path) as here:
        lease = ask(here, "tell me " * 10)
        server = await until(lambda: server_of(here, lease))
        await until(lambda: lease.offered is not None and lease.offered.started_s)
        os.kill(server.pid, signal.SIGKILL)
        ended = await asyncio.wait_for(lease.result(), 60)
        assert ended.succeeded
        record = msgspec.json.decode(ended.record)
        assert record["attempts"] == 2 and record["servers"][0] == server.id != record["servers"][1]


async def test_a_server_killed_after_the_first_token_ends_the_stream_with_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(monkeypatch, tokens_per_s=20, answer={"tokens": 500}, chunk_s=0.02)
    asked = prompts(12, max_response_tokens=20)
    async with daemon_here(tmp_path) as here:
        here.drop("batch.jsonl", jsonl(asked))
        lease = ask(here, "a long story")
        await anext(lease)
        server = server_of(here, lease)
        os.kill(server.pid, signal.SIGKILL)
        ended = await asyncio.wait_for(lease.result(), 30)
        assert not ended.succeeded and ended.again and ended.code
        [directory] = await until(lambda: here.outbox("batch"), 60)
    Job(directory).check(asked)


async def test_a_request_that_crashes_servers_crashes_two_and_no_attempt_of_a_batch_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = {"kind": "runner_crash", "marker": "CRASH", "after_tokens": 0}
    simulate(monkeypatch, tokens_per_s=40, answer={"tokens": 20}, chunk_s=0.02, faults=[crash])
    asked = prompts(24)
    async with daemon_here(tmp_path, dispatch={"max_attempts": 1}) as here:
        here.drop("batch.jsonl", jsonl(asked))
        await until(here.head.engine.dispatcher.busy)
        ended = await asyncio.wait_for(ask(here, "CRASH").result(), 60)
        assert (ended.code, ended.again) == ("poison", False)
        with pytest.raises(InteractiveError) as refused:
            ask(here, "CRASH")
        assert refused.value.code == "poison"
        [directory] = await until(lambda: here.outbox("batch"), 60)
    Job(directory).check(asked)
