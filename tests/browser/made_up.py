"""A stand-in for the daemon that serves the page's real files and made-up documents: as many GPUs and jobs as wanted.

Documents are of the daemon's own types, so that they have its shapes. It is for what a daemon on this machine cannot
show: 28 GPUs, 1,000 jobs, a silence at the right moment. Everything else is tried with a real daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from obatchd.documents.gpus import GpuEntry, GpuEventEntry, Gpus, HostProbe, KernelLogState
from obatchd.documents.history import Column, GpuColumns, GpuHistory, HostWork, ServerWorked, WorkHistory
from obatchd.documents.jobs import JobDocument
from obatchd.documents.status import (
    DiskState,
    HostBrief,
    InboxState,
    LoadedModel,
    Overview,
    ProbeState,
    QueueCounts,
    ServerEntry,
    ServerGpu,
    Status,
)  # fmt: skip
from obatchd.front.page.files import PageFiles
from obatchd.front.page.routes import _POLICY
from obatchd.times import instant

NOW_S = 1_795_953_600  # 2026-11-29 12:00 UTC
HISTORIES = ("/obatchd/v1/gpu-history", "/obatchd/v1/work-history")
CODE, TOKEN = "c" * 43, "obs_made_up"
GIB = 1024**3


def gpu(index: int, look: int) -> GpuEntry:
    """One card; three of them have trouble."""
    health, reason, action = "ok", "", ""
    if index == 5:
        health, reason, action = "quarantine", "XID 95: uncontained memory error", "Reset it. Have the card replaced."
    elif index in (11, 19):
        health, reason, action = "warn", "84 °C, above 82 °C for 60 s", "Check air flow, fans and dust."
    busy = 0 if index == 5 else 88 + (index * 7 + look) % 12
    return GpuEntry(
        uuid=f"GPU-{index:08d}", index=index, name="NVIDIA H100 80GB HBM3", serial=f"16500{index:05d}", slot=f"{index}",
        health=health, reason=reason, action=action, quarantine=None, lent_until=None, servers=[f"gpu{index}"],
        shared_with="", utilisation_percent=busy, memory_used_bytes=(40 + (index * 3) % 35) * GIB,
        memory_total_bytes=80 * GIB, temp_c=84 if index in (11, 19) else 58 + (index * 5 + look) % 14,
        power_w=90.0 + 5.9 * busy, power_limit_w=700.0, clock_mhz=1755, slowed=index == 19,
    )  # fmt: skip


def server(card: GpuEntry, look: int) -> ServerEntry:
    index = card.index or 0
    out = card.health == "quarantine"
    brief = ServerGpu(card.uuid, index, card.name)
    loaded = None if out else LoadedModel(("llama3.3:70b", "qwen2.5:32b-instruct-q8_0")[index % 2], 8192)
    return ServerEntry(
        id=f"gpu{index}", kind="managed", state="quarantined" if out else "ready", reason="answers",
        url=f"http://127.0.0.1:{20000 + index}", gpu=brief, gpus=[brief], loaded=loaded, loading=None,
        in_flight=0 if out else 15 - (look + index) % 3, offered=16, slots=16,
        tokens_per_s=0.0 if out else 610.0 + (index * 37 + look * 11) % 90, requests_done=40_000 + look,
        restarts=int(index == 7), watchdog={}, pid=1000 + index, worker_pid=2000 + index,
    )  # fmt: skip


def job(number: int, look: int) -> JobDocument:
    """Twenty are in work, and change with every look."""
    at_work = number < 20
    requests = 1000 + 137 * number % 9000
    finished = min(requests, 300 + 40 * look + number) if at_work else requests
    failed = finished // 60 if number % 7 == 0 else 0
    return JobDocument(
        job=f"20261129-{number // 60 % 24:02d}{number % 60:02d}00-{number:04d}",
        name=f"interviews-{number:04d}.jsonl", owner=1000 + number % 5, state="running" if at_work else "done",
        model="llama3.3:70b", priority="normal" if number % 9 else "high", accepted_at="2026-11-29T05:00:00Z",
        finished_at=None if at_work else "2026-11-29T05:40:00Z", notes=[], retry_of=None, sample_of=None,
        paused=number == 3, requests=requests, indexed=requests, succeeded=finished - failed, failed=failed,
        cancelled=0, expired=0, in_flight=8 if at_work else 0, requests_per_s=3.5 if at_work else None,
        tokens_per_s=700.0 if at_work else None, eta_s=600.0 + number if at_work else None,
        outbox="/var/spool/obatch/outbox/x",
    )  # fmt: skip


def history(gpus: int, end_s: int, span: str = "24h") -> tuple[GpuHistory, WorkHistory]:
    """A day: work for twelve hours, a pause of two hours of which nothing is known, and an XID. Or an hour of work."""
    step_s, steps, first_hour = (60, 60, 7) if span == "1h" else (120, 720, 0)
    end_s = end_s // step_s * step_s
    at_s = [end_s - step_s * (steps - step) for step in range(steps)]

    def column(low: float, high: float, seed: int) -> Column:
        hours = [(first_hour + step * step_s // 3600 + seed // 9) % 24 for step in range(steps)]
        noise = [(step * 7919 + seed * 104729) % 97 / 97 for step in range(steps)]
        wanted = [
            low + (high - low) * (0.9 + noise[n] / 10 if 6 <= hours[n] < 18 else noise[n] / 30) for n in range(steps)
        ]
        return [None if 500 < step < 560 else value for step, value in enumerate(wanted)]

    cards = [gpu(index, 0) for index in range(gpus)]
    columns = [
        GpuColumns(
            card.uuid, card.index, card.name, card.serial, card.slot, card.memory_total_bytes,
            temp_c=column(34, 60 + n % 12, n), temp_max_c=column(35, 63 + n % 12, n), power_w=column(90, 640 + n, n),
            utilisation_percent=column(0, 99, n), memory_used_bytes=column(0, 70 * GIB, n),
            clock_mhz=column(345, 1755, n), slowed_percent=column(0, 0, n),
        )
        for n, card in enumerate(cards)
    ]  # fmt: skip
    when_s = at_s[steps * 5 // 12] + 5.0
    card = cards[5]
    event = GpuEventEntry(
        when_s, card.uuid, card.serial, card.slot, "xid", "", "79", "fallen off the bus", instant(when_s)
    )
    work = HostWork(*(column(0, high, 1) for high in (17_000, 80, 0.1, 400_000, 430, 0)))
    servers = [ServerWorked(f"gpu{n}", column(0, 610 + n, n), column(0, 16, n)) for n in range(gpus)]
    return GpuHistory(step_s, at_s, columns, [event], False), WorkHistory(step_s, at_s, work, servers)


class MadeUp:
    """Runs in a thread. The attributes may be changed at any time."""

    def __init__(self, gpus: int = 28, jobs: int = 1000) -> None:
        self.gpus, self.jobs = gpus, jobs
        self.now_s = int(time.time())  # to which its history goes
        self.look = 0  # grows with every document, so that each is another one
        self.still = False  # it does not grow
        self.silent = False  # connections are cut
        self.administrator = True
        self.hosts = 0  # joined ones, over which the GPUs are spread; the last one is away
        self.documents: dict[str, Any] = {}  # more of them, by path
        self.asked: Counter[tuple[str, int]] = Counter()  # path and status
        self.url = ""
        self.files = PageFiles()

    @property
    def link(self) -> str:
        return f"{self.url}/#{CODE}"

    def page(self, limit: int) -> Overview:
        cards = [gpu(index, self.look) for index in range(self.gpus)]
        servers = [server(card, self.look) for card in cards]
        probe = ProbeState("ok" if cards else "absent", "" if cards else "no NVIDIA driver is loaded", None)
        status = Status(
            version="0.3.0", spool="/var/spool/obatch", pid=4711, started_at="2026-11-29T00:00:00Z", state="running",
            reasons=[], servers=servers, gpus=probe, notices=[],
            queue=QueueCounts(*(412_000 - self.look, 20, 90_000, 502_000, 83.2) if self.jobs else (0, 0, 0, 0, 0.0)),
            inbox=InboxState(0, [], 0, ""), disk=DiskState(812 * 10**9, -1, False), pulls=[], jobs=[],
        )  # fmt: skip
        gpus = Gpus(probe.state, probe.message, None, KernelLogState("/dev/kmsg", ""), cards)
        if self.hosts:
            self._spread(status, gpus)
        shown = [job(number, self.look) for number in range(min(limit, self.jobs))]
        return Overview(
            revision=str(self.look), uid=1000, administrator=self.administrator, status=status, gpus=gpus, jobs=shown,
            next=shown[-1].job if self.jobs > limit else None,
        )  # fmt: skip

    def _spread(self, status: Status, gpus: Gpus) -> None:
        """Put the GPUs into hosts: as many in each."""
        names, each = [f"node{number + 1:02d}" for number in range(self.hosts)], self.gpus // self.hosts
        log = KernelLogState("/dev/kmsg", "")
        gone = "it has said nothing for 7.5 s"
        status.hosts = [HostBrief(name, "here", "", None, "0.3.0") for name in names]
        status.hosts[-1] = HostBrief(names[-1], "away", gone, None, "0.3.0")
        told = [(host.name, host.state == "here", host.reason) for host in status.hosts]
        gpus.hosts = [HostProbe(*one, "ok", "", None, log) for one in told]
        for number, (card, on) in enumerate(zip(gpus.gpus, status.servers, strict=True)):
            host = status.hosts[number // each]
            card.host, card.index, on.host = host.name, number % each, host.name
            on.id = f"{host.name}.gpu{card.index}"
            card.servers = [on.id]
            if host.state == "away":
                card.health, card.reason, on.state = "unknown", f"host {host.name} is away: {gone}", "backoff"
                on.reason, on.loaded, on.tokens_per_s, on.in_flight = card.reason, None, 0.0, 0

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.silent:
            assert request.transport is not None
            request.transport.abort()
        response = self._of(request)
        self.asked[request.path, response.status] += 1
        return response

    def _of(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/":
            return _sent("text/html", self.files.index.body)
        if path == "/page/session":
            return web.json_response({"schema": 1, "token": TOKEN})
        if path.startswith("/page/"):
            _, _, version, name = path.split("/", 3)
            file = self.files.one(version, name)
            return web.Response(status=404) if file is None else _sent(file.kind, file.body)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response(
                {"error": {"message": "the session is over", "code": "invalid_session"}}, status=401
            )
        if path == "/obatchd/v1/page":
            self.look += not self.still
            body = msgspec.json.encode(self.page(int(request.query.get("jobs", "100"))))
            tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
            if request.headers.get("If-None-Match") == tag:
                return web.Response(status=304, headers={"ETag": tag})
            return web.Response(body=body, content_type="application/json", headers={"ETag": tag})
        found = self.documents.get(path)
        if self.gpus and path in HISTORIES:
            made = history(self.gpus, self.now_s, request.query.get("span", "24h"))
            found = made[HISTORIES.index(path)]
        if found is None:
            empty: dict[str, Any] = {
                "at_s": [],
                "step_s": 60,
                "gpus": [],
                "servers": [],
                "events": [],
                "models": [],
                "runs": [],
            }
            return web.json_response(empty)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application(client_max_size=1024**3)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()


def _sent(kind: str, body: bytes) -> web.Response:
    return web.Response(body=body, content_type=kind, headers={"Content-Security-Policy": _POLICY})


@contextlib.contextmanager
def made_up(gpus: int = 28, jobs: int = 1000) -> Iterator[MadeUp]:
    """The stand-in, serving."""
    found, ready, loop = MadeUp(gpus, jobs), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(found.serve(ready, stop)), daemon=True)
    thread.start()
    try:
        assert ready.wait(10)
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
