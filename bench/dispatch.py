"""Durable prompts per second against servers that take no time, beside other clients of the same servers.

    python bench/dispatch.py [--prompts 20000] [--rounds 3] [--ratios-only]

From the rename of the drop to ``summary.json``, everything flushed. Beside it in the same run: one process with aiohttp
and 64 requests in flight, one over the official client, wrk; and a prompt's cost in each of our processes. Needs nginx
and, for its row, wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import aiohttp
import ollama
import psutil
import uvloop
from harness import Daemon, cpu_s, finish, nginx, prompt_lines, remote_config, table, wait_for, workplace

IN_FLIGHT = 64


async def bare_aiohttp(ports: list[int], prompts: list[dict[str, str]]) -> float:
    """Prompts per second of one plain loop: parse the answer, keep it in memory, nothing durable."""
    answers: list[dict[str, object]] = []
    urls = cycle([f"http://127.0.0.1:{port}/api/chat" for port in ports])
    work = iter(prompts)

    async def worker(session: aiohttp.ClientSession) -> None:
        for prompt in work:
            body = {"model": "bench", "messages": [{"role": "user", "content": prompt["prompt"]}], "stream": True}
            async with session.post(next(urls), json=body) as response:
                answers.append(json.loads(await response.read()))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        begun_s = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(IN_FLIGHT)))
        return len(answers) / (time.perf_counter() - begun_s)


async def official_client(ports: list[int], prompts: list[dict[str, str]]) -> float:
    """Prompts per second over ollama.AsyncClient, one client per server, kept."""
    clients = [ollama.AsyncClient(host=f"http://127.0.0.1:{port}", trust_env=False) for port in ports]
    turn, work = cycle(clients), iter(prompts)
    done = 0

    async def worker() -> None:
        nonlocal done
        for prompt in work:
            await next(turn).chat(model="bench", messages=[{"role": "user", "content": prompt["prompt"]}])
            done += 1

    begun_s = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - begun_s)


def wrk(port: int, directory: Path) -> float:
    """Requests per second of wrk on one server, or 0 where it is not installed."""
    if shutil.which("wrk") is None:
        return 0.0
    script = directory / "post.lua"
    script.write_text('wrk.method = "POST"; wrk.body = [[{"model":"bench","messages":[]}]]\n')
    command = ["wrk", "-t1", "-c64", "-d2s", "-s", str(script), f"http://127.0.0.1:{port}/api/chat"]
    found = re.search(
        r"Requests/sec:\s+([\d.]+)", subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return float(found[1]) if found else 0.0


class Run(NamedTuple):
    """One job through the daemon; processor time is per prompt, of all workers together."""

    prompts_per_s: float
    main_us: float
    workers_us: float


def through_daemon(directory: Path, ports: list[int], source: Path, count: int, responses: str) -> Run:
    """From the rename of the drop to its summary."""
    directory.mkdir()
    config = remote_config(ports, servers={"remote_slots": 8}, outbox={"response_files": responses})
    with Daemon(directory, config) as daemon:
        daemon.start()
        drop = directory / "drop.jsonl"
        shutil.copy(source, drop)
        os.sync()
        main = daemon.main
        workers = [psutil.Process(server["worker_pid"]) for server in daemon.status()["servers"]]
        main_s, workers_s = cpu_s([main]), cpu_s(workers)
        begun_s = time.perf_counter()
        os.rename(drop, daemon.inbox / "drop.jsonl")
        wait_for(lambda: list(daemon.outbox.glob("drop.*/summary.json")), 300, "the job is done")
        elapsed_s = time.perf_counter() - begun_s
        main_s, workers_s = cpu_s([main]) - main_s, cpu_s(workers) - workers_s
        [summary] = daemon.outbox.glob("drop.*/summary.json")
        document = json.loads(summary.read_bytes())
        if document["succeeded"] != count:
            raise SystemExit(f"only {document['succeeded']} of {count} succeeded")
        return Run(count / elapsed_s, main_s / count * 1e6, workers_s / count * 1e6)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ratios-only", action="store_true", help="judge only what a noisy machine does not change")
    arguments = parser.parse_args()
    count = arguments.prompts
    runs: dict[str, list[float]] = {
        name: [] for name in ("durable", "with_responses", "aiohttp", "main_us", "workers_us")
    }
    with workplace() as directory, nginx(directory, 4) as ports:
        source = directory / "prompts.jsonl"
        prompt_lines(source, count)
        prompts = [json.loads(line) for line in source.read_bytes().splitlines()]
        for number in range(arguments.rounds):
            runs["aiohttp"].append(uvloop.run(bare_aiohttp(ports, prompts)))
            run = through_daemon(directory / f"a{number}", ports, source, count, "never")
            for name, value in zip(("durable", "main_us", "workers_us"), run, strict=True):
                runs[name].append(value)
            run = through_daemon(directory / f"b{number}", ports, source, count, "always")
            runs["with_responses"].append(run.prompts_per_s)
        figures = {name: statistics.median(values) for name, values in runs.items()}
        figures["official_client"] = uvloop.run(official_client(ports, prompts[: count // 10]))
        figures["wrk"] = wrk(ports[0], directory)
    figures["ratio_to_aiohttp"] = statistics.median(
        d / a for d, a in zip(runs["durable"], runs["aiohttp"], strict=True)
    )
    units = {"ratio_to_aiohttp": "", "main_us": " µs a prompt", "workers_us": " µs a prompt"}
    rows = [
        (name, f"{value:,.{2 if 'ratio' in name else 0}f}{units.get(name, '/s')}") for name, value in figures.items()
    ]
    table(f"{count} prompts, 4 servers without latency, median of {arguments.rounds} rounds", rows)
    if arguments.ratios_only:
        return finish("dispatch", figures, {"ratio_to_aiohttp": (">=", 1.2)})
    goals = {"durable": (">=", 10_000.0), "ratio_to_aiohttp": (">=", 1.2), "with_responses": (">=", 4_000.0)}
    return finish("dispatch", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
