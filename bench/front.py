"""The API over HTTP: batches beside the inbox, calls beside a bare proxy, people beside a batch.

    python bench/front.py [--only batches|calls|people] [--batches 20] [--lines 1000] [--rounds 3] [--answer-s 20]

**batches**, lines per second. The files go up over four connections, each is made a batch, and its status is asked for
until it is over; the inbox gets the same files by rename. Servers have no latency. From the first byte to the last
``summary.json``; both in turn, in one daemon after the other. Needs nginx.

**calls**, chats per second on 16 connections, each answered at once, beside a proxy of aiohttp that only passes bytes
on, to the same servers without latency. **people**, as ``interactive.py``: a stream each second through this door,
alone and beside a batch that has all slots; and one stream after the other, through the door and from a server itself.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import front_calls
from harness import Daemon, finish, free_port, nginx, remote_config, table, wait_for, workplace

_CONNECTIONS = 4
_POLL_S = 0.05
_BOUNDARY = "b0undary"


def batch_file(number: int, lines: int) -> bytes:
    """A batch file of so many lines."""
    found = []
    for line in range(lines):
        said = [{"role": "user", "content": f"What is the meaning of line {line} in file {number}?"}]
        body = {"model": "bench", "messages": said}
        found.append({"custom_id": f"r{line}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    return b"".join(json.dumps(one).encode() + b"\n" for one in found)


def by_api(daemon: Daemon, port: int, files: list[bytes]) -> float:
    """Seconds until every file is a completed batch."""
    key = daemon.client.post("keys", body={})["key"]

    def one(content: bytes) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:

            def call(method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
                connection.request(method, path, body, {"Authorization": f"Bearer {key}", "Content-Type": kind})
                answer = connection.getresponse()
                document = json.loads(answer.read())
                if answer.status != 200:
                    raise SystemExit(f"{path}: {document}")
                return document

            parts = (("purpose", b"batch"), ('file"; filename="r.jsonl', content))
            body = b"".join(
                f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
                for name, value in parts
            )
            body += f"--{_BOUNDARY}--\r\n".encode()
            file = call("POST", "/v1/files", body, f"multipart/form-data; boundary={_BOUNDARY}")
            asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            batch = call("POST", "/v1/batches", json.dumps(asked).encode())
            while call("GET", f"/v1/batches/{batch['id']}")["status"] != "completed":
                time.sleep(_POLL_S)

    begun_s = time.perf_counter()
    with ThreadPoolExecutor(_CONNECTIONS) as threads:
        for done in [threads.submit(one, content) for content in files]:
            done.result()
    return time.perf_counter() - begun_s


def by_inbox(daemon: Daemon, _port: int, files: list[bytes]) -> float:
    """Seconds until every file is a job that is done; as many are on their way as the API has connections."""
    staging = daemon.spool.parent / "staging"
    staging.mkdir()

    def one(numbered: tuple[int, bytes]) -> None:
        number, content = numbered
        path = staging / f"d{number:04d}.jsonl"
        path.write_bytes(content)
        os.rename(path, daemon.inbox / path.name)
        wait_for(lambda: list(daemon.outbox.glob(f"d{number:04d}.*/summary.json")), 120, "a job is done", _POLL_S)

    begun_s = time.perf_counter()
    with ThreadPoolExecutor(_CONNECTIONS) as threads:
        for done in [threads.submit(one, numbered) for numbered in enumerate(files)]:
            done.result()
    return time.perf_counter() - begun_s


def lines_per_s(directory: Path, ports: list[int], files: list[bytes], lines: int, way: Callable[..., float]) -> float:
    directory.mkdir()
    port = free_port()
    http_table = {"listen": f"127.0.0.1:{port}"}
    config = remote_config(ports, outbox={"response_files": "never"}, http=http_table, servers={"remote_slots": 8})
    with Daemon(directory, config) as daemon:
        daemon.start()
        return len(files) * lines / way(daemon, port, files)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["batches", "calls", "people"])
    parser.add_argument("--answer-s", type=float, default=20.0, help="of the batch beside people")
    parser.add_argument("--windows", type=int, default=4, help="how long to measure people, in answers of the batch")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    goals: dict[str, tuple[str, float]] = {}
    with workplace() as directory:
        if arguments.only in (None, "batches"):
            figures |= batches(directory, arguments)
            goals["api_to_inbox"] = (">=", 0.9)
        if arguments.only in (None, "calls"):
            figures |= front_calls.calls(directory / "calls", arguments.rounds)
            goals["calls_to_proxy"] = (">=", 0.5)
        if arguments.only in (None, "people"):
            figures |= front_calls.people(directory, arguments.answer_s, arguments.windows, 50)
            goals |= {
                "p95_s": ("<=", 1.2 * figures["p95_idle_s"] + 1 / front_calls.interactive.TOKENS_PER_S),
                "first_token_later_ms": ("<=", 5),
            }
    title = f"{arguments.batches} batch files of {arguments.lines} lines, {arguments.rounds} rounds"
    table(title, [(name, f"{value:.3f}") for name, value in figures.items()])
    return finish("front", figures, goals)


def batches(directory: Path, arguments: argparse.Namespace) -> dict[str, float]:
    files = [batch_file(number, arguments.lines) for number in range(arguments.batches)]
    found: dict[str, list[float]] = {"api": [], "inbox": []}
    with nginx(directory, 4) as ports:
        for number in range(arguments.rounds):
            for name, way in (("api", by_api), ("inbox", by_inbox)):
                place = directory / f"{name}{number}"
                found[name].append(lines_per_s(place, ports, files, arguments.lines, way))
    ratios = [api / inbox for api, inbox in zip(found["api"], found["inbox"], strict=True)]
    figures = {f"{name}_lines_per_s": statistics.median(values) for name, values in found.items()}
    return figures | {"api_to_inbox": statistics.median(ratios)}


if __name__ == "__main__":
    sys.exit(main())
