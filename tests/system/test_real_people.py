"""People beside a batch, in a whole daemon with a real Ollama on the CPU: answers in pieces, closed connections."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from daemon_support import Job, jsonl, prompts
from here_support import Here, daemon_here

from obatchd.dispatch.interactive.lease import Ended, Lease, Question

pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(180)]


@pytest.fixture
def real() -> dict[str, Any]:
    """Settings of a daemon with one real server of two slots."""
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    servers = {"ollama": program, "models_dir": models, "cpu_servers": 1, "slots": 2}
    return {"model": "endless", "gpus": {"use": "none"}, "servers": servers}


def ask(here: Here, **fields: Any) -> Lease:
    return here.desk.ask(Question(json.dumps(fields).encode()), 4242)


async def whole(lease: Lease) -> tuple[list[str], Ended]:
    async with asyncio.timeout(90):
        return [delta.text async for delta in lease], await lease.result()


async def test_an_answer_comes_in_pieces_beside_a_batch(real: dict[str, Any], tmp_path: Path) -> None:
    asked = prompts(30, max_response_tokens=100)
    async with daemon_here(tmp_path, **real) as here:
        here.drop("batch.jsonl", jsonl(asked))
        texts, ended = await whole(ask(here, prompt="Who are you?", max_response_tokens=500))
        record = msgspec.json.decode(ended.record)
        assert ended.succeeded and "".join(texts) == record["response"] and len(texts) > 2
        assert record["response_tokens"] == 500
        async with asyncio.timeout(90):
            while not (found := here.outbox("batch")):
                await asyncio.sleep(0.05)
    results = Job(found[0]).results
    assert sorted(record["id"] for record in results) == sorted(request["id"] for request in asked)


async def test_closing_one_ends_it_in_ollama_and_frees_the_slot(real: dict[str, Any], tmp_path: Path) -> None:
    """Ollama itself loses the slot for good when the connection ends just while it hands over a token: one of 77 on
    0.24, one of 73 on 0.33. Then the watchdog finds that no token comes any more, and restarts the server.
    """
    real["servers"]["slots"] = 1
    real |= {"dispatch": {"stall_s": 5}, "watchdog": {"probe_s": 5}}
    async with daemon_here(tmp_path, **real) as here:
        long = ask(here, prompt="Tell me everything.", max_response_tokens=100_000)
        async with asyncio.timeout(60):
            await anext(long)
        begun_s = time.monotonic()
        short = ask(here, prompt="And you?", max_response_tokens=5)
        long.close()
        async with asyncio.timeout(60):
            await anext(short)
        waited_s = time.monotonic() - begun_s
        [server] = here.host.fleet.servers.values()
        assert waited_s < 1.0 or server.restarts == 1
        assert (await whole(short))[1].succeeded
