"""Hosts that are played for ``hosts.py``: one thread speaks the protocol for all of them; their servers cost little."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import uvloop
from harness import wait_for

__all__ = ["Daemon", "Head", "make_fleet", "of_seconds", "played", "spans"]
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cluster_support import Daemon, Head, make_fleet
from played_support import PlayedHost, PlayedServer, dial

from obatchd.cluster.joining import join
from obatchd.cluster.links import parse
from obatchd.cluster.session import Socket


class FarSocket:
    """A connection on which everything takes ``delay_s`` more, each way. Implements Socket."""

    def __init__(self, socket: Socket, delay_s: float) -> None:
        self._socket = socket
        self._delay_s = delay_s
        self._out: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._in: asyncio.Queue[tuple[float, bytes | Exception]] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    async def send(self, data: bytes) -> None:
        self._out.put_nowait((time.monotonic() + self._delay_s, data))

    async def receive(self) -> bytes:
        due_s, data = await self._in.get()
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        if isinstance(data, Exception):
            raise data
        return data

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._socket.close()

    async def _send(self) -> None:
        while True:
            due_s, data = await self._out.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await self._socket.send(data)

    async def _receive(self) -> None:
        while True:
            try:
                data: bytes | Exception = await self._socket.receive()
            except ConnectionError as error:
                data = error
            self._in.put_nowait((time.monotonic() + self._delay_s, data))
            if isinstance(data, Exception):
                return


@attrs.define(eq=False)
class PlayedFleet:
    """Hosts that are here until the end of the block of :func:`played`."""

    hosts: list[PlayedHost]
    delay_s: float
    _stop: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    failed: list[str] = attrs.field(factory=list, init=False)

    @property
    def servers(self) -> list[PlayedServer]:
        return [server for host in self.hosts for server in host.servers.values()]

    def run(self, credentials: list[tuple[int, str, str]]) -> None:
        """The body of the thread; for each host port, fingerprint and credential."""
        uvloop.run(self._run(credentials))

    async def _run(self, credentials: list[tuple[int, str, str]]) -> None:
        self._loop = asyncio.get_running_loop()
        hosts = [asyncio.create_task(self._host(*pair)) for pair in zip(self.hosts, credentials, strict=True)]
        await self._stop.wait()
        for host in hosts:
            host.cancel()
        await asyncio.gather(*hosts, return_exceptions=True)

    async def _host(self, host: PlayedHost, credential: tuple[int, str, str]) -> None:
        async with dial(*credential) as socket:
            why = await host.serve(FarSocket(socket, self.delay_s) if self.delay_s else socket)
            self.failed.append(f"{host.name}: {why}; {host.refused or ''}")

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)


@contextlib.contextmanager
def played(
    head: Head, hosts: int, gpus: int, slots: int, service_s: Callable[[str], float], delay_s: float = 0.0
) -> Iterator[PlayedFleet]:
    """So many hosts, joined by codes, until the end of the block; every server is ready."""
    fleet = PlayedFleet([PlayedHost(f"node{n + 1:02}", gpus, slots, service_s) for n in range(hosts)], delay_s)
    credentials = [_join(head, host.name) for host in fleet.hosts]
    thread = threading.Thread(target=fleet.run, args=(credentials,), daemon=True)
    thread.start()
    try:
        wait_for(lambda: fleet.failed or head.ready_servers() == hosts * gpus, 60, "every played server is ready", 0.1)
        if fleet.failed:
            raise SystemExit(f"a played host was sent away: {fleet.failed}")
        yield fleet
        if fleet.failed:
            raise SystemExit(f"a session ended: {fleet.failed}")
    finally:
        fleet.stop()
        thread.join(10)


def _join(head: Head, name: str) -> tuple[int, str, str]:
    """Port, fingerprint and credential of a host that joins by a code."""
    link = head.code()
    return head.port, f"sha256:{link.rpartition('.')[2]}", uvloop.run(_credential(link, name))


async def _credential(link: str, name: str) -> str:
    return (await join(parse(link), name, name)).credential


def of_seconds(seconds: float, spread: float = 0.5) -> Callable[[str], float]:
    """Service times around a mean, evenly spread; the same prompt has the same one wherever it runs."""

    def service_s(prompt: str) -> float:
        share = (hash_of(prompt) % 10_007) / 10_006
        return seconds * (1 - spread + 2 * spread * share)

    return service_s


def hash_of(prompt: str) -> int:
    found = 0
    for character in prompt:
        found = (found * 131 + ord(character)) % 2_147_483_647
    return found


def spans(fleet: PlayedFleet) -> list[list[tuple[float, float]]]:
    """Begin and end of each answer so far, by server; forgotten then."""
    found: list[Any] = [list(server.spans) for server in fleet.servers]
    for server in fleet.servers:
        server.spans.clear()
    return found
