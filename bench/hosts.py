"""What hosts cost: the same servers through the door and local, a network in between, a large fleet with nothing to do.

    python bench/hosts.py [--parts ratios delay idle large] [--rounds 3]

* ``ratios``: 8 hosts × 8 stand-in servers through the door ÷ the same 64 local: prompts per second, the head's
  processor time per prompt, the time to the first token with nothing else to do. Everything runs on this machine.
* ``delay``: 7 hosts × 4 servers × 4 slots, answers of 50 ms and 2 s, 5 ms of network in each direction: how much of the
  slot time is used while anything waits, and the makespan beside that of an ideal order.
* ``idle``: memory and processor time of a head with 28 GPUs on 7 hosts and nothing to do.
* ``large``: 32 hosts × 8 servers, answers of 50 ms: told, not judged; and 7 × 4 with answers that take no time.

Hosts are played by one thread of this program that speaks the protocol (``hosts_played.py``), but for ``ratios``, which
has real ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil
import uvloop
from harness import cpu_s, finish, prompt_lines, table, wait_for, workplace
from hosts_played import Daemon, Head, make_fleet, of_seconds, played, spans
from occupancy import ideal_makespan_s

from obatchd.client.runtime import HTTP_SOCKET, read_record

SLOTS = 4
DELAY_S = 0.005
PARTS = ("ratios", "delay", "idle", "large")
_IDLE_S = 30.0
_QUESTIONS = 30
CONFIG: dict[str, Any] = {
    "log_level": "info", "servers": {"slots": SLOTS, "stagger_s": 0.2}, "outbox": {"response_files": "never"},
}  # fmt: skip
_OF_HOSTS: dict[str, Any] = {"gpus": {"poll_s": 5}, "log_level": "warning"}
_STAND_INS = {"service_s": {"kind": "fixed", "value": 0.05}, "chunk_s": 3600, "load_s": 0.05}
GOALS: dict[str, tuple[str, float]] = {
    "prompts_ratio": (">=", 0.8),
    "cpu_ratio": ("<=", 1.5),
    "first_token_more_ms": ("<=", 20.0),
    "occupancy_50ms": (">=", 0.98),
    "makespan_50ms": ("<=", 1.02),
    "occupancy_2s": (">=", 0.98),
    "makespan_2s": ("<=", 1.02),
    "head_mib_28_gpus": ("<=", 130 * 1e6 / 2**20),
    "idle_percent_28_gpus": ("<=", 2.0),
}


@contextlib.contextmanager
def head(directory: Path) -> Iterator[Head]:
    """A head that answers, and waits for hosts; until the end of the block."""
    with _running(Head(directory, CONFIG)) as found:
        assert isinstance(found, Head)
        yield found


@contextlib.contextmanager
def _running(daemon: Daemon) -> Iterator[Daemon]:
    try:
        yield daemon.start()
    finally:
        daemon.clean()


def main_process(daemon: Daemon) -> psutil.Process:
    return psutil.Process(daemon.pid)


def answer_all(daemon: Daemon, name: str, count: int) -> tuple[float, float]:
    """Seconds from the drop to its summary, and of the main process's processor time."""
    drop = daemon.root / f"{name}.jsonl"
    prompt_lines(drop, count)
    main = [main_process(daemon)]
    before_s, begun_s = cpu_s(main), time.perf_counter()
    os.rename(drop, daemon.inbox / drop.name)
    wait_for(lambda: list(daemon.outbox.glob(f"{name}.*/summary.json")), 900, f"{name} is done", 0.02)
    took_s, used_s = time.perf_counter() - begun_s, cpu_s(main) - before_s
    [summary] = daemon.outbox.glob(f"{name}.*/summary.json")
    if json.loads(summary.read_bytes())["succeeded"] != count:
        raise SystemExit("not every request succeeded")
    return took_s, used_s


async def _first_tokens_s(daemon: Daemon) -> list[float]:
    """From each of some questions to the first piece of its answer, one question after the other."""
    path = read_record(daemon.spool).runtime_dir / HTTP_SOCKET
    found: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client:
        for number in range(_QUESTIONS):
            body = {"model": "tiny", "messages": [{"role": "user", "content": f"question {number}"}], "stream": True}
            begun_s = time.perf_counter()
            async with client.post("http://localhost/api/chat", json=body) as response:
                if not (await response.content.readline()).startswith(b'{"model"'):
                    raise SystemExit("a question was not answered")
                found.append(time.perf_counter() - begun_s)
                await response.read()
    return found


# Parts.


def delayed(directory: Path, seconds: float, count: int) -> dict[str, float]:
    """Slot time that is used, and the makespan, over 7 hosts × 4 servers with a network in between."""
    service_s = of_seconds(seconds)
    with head(directory) as daemon, played(daemon, 7, 4, SLOTS, service_s, DELAY_S) as fleet:
        answer_all(daemon, "warm", 28 * SLOTS * 2)
        spans(fleet)
        answer_all(daemon, "job", count)
        found = [span for server in spans(fleet) for span in server]
    prompts = [f"What is the meaning of line {i} in this file of prompts?" for i in range(count)]
    begun_s, end_s = min(begin for begin, _ in found), max(end for _, end in found)
    empty_s = max(begin for begin, _ in found)
    busy_s = sum(min(end, empty_s) - begin for begin, end in found)
    slots = len(fleet.servers) * SLOTS
    ideal_s = ideal_makespan_s([service_s(prompt) for prompt in prompts], [1.0] * slots)
    return {"occupancy": busy_s / (slots * (empty_s - begun_s)), "makespan": (end_s - begun_s) / ideal_s}


def idle(directory: Path) -> dict[str, float]:
    """Memory of everything that is the head's, and its share of a core, with 28 GPUs and nothing to do."""
    with head(directory) as daemon, played(daemon, 7, 4, SLOTS, of_seconds(0.05)):
        answer_all(daemon, "warm", 1000)
        time.sleep(5)
        main = main_process(daemon)
        before_s, begun_s = cpu_s([main, *main.children(recursive=True)]), time.perf_counter()
        time.sleep(_IDLE_S)
        used_s = cpu_s([main, *main.children(recursive=True)]) - before_s
        percent = 100 * used_s / (time.perf_counter() - begun_s)
        return {"head_mib_28_gpus": main.memory_info().rss / 2**20, "idle_percent_28_gpus": percent}


def large(directory: Path) -> dict[str, float]:
    """Told, not judged."""
    figures: dict[str, float] = {}
    for name, hosts, gpus, seconds, count in (("32x8", 32, 8, 0.05, 60_000), ("7x4_no_time", 7, 4, 0.0, 30_000)):
        with head(directory / name) as daemon, played(daemon, hosts, gpus, SLOTS, of_seconds(seconds)):
            answer_all(daemon, "warm", hosts * gpus * SLOTS * 2)
            took_s, used_s = answer_all(daemon, "job", count)
            figures[f"{name}_prompts_per_s"] = count / took_s
            figures[f"{name}_head_us_per_prompt"] = used_s / count * 1e6
            figures[f"{name}_head_mib"] = main_process(daemon).memory_info().rss / 2**20
    return figures


def ratios(directory: Path, rounds: int, hosts: int, gpus: int, count: int) -> dict[str, float]:
    """Real hosts with stand-in servers, beside one daemon with as many."""
    figures: dict[str, list[float]] = {"prompts": [], "cpu": [], "first": []}
    for number in range(rounds):
        with _local(directory / f"local{number}", hosts * gpus) as daemon:
            local = _measured(daemon, count)
        (through := directory / f"door{number}").mkdir()
        with make_fleet(through, hosts, gpus=gpus, config=CONFIG, simulator=_STAND_INS, of_hosts=_OF_HOSTS) as fleet:
            door = _measured(fleet.head, count)
        figures["prompts"].append(local.took_s / door.took_s)
        figures["cpu"].append(door.used_s / local.used_s)
        figures["first"].append((door.first_s - local.first_s) * 1000)
    return {
        "prompts_ratio": statistics.median(figures["prompts"]),
        "cpu_ratio": statistics.median(figures["cpu"]),
        "first_token_more_ms": statistics.median(figures["first"]),
    }


class Measured(NamedTuple):
    """One way to the same servers."""

    took_s: float
    used_s: float  # by the main process
    first_s: float


def _measured(daemon: Daemon, count: int) -> Measured:
    answer_all(daemon, "warm", max(1000, count // 10))
    first_s = statistics.median(uvloop.run(_first_tokens_s(daemon)))
    return Measured(*answer_all(daemon, "job", count), first_s)


@contextlib.contextmanager
def _local(directory: Path, servers: int) -> Iterator[Daemon]:
    gpus = {"use": f"simulated:{servers}", **_OF_HOSTS["gpus"]}
    with _running(Daemon(directory, {**CONFIG, "gpus": gpus}, _STAND_INS)) as daemon:
        wait_for(lambda: all(server["state"] == "ready" for server in daemon.servers()), 300, "all are ready", 0.2)
        yield daemon


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["ratios", "delay", "idle", "large"])
    parser.add_argument("--rounds", type=int, default=3, help="of ratios")
    parser.add_argument("--hosts", type=int, default=8, help="of ratios")
    parser.add_argument("--gpus", type=int, default=8, help="of each host of ratios")
    parser.add_argument("--prompts", type=int, default=6000, help="of ratios")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with workplace() as directory:
        if "ratios" in arguments.parts:
            figures |= ratios(directory, arguments.rounds, arguments.hosts, arguments.gpus, arguments.prompts)
        if "delay" in arguments.parts:
            for name, seconds, count in (("50ms", 0.05, 20_000), ("2s", 2.0, 1200)):
                found = delayed(directory / name, seconds, count)
                figures |= {f"{figure}_{name}": value for figure, value in found.items()}
        if "idle" in arguments.parts:
            figures |= idle(directory / "idle")
        if "large" in arguments.parts:
            figures |= large(directory)
    table("hosts", [(name, f"{value:.3f}") for name, value in figures.items()])
    return finish("hosts", figures, {name: goal for name, goal in GOALS.items() if name in figures})


if __name__ == "__main__":
    sys.exit(main())
