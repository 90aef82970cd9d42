"""A server that somebody else keeps: it is only used and watched."""

from __future__ import annotations

from urllib.parse import urlsplit

from obatchd.servers.server import Server, ServerListener
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_DEFAULT_PORT = 11434
_TIMEOUT_S = 5.0


class RemoteServer(Server):
    """One entry of ``[ollama_instances]``. It is told what to load, never for how long to keep it."""

    kind = "remote"
    pins = False

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
