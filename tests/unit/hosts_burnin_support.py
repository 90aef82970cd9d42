"""A head and hosts for burn-ins, all in this process: sessions in memory, managers as they are, servers that answer."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, cast

import pytest
from burnin_bench import Bench
from hosts_support import server_news
from session_support import Kept, sessions

from obatchd.burnin.run import plan
from obatchd.burnin.run.manager import Burnin
from obatchd.cluster.head.burnin.runs import HostsBurnin
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.server import HostedServer
from obatchd.cluster.host.desks.burnin import HostBurninDesk
from obatchd.documents.burnin.report import BurninStatus
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.gpu_health import BurninSettings

# Servers in memory are served unequally by a busy machine.
LIMITS = BurninSettings(slower_warn_percent=60, slower_fail_percent=75, canary_runs=4)
LOOK_S = 0.1


class _Nobody:
    def server_changed(self, *_: object) -> None: ...


class Machine:
    """A host: its GPUs, its manager, and its session while it is here."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, gpus: int) -> None:
        self.name = name
        self.directory = directory / name
        self.bench = Bench(self.directory, monkeypatch, gpus)
        self.bench.burnin = LIMITS
        self.joined = JoinedHost(name, cast(Any, None))  # its sessions are begun here
        self.runs = Burnin(self.directory, self.bench)
        self._tasks: list[asyncio.Task[str]] = []

    async def come(self) -> None:
        """Begin a session with the head; its servers are told."""
        head, host = sessions(Kept(), Kept(), of_host={"burnin": HostBurninDesk(self.runs)})
        self._tasks = [asyncio.create_task(head.run()), asyncio.create_task(host.run())]
        self.joined.session = head
        for name, gpus in self.bench.gpus.items():
            news = server_news(name, gpus=list(gpus), loaded=None)
            server = HostedServer(self.name, news, _Nobody(), self.joined.sensors)
            server = self.joined.servers.setdefault(server.id, server)
            server.heard(news, head)

    async def go(self, reason: str = "the cable was pulled") -> None:
        """End the session; what runs here goes on."""
        session, self.joined.session, self.joined.reason = self.joined.session, None, reason
        if session is not None:
            session.end(reason)
        await asyncio.gather(*self._tasks)
        for server in self.joined.servers.values():
            server.lost(reason)

    async def begin_anew(self) -> None:
        """Its process ends, and another one goes on with the run."""
        await self.go("its process ended")
        await self.runs.close()
        self.runs = Burnin(self.directory, self.bench)
        await self.runs.resume()
        await self.come()


class Cluster:
    """A head, and hosts by name."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, gpus: dict[str, int], own: int = 0) -> None:
        monkeypatch.setattr(plan, "_LEAST_S", 1.0)
        self.directory = directory
        self.machines = {name: Machine(directory, monkeypatch, name, count) for name, count in gpus.items()}
        self.bench = Bench(directory / "head", monkeypatch, own)
        self.bench.burnin = LIMITS
        self.alarms: list[Any] = []
        self.head = self._head()

    def _head(self) -> HostsBurnin:
        directory = self.directory / "head"
        settings = Current(Settings(model="llama3.3", burnin=LIMITS))
        hosts = {name: machine.joined for name, machine in self.machines.items()}
        return HostsBurnin(directory, Burnin(directory, self.bench), hosts, settings, self, LOOK_S)

    def announce(self, alarm: Any) -> None:
        self.alarms.append(alarm)

    async def begin(self) -> Cluster:
        for machine in self.machines.values():
            await machine.come()
        await self.head.resume()
        return self

    async def restart_head(self) -> None:
        await self.head.close()
        self.head = self._head()
        await self.head.resume()

    async def over(self) -> BurninStatus:
        """The status at the end of the latest run."""
        async with asyncio.timeout(60):
            while (status := await self.head.status()).active:
                await asyncio.sleep(0.05)
        return status

    async def until_loading(self) -> None:
        async with asyncio.timeout(60):
            while (brief := self.head.brief()) is None or brief.state != "loading":
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self.head.close()
        for machine in self.machines.values():
            with contextlib.suppress(Exception):
                await machine.go()
            await machine.runs.close()
