"""Calls at once through the API over HTTP, for ``front.py``; as a program of its own, the bare proxy beside it.

python bench/front_calls.py PORT SERVER_PORT…
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import interactive
import psutil
import uvloop
from aiohttp import web
from harness import Daemon, cpu_s, free_port, nginx, remote_config, wait_for

from obatchd import log
from obatchd.client.runtime import HTTP_SOCKET, read_record
from obatchd.daemon import process

CHAT = "/v1/chat/completions"
_CONNECTIONS = 16
_ROUND_S = 5.0


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "bench", "messages": [{"role": "user", "content": text}], **more}


# Calls that cost their server nothing.


async def _caller(port: int, key: str, number: int, until_s: float) -> int:
    """Ask one question after the other over one connection, with as little work as that takes; how many."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    done = 0
    while time.perf_counter() < until_s:
        body = json.dumps(asked(f"What is the meaning of line {done} in file {number}?")).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        told = await reader.readuntil(b"\r\n\r\n")
        length = int(told.lower().partition(b"content-length:")[2].partition(b"\r")[0])
        content = await reader.readexactly(length)
        if b" 200 " not in told.partition(b"\r")[0] or b"forty-two" not in content:
            raise SystemExit(f"a call failed: {told!r} {content!r}")
        done += 1
    writer.close()
    return done


async def _calls_per_s(port: int, key: str) -> float:
    begun_s = time.perf_counter()
    done = await asyncio.gather(*(_caller(port, key, n, begun_s + _ROUND_S) for n in range(_CONNECTIONS)))
    return sum(done) / (time.perf_counter() - begun_s)


@contextlib.contextmanager
def bare_proxy(ports: list[int]) -> Iterator[tuple[int, psutil.Process]]:
    """A proxy in a process of its own, which passes calls to the servers in turn; its port, and the process."""
    port = free_port()
    running = subprocess.Popen([sys.executable, __file__, str(port), *map(str, ports)])
    try:
        wait_for(lambda: _answers(port), 20, "the proxy answers", 0.05)
        yield port, psutil.Process(running.pid)
    finally:
        running.terminate()
        running.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        asyncio.run(asyncio.open_connection("127.0.0.1", port))
        return True
    return False


class Way(NamedTuple):
    """Where calls go, and the processes that work on them."""

    port: int
    key: str
    processes: list[list[psutil.Process]]


class Round(NamedTuple):
    """Calls of one way; processor time is per call, of each list of processes."""

    calls_per_s: float
    times_us: list[float]


def _round(way: Way) -> Round:
    before_s, begun_s = [cpu_s(each) for each in way.processes], time.perf_counter()
    calls_per_s = uvloop.run(_calls_per_s(way.port, way.key))
    count = calls_per_s * (time.perf_counter() - begun_s)
    used_s = [cpu_s(each) - before for each, before in zip(way.processes, before_s, strict=True)]
    return Round(calls_per_s, [1e6 * each / count for each in used_s])


def calls(directory: Path, rounds: int) -> dict[str, float]:
    """Calls per second through the daemon and through the proxy, in turn, and what each takes of the processors."""
    directory.mkdir()
    with nginx(directory, 4) as ports, bare_proxy(ports) as (proxy, process):
        port = free_port()
        http_table = {"listen": f"127.0.0.1:{port}"}
        with Daemon(directory, remote_config(ports, http=http_table, servers={"remote_slots": 8})) as daemon:
            daemon.start()
            key = daemon.client.post("keys", body={})["key"]
            workers = [psutil.Process(server["worker_pid"]) for server in daemon.status()["servers"]]
            ways = Way(port, key, [[daemon.main], workers]), Way(proxy, key, [[process]])
            found = [[_round(way) for way in ways] for _ in range(rounds + 1)]
    own, bare = zip(*found[1:], strict=True)  # models and code are loaded in the first round
    ratios = [a.calls_per_s / b.calls_per_s for a, b in zip(own, bare, strict=True)]
    main_us, workers_us = (statistics.median(times) for times in zip(*(a.times_us for a in own), strict=True))
    return {
        "calls_per_s": statistics.median(a.calls_per_s for a in own),
        "proxy_calls_per_s": statistics.median(b.calls_per_s for b in bare),
        "calls_to_proxy": statistics.median(ratios),
        "call_main_us": main_us,
        "call_workers_us": workers_us,
        "call_proxy_us": statistics.median(b.times_us[0] for b in bare),
    }


def serve_proxy(port: int, ports: list[int]) -> None:
    """The bare proxy."""
    turns = itertools.cycle(ports)

    async def passed(request: web.Request) -> web.Response:
        body = await request.read()
        async with session.post(f"http://127.0.0.1:{next(turns)}/api/chat", data=body) as answer:
            return web.Response(body=await answer.read(), content_type="application/json")

    async def run() -> None:
        nonlocal session
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            app = web.Application()
            app.router.add_post(CHAT, passed)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await asyncio.Event().wait()

    session: aiohttp.ClientSession
    uvloop.run(run())


# The first token.


async def _first_s(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> float:
    """Seconds until the first text of a stream has come; the rest of it is read, too."""
    first_s, begun_s = 0.0, time.perf_counter()
    async with session.post(url, json=body) as answer:
        if answer.status != 200:
            raise SystemExit(f"{url}: {await answer.text()}")
        async for line in answer.content:
            told = json.loads(line.removeprefix(b"data: ")) if line.startswith((b"{", b"data: {")) else {}
            if "error" in told:
                raise SystemExit(f"{url}: {told}")
            said = told.get("message") or next(iter(told.get("choices", ())), {}).get("delta", {})
            if said.get("content") and not first_s:
                first_s = time.perf_counter() - begun_s
    return first_s


async def _first_tokens(directory: Path, count: int) -> dict[str, float]:
    directory.mkdir()
    direct, door = [], []
    async with interactive.daemon(directory, 0) as (_, inbox, urls):
        connector = aiohttp.UnixConnector(_socket(inbox))
        async with aiohttp.ClientSession(connector=connector) as ours, aiohttp.ClientSession() as theirs:
            for number in range(count + 5):
                body = asked(f"people {number}") | {"model": "tiny", "stream": True}
                own = {**body, "options": {"num_predict": 5, "num_ctx": 8192}}
                direct.append(await _first_s(theirs, f"{urls[0]}/api/chat", own))
                door.append(await _first_s(ours, f"http://localhost{CHAT}", {**body, "max_tokens": 5}))
    later_s = [own - bare for own, bare in zip(door[5:], direct[5:], strict=True)]
    return {
        "first_token_direct_ms": 1000 * statistics.median(direct[5:]),
        "first_token_later_ms": 1000 * statistics.median(later_s),
    }


def _socket(inbox: Path) -> str:
    return str(read_record(inbox.parent).runtime_dir / HTTP_SOCKET)


# Beside a batch.


async def _people(inbox: Path, seconds: float) -> list[float]:
    """A question each second, without waiting for the answer before; seconds to each first token."""
    tasks = []
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(_socket(inbox))) as session:
        for number in range(int(seconds)):
            more = {"model": "tiny", "stream": True, "max_tokens": interactive.PEOPLE_TOKENS}
            body = asked(f"people {number}") | more
            tasks.append(asyncio.create_task(_first_s(session, f"http://localhost{CHAT}", body)))
            await asyncio.sleep(1.0)
        return list(await asyncio.gather(*tasks))


async def _beside_a_batch(directory: Path, answer_s: float, windows: int) -> dict[str, float]:
    directory.mkdir()
    async with interactive.daemon(directory, "auto") as (_, inbox, urls):
        await _people(inbox, 2)  # the model is loaded then
        idle_s = interactive.p95(await _people(inbox, 20))
        interactive.drop(inbox, answer_s, 16 * (windows + 4) * 2)
        await interactive.begun(urls)
        await _people(inbox, 2 * answer_s)  # until the batch's answers have spread
        return {"p95_idle_s": idle_s, "p95_s": interactive.p95(await _people(inbox, windows * answer_s))}


def people(directory: Path, answer_s: float, windows: int, count: int) -> dict[str, float]:
    """How soon answers begin: beside nothing, against a server itself, and beside a batch that has all slots."""
    simulator = {"tokens_per_s": interactive.TOKENS_PER_S, "answer": {"tokens": 100_000}, "chunk_s": 0.05}
    os.environ["OBATCHD_SIMULATOR"] = json.dumps(simulator)
    process.prepare()
    log.configure("warning")
    figures: dict[str, float] = uvloop.run(_beside_a_batch(directory / "batch", answer_s, windows))
    return figures | uvloop.run(_first_tokens(directory / "first", count))


if __name__ == "__main__":
    serve_proxy(int(sys.argv[1]), [int(port) for port in sys.argv[2:]])
