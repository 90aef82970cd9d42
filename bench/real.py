"""Prompts per second through the daemon with a real Ollama, beside a bare client that keeps every slot full.

    eval "export $(scripts/real-ollama | tr '\\n' ' ')"; python bench/real.py [--prompts 600]

Two CPU servers × 4 slots, a model that never ends by itself, so that every answer has 64 tokens. The bare client uses
the daemon's own servers, one run before and one after it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time

import aiohttp
import uvloop
from harness import Daemon, finish, table, wait_for, workplace

SLOTS = 4


async def bare(urls: list[str], prompts: list[str], options: dict[str, int]) -> float:
    """Prompts per second of a client that keeps every slot full and does nothing with the answers."""
    work = iter(prompts)

    async def slot(session: aiohttp.ClientSession, url: str) -> None:
        for prompt in work:
            body = {
                "model": "endless",
                "messages": [{"role": "user", "content": prompt}],
                "options": options,
                "keep_alive": -1,
            }
            async with session.post(f"{url}/api/chat", json=body) as response:
                await response.read()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        begun_s = time.perf_counter()
        await asyncio.gather(*(slot(session, url) for url in urls for _ in range(SLOTS)))
        return len(prompts) / (time.perf_counter() - begun_s)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=600)
    arguments = parser.parse_args()
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        raise SystemExit("name a real Ollama first: see scripts/real-ollama")
    config = {
        "model": "endless",
        "max_response_tokens": 64,
        "log_level": "warning",
        "gpus": "none",
        "servers": {"ollama": program, "models_dir": models, "cpu_servers": 2, "slots": SLOTS},
    }
    prompts = [f"Extract name and age: person {i} is {20 + i % 60} years old." for i in range(arguments.prompts)]
    with workplace() as directory, Daemon(directory, config) as daemon:
        daemon.start()

        def job(name: str, asked: list[str]) -> float:
            drop = directory / f"{name}.jsonl"
            drop.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
            begun_s = time.perf_counter()
            os.rename(drop, daemon.inbox / drop.name)
            wait_for(lambda: list(daemon.outbox.glob(f"{name}.*/summary.json")), 300, f"{name} is done", 0.01)
            return len(asked) / (time.perf_counter() - begun_s)

        job("warm", prompts[:40])
        urls = [server["url"] for server in daemon.status()["servers"]]
        options = {"num_ctx": 8192, "num_thread": 1, "num_predict": 64}
        runs = [uvloop.run(bare(urls, prompts, options))]
        through = []
        for number in range(2):
            through.append(job(f"job{number}", prompts))
            runs.append(uvloop.run(bare(urls, prompts, options)))
    ratios = [t / ((runs[i] + runs[i + 1]) / 2) for i, t in enumerate(through)]
    figures = {
        "daemon_prompts_per_s": statistics.median(through),
        "bare_prompts_per_s": statistics.median(runs),
        "ratio": statistics.median(ratios),
    }
    table(f"{arguments.prompts} prompts, real Ollama on the CPU", [(k, f"{v:.3f}") for k, v in figures.items()])
    return finish("real", figures, {"ratio": (">=", 0.95)})


if __name__ == "__main__":
    sys.exit(main())
