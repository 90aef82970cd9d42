"""A server that somebody else keeps: it is only used and watched."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from obatchd.jobs.model import Profile
from obatchd.servers.server import Server, ServerListener
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_DEFAULT_PORT = 11434
_TIMEOUT_S = 5.0


class RemoteServer(Server):
    """One entry of ``[ollama_instances]``. It is told what to load, never for how long to keep it."""

    kind = "remote"

    def __init__(self, address: str, settings: Current[Settings], listener: ServerListener) -> None:
        url = urlsplit(address if "://" in address else f"http://{address}")
        port = url.port or _DEFAULT_PORT
        host = url.hostname or ""
        netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        server_id = f"remote-{host.replace(':', '.')}-{port}"
        super().__init__(server_id, f"{url.scheme}://{netloc}", settings, listener)
        self.slots = settings.value.servers.remote_slots
        self.token = settings.value.servers.remote_token

    async def _open(self) -> None:
        await self._check_version(_TIMEOUT_S)

    async def _close(self) -> None:
        pass

    def load_options(self, profile: Profile) -> dict[str, Any]:
        return {"num_ctx": profile.context_length}

    async def _load(self, profile: Profile) -> None:
        began_s = time.monotonic()
        timeout_s = self._settings.load_timeout_s
        await self.api.load(profile.model, self.load_options(profile), timeout_s, pin=False)
        self.load_s = time.monotonic() - began_s
