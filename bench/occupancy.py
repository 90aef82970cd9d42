"""How much of the servers' slot time is used while anything waits, and how the makespan compares with the best order.

    python bench/occupancy.py [--prompts 2000] [--mean-s 1.0 0.05]

8 servers × 4 slots; service times are log-normal with sigma 1.5. Measured from the servers' side. Busy slot time ÷
(slots × time) counts from the first dispatch until the last request has got a slot. The makespan is compared with an
ideal greedy scheduler on the same service times in the same order.

The servers are those of ``slot_servers.py``, which cost next to nothing. Beside obatchd, on the same servers, a bare
loop over aiohttp in which each slot takes the next prompt; and obatchd with managed stand-ins (``obatchd/simulator``),
whose own processor time is part of what is measured then. Also with one stand-in three times slower, and with one that
dies in the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from harness import Daemon, ask, finish, remote_config, slot_servers, table, wait_for, workplace

from obatchd.simulator.answers import digest
from obatchd.simulator.config import Distribution

SERVERS, SLOTS, SLOW_FACTOR, SIGMA = 8, 4, 3.0, 1.5


def ideal_makespan_s(services_s: list[float], factors: list[float]) -> float:
    """Each request in order goes to the slot that is free first; ``factors`` is one per slot."""
    free = [(0.0, index) for index in range(len(factors))]
    heapq.heapify(free)
    end_s = 0.0
    for service_s in services_s:
        at_s, index = heapq.heappop(free)
        done_s = at_s + service_s * factors[index]
        end_s = max(end_s, done_s)
        heapq.heappush(free, (done_s, index))
    return end_s


async def bare_loop(urls: list[str], prompts: list[str]) -> None:
    """Each slot of each server asks, reads the answer and takes the next prompt."""
    work = iter(prompts)

    async def slot(session: aiohttp.ClientSession, url: str) -> None:
        for prompt in work:
            body = {"model": "bench", "messages": [{"role": "user", "content": prompt}], "stream": True}
            async with session.post(url, json=body) as response:
                json.loads((await response.read()).splitlines()[-1])

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(slot(session, f"{url}/api/chat") for url in urls for _ in range(SLOTS)))


def work_of(mean_s: float, count: int) -> tuple[list[str], list[float]]:
    """Prompts, and the seconds that each takes."""
    drawn = Distribution("lognormal", mean=mean_s, sigma=SIGMA)
    prompts = [f"occupancy {mean_s} prompt {i}" for i in range(count)]
    return prompts, [drawn.draw(digest(prompt)) for prompt in prompts]


def run(directory: Path, mean_s: float, count: int, *, bare: bool) -> dict[str, float]:
    """Figures with servers that cost next to nothing; with ``bare`` also those of the bare loop."""
    directory.mkdir()
    prompts, services_s = work_of(mean_s, count)
    with slot_servers(SERVERS, SLOTS, mean_s, SIGMA) as ports:
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        with Daemon(directory, remote_config(ports, servers={"remote_slots": SLOTS})) as daemon:
            daemon.start()
            answer_all(daemon, "warm", [f"warm {i}" for i in range(SERVERS * SLOTS * 4)])
            answer_all(daemon, "job", prompts)
        figures = measure(recorded(urls), prompts, services_s, "")
        if bare:
            begun_s = time.time()
            uvloop.run(bare_loop(urls, prompts))
            later = [[one for one in server if one["at_s"] > begun_s] for server in recorded(urls)]
            figures |= {f"bare_{name}": value for name, value in measure(later, prompts, services_s, "").items()}
    return figures


def run_managed(directory: Path, mean_s: float, count: int, trouble: str = "") -> dict[str, float]:
    """Figures with managed stand-ins; ``trouble`` is empty, ``slow`` or ``dies``."""
    directory.mkdir()
    prompts, services_s = work_of(mean_s, count)
    config = {
        "model": "tiny",
        "gpus": {"use": f"simulated:{SERVERS}", "poll_s": 5},
        "servers": {"slots": SLOTS, "stagger_s": 0, "backoff_max_s": 1},
        "log_level": "warning",
    }
    service = {"kind": "lognormal", "mean": mean_s, "sigma": SIGMA}
    # Answers in one piece: the stand-ins share two cores with what is measured.
    with Daemon(directory, config, {"service_s": service, "chunk_s": 3600}) as daemon:
        daemon.start()
        answer_all(daemon, "warm", [f"warm {i}" for i in range(SERVERS * SLOTS * 4)])
        urls = [server["url"] for server in daemon.status()["servers"]]
        if trouble == "slow":
            ask(urls[0], "/simulator/faults", [{"kind": "slow", "factor": SLOW_FACTOR}])
        if trouble == "dies":
            ask(urls[0], "/simulator/faults", [{"kind": "crash", "at": count // SERVERS // 2}])
        answer_all(daemon, "job", prompts)
        return measure(recorded(urls), prompts, services_s, trouble)


def answer_all(daemon: Daemon, name: str, prompts: list[str]) -> None:
    """Drop the prompts as one file and wait for its summary."""
    drop = daemon.spool.with_name(f"{name}.jsonl")
    drop.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    os.rename(drop, daemon.inbox / drop.name)
    wait_for(lambda: list(daemon.outbox.glob(f"{name}.*/summary.json")), 900, f"{name} is done", 0.05)
    [summary] = daemon.outbox.glob(f"{name}.*/summary.json")
    if json.loads(summary.read_bytes())["succeeded"] != len(prompts):
        raise SystemExit("not every request succeeded")


def recorded(urls: list[str]) -> list[Any]:
    """The requests that reached a slot, of each server."""
    return [ask(url, "/simulator/requests")["requests"] for url in urls]


def measure(seen: list[Any], prompts: list[str], services_s: list[float], trouble: str) -> dict[str, float]:
    """Occupancy and makespan ratio from the records of the servers."""
    time_of = {digest(prompt): service_s for prompt, service_s in zip(prompts, services_s, strict=True)}
    spans = []
    for index, requests in enumerate(seen):
        factor = SLOW_FACTOR if trouble == "slow" and index == 0 else 1.0
        spans += [(r["at_s"], r["at_s"] + time_of[r["digest"]] * factor) for r in requests if r["digest"] in time_of]
    begun_s = min(start for start, _ in spans)
    empty_s = max(start for start, _ in spans)
    end_s = max(end for _, end in spans)
    busy_s = sum(min(end, empty_s) - start for start, end in spans)
    factors = [SLOW_FACTOR if trouble == "slow" and i < SLOTS else 1.0 for i in range(SERVERS * SLOTS)]
    return {
        "occupancy": busy_s / (SERVERS * SLOTS * (empty_s - begun_s)),
        "makespan_ratio": (end_s - begun_s) / ideal_makespan_s(services_s, factors),
        "makespan_s": end_s - begun_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--mean-s", type=float, nargs="+", default=[1.0, 0.05])
    parser.add_argument("--no-managed", action="store_true", help="leave out the managed stand-ins")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    goals: dict[str, tuple[str, float]] = {}
    with workplace() as directory:
        for mean_s in arguments.mean_s:
            name = f"{mean_s:g}s"
            result = run(directory / name, mean_s, arguments.prompts, bare=mean_s < 1)
            names = ("occupancy", "makespan_ratio", "bare_occupancy", "bare_makespan_ratio")
            figures |= {f"{kind}_{name}": result[kind] for kind in names if kind in result}
            goals[f"occupancy_{name}"] = (">=", 0.99 if mean_s >= 1 else 0.97)
            goals[f"makespan_ratio_{name}"] = ("<=", 1.02)
        managed = [("managed_0.05s", 0.05, ""), ("slow", 0.2, "slow"), ("dies", 0.2, "dies")]
        for name, mean_s, trouble in [] if arguments.no_managed else managed:
            result = run_managed(directory / name, mean_s, arguments.prompts, trouble)
            figures |= {f"occupancy_{name}": result["occupancy"], f"makespan_ratio_{name}": result["makespan_ratio"]}
    rows = [(name, f"{value:.3f}") for name, value in figures.items()]
    table(f"{arguments.prompts} prompts, {SERVERS} servers × {SLOTS} slots, log-normal service times", rows)
    return finish("occupancy", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
