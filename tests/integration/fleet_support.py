"""A fleet on stand-in GPUs and stand-in servers, for the tests beside this file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from task_support import Failures

from obatchd.daemon.machine import choose_platform
from obatchd.gpus.probe import Probe
from obatchd.servers.fleet import Fleet
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings


class DictFacts(dict[str, str]):
    def set(self, key: str, value: str) -> None:
        self[key] = value


class Bench:
    """A running fleet and what was seen of it."""

    def __init__(self, settings: Settings, work: Path, facts: DictFacts, instance: str) -> None:
        self.settings = settings
        self.work = work
        self.facts = facts
        self.instance = instance
        self.failures = Failures()
        self.changes: list[tuple[str, ServerState, ServerState]] = []
        host = choose_platform(settings, work)
        self.probe = Probe(settings.gpus, host.open_source, self.failures)
        self.fleet = Fleet(Current(settings), work, instance, host.program, self.probe, facts, self.failures)
        self.fleet.listen(self)

    def server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        self.changes.append((server.id, old, new))

    def states_of(self, server: str) -> list[ServerState]:
        return [new for name, _, new in self.changes if name == server]

    async def ready(self, timeout_s: float = 30) -> list[Server]:
        async with asyncio.timeout(timeout_s):
            for server in self.fleet.servers.values():
                await server.until({ServerState.READY})
        return list(self.fleet.servers.values())


def settings(
    use: str = "simulated:1",
    simulator: dict[str, Any] | None = None,
    servers: dict[str, Any] | None = None,
    **more: Any,
) -> Settings:
    quick: dict[str, Any] = {
        "ollama": "simulator",
        "stagger_s": 0,
        "backoff_max_s": 0.05,
        "health_s": 0.1,
        "stop_grace_s": 5,
        "environment": {"OBATCHD_SIMULATOR": json.dumps(simulator or {})},
    }
    return Settings.model_validate({"gpus": {"use": use, "poll_s": 0.1}, "servers": quick | (servers or {}), **more})


@asynccontextmanager
async def running(
    settings: Settings, work: Path, *, facts: DictFacts | None = None, instance: str = ""
) -> AsyncIterator[Bench]:
    work.mkdir(exist_ok=True)
    bench = Bench(settings, work, DictFacts() if facts is None else facts, instance or str(uuid4()))
    await bench.probe.start()
    try:
        await bench.fleet.start()
        yield bench
    finally:
        await bench.fleet.stop()
        await bench.probe.stop()


async def wait_for(condition: Callable[[], object], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
