"""The cost of pages that are open: what a daemon with five of them uses, and with none, in turn.

    python bench/page.py [--pages 5] [--gpus 8] [--jobs 20] [--seconds 20] [--rounds 2] [--apart]

GPUs and servers are simulated. The pages ask as those of ``obatchctl web`` do: every two seconds, on a connection and
with a session of their own, by ETag; each shows ``--jobs`` jobs, of which the spool holds so many. With ``--apart`` no
two ask for the same document, as pages of several users do. Measured is the processor time of main, forkserver,
workers, probe and response writer, as a share of one core: with nothing to do, and while every slot answers. Neither
the servers, which are stand-ins, nor this program are counted.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness import Daemon, cpu_s, finish, free_port, prompt_lines, table, wait_for, workplace
from idle import ours

EVERY_S = 2.0
GOAL_PERCENT = 3.0
_HEADERS = {
    "Accept": "application/json", "Accept-Encoding": "gzip, deflate, br, zstd", "Accept-Language": "en-US",
    "Cache-Control": "no-cache", "Pragma": "no-cache", "Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "same-origin", "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
}  # fmt: skip


class Page:
    """One browser's page, signed in."""

    def __init__(self, daemon: Daemon, port: int, jobs: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._path, self._tag = f"/obatchd/v1/page?jobs={jobs}", ""
        self.seen: Counter[int] = Counter()  # answers, by status
        self.size_bytes = 0  # of the latest document, as it was sent
        code = daemon.client.post("web/codes")["code"]
        sent = {"Content-Type": "application/json"}
        self._connection.request("POST", "/page/session", json.dumps({"code": code}), sent)
        self._token = json.load(self._connection.getresponse())["token"]

    def poll(self) -> dict[str, Any] | None:
        """The document; None: it is the one of before."""
        headers = {**_HEADERS, "Authorization": f"Bearer {self._token}"}
        if self._tag:
            headers["If-None-Match"] = self._tag
        self._connection.request("GET", self._path, headers=headers)
        answer = self._connection.getresponse()
        body = answer.read()
        self.seen[answer.status] += 1
        if answer.status != 200:
            return None
        self._tag, self.size_bytes = answer.headers["ETag"], len(body)
        document: dict[str, Any] = json.loads(
            gzip.decompress(body) if answer.headers["Content-Encoding"] == "gzip" else body
        )
        return document


@contextmanager
def open_pages(pages: list[Page]) -> Iterator[None]:
    """They ask, one after another within two seconds, as people have opened them."""
    closed = threading.Event()

    def asks(page: Page, offset_s: float) -> None:
        gone = closed.wait(offset_s)
        while not gone:
            page.poll()
            gone = closed.wait(EVERY_S)

    threads = [
        threading.Thread(target=asks, args=(page, number * EVERY_S / len(pages))) for number, page in enumerate(pages)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        closed.set()
        for thread in threads:
            thread.join()


def percent(daemon: Daemon, seconds: float) -> float:
    """Of a core, in so many seconds."""
    processes = ours(daemon.main)
    before_s, begun_s = cpu_s(processes), time.perf_counter()
    time.sleep(seconds)
    return 100 * (cpu_s(processes) - before_s) / (time.perf_counter() - begun_s)


def in_turn(daemon: Daemon, pages: list[Page], seconds: float, rounds: int) -> tuple[float, float]:
    """Percent of a core without and with the pages, the medians of so many rounds."""
    without, with_pages = [], []
    for _ in range(rounds):
        without.append(percent(daemon, seconds))
        with open_pages(pages):
            with_pages.append(percent(daemon, seconds))
    return statistics.median(without), statistics.median(with_pages)


def done(daemon: Daemon, most: int) -> int:
    """How many of the latest jobs are over."""
    return sum(job["state"] == "done" for job in daemon.client.get(f"jobs?limit={most}")["jobs"])


def busy(daemon: Daemon) -> int:
    """How many slots answer."""
    return sum(server["in_flight"] for server in daemon.status()["servers"])


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (("pages", 5), ("gpus", 8), ("jobs", 20), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--apart", action="store_true")
    given = parser.parse_args()
    port = free_port()
    config = {
        "model": "tiny", "log_level": "warning", "gpus": {"use": f"simulated:{given.gpus}"},
        "http": {"listen": f"127.0.0.1:{port}"}, "servers": {"slots": 4, "stagger_s": 0, "tune": False},
    }  # fmt: skip
    simulator = {"tokens_per_s": 40.0, "answer": {"tokens": 100}, "load_s": 0.1}
    with workplace() as directory, Daemon(directory, config, simulator) as daemon:
        daemon.start()
        for number in range(given.jobs):
            prompt_lines(directory / "part", 1)
            (directory / "part").rename(daemon.inbox / f"job-{number:04d}.jsonl")
        wait_for(lambda: done(daemon, given.jobs) == given.jobs, 600, "every job is done", 0.5)
        wait_for(lambda: percent(daemon, 2) < 2, 120, "what comes after a start and the jobs is over")
        pages = [Page(daemon, port, given.jobs - number * given.apart) for number in range(given.pages)]
        page = pages[0]
        found = page.poll()
        assert found is not None and len(found["jobs"]) == given.jobs
        idle = in_turn(daemon, pages, given.seconds, given.rounds)
        of_idle, size_idle = sum((one.seen for one in pages), Counter[int]()), page.size_bytes
        prompt_lines(directory / "part", 200_000)
        (directory / "part").rename(daemon.inbox / "long.jsonl")
        wait_for(lambda: busy(daemon) == 4 * given.gpus, 60, "every slot answers", 0.1)
        time.sleep(5)
        at_work = in_turn(daemon, pages, given.seconds, given.rounds)
        of_work = sum((one.seen for one in pages), Counter[int]()) - of_idle
    figures = {
        "idle_percent": idle[0], "idle_with_pages_percent": idle[1], "work_percent": at_work[0],
        "work_with_pages_percent": at_work[1], "pages_at_work_percent": at_work[1] - at_work[0],
        "document_bytes": page.size_bytes,
    }  # fmt: skip
    rows = [(name, f"{value:.2f}" if value < 1000 else f"{value:,.0f}") for name, value in figures.items()]
    rows += [("answers with nothing to do", f"{dict(of_idle)}, {size_idle:,} bytes"), ("at work", f"{dict(of_work)}")]
    table(f"{given.pages} pages, {given.gpus} GPUs, {given.jobs} jobs", rows)
    goals = {"idle_with_pages_percent": ("<=", GOAL_PERCENT), "pages_at_work_percent": ("<=", GOAL_PERCENT)}
    return finish("page", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
