"""A whole daemon in the process of a test, as ``daemon.compose`` makes it, whose desk the test can reach."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from obatchd.daemon.compose import Head
from obatchd.daemon.life import Daemon
from obatchd.daemon.machine import Host
from obatchd.dispatch.interactive.desk import Desk
from obatchd.servers.states import ServerState
from obatchd.settings.settings import Settings


class Here(Daemon):
    """The daemon, and its parts when they run."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, None, {})
        self.serving: asyncio.Future[tuple[Host, Head]] = asyncio.get_running_loop().create_future()
        self.host: Host
        self.head: Head

    async def _serve(self, here: Host, head: Head) -> None:
        self.host, self.head = here, head
        self.serving.set_result((here, head))
        await super()._serve(here, head)

    @property
    def desk(self) -> Desk:
        return self.head.engine.dispatcher.desk

    @property
    def inbox(self) -> Path:
        return self._settings.value.spool_path / "inbox"

    def drop(self, name: str, content: bytes) -> None:
        path = self.inbox.parent / name
        path.write_bytes(content)
        os.rename(path, self.inbox / name)

    def outbox(self, name: str) -> list[Path]:
        """The directories of finished jobs of this name."""
        return [found.parent for found in self.inbox.parent.glob(f"outbox/{name}.*/summary.json")]

    def end(self) -> None:
        self._signalled("test")


@contextlib.asynccontextmanager
async def daemon_here(root: Path, **tables: Any) -> AsyncIterator[Here]:
    """A daemon that is ready; it ends, without waiting for answers, when the block does."""
    settings = {
        "model": "tiny",
        "spool": str(root / "s"),
        "drain_s": 1,
        "gpus": {"use": "simulated:2", "poll_s": 0.1},
        "servers": {"slots": 2, "stagger_s": 0, "backoff_max_s": 0.2, "health_s": 0.3, "stop_grace_s": 3},
        "inbox": {"settle_s": 0.1, "rescan_s": 0.2},
    }
    merged = {name: {**own, **tables.pop(name, {})} if isinstance(own, dict) else own for name, own in settings.items()}
    here = Here(Settings.model_validate(merged | tables))
    running = asyncio.create_task(here.run())
    try:
        async with asyncio.timeout(60):
            done, _ = await asyncio.wait({running, here.serving}, return_when=asyncio.FIRST_COMPLETED)
            if running in done:
                running.result()
            for server in here.host.fleet.servers.values():
                await server.until({ServerState.READY})
        yield here
    finally:
        here.end()
        here.end()
        await running
