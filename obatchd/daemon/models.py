"""What the engine asks about models, answered by the servers. Implements :class:`obatchd.live.models.Models`."""

from __future__ import annotations

from typing import Any

import msgspec

from obatchd.servers.fleet import Fleet
from obatchd.servers.models import ModelKeeper


class ServedModels:
    """The models in the stores of a fleet."""

    def __init__(self, keeper: ModelKeeper, fleet: Fleet) -> None:
        self._keeper = keeper
        self._fleet = fleet

    async def ensure(self, server_id: str, model: str) -> list[str]:
        return (await self._keeper.ensure_on(self._fleet.servers[server_id], model)).capabilities

    def forget(self, model: str) -> None:
        self._keeper.forget(model)

    def facts(self, model: str) -> dict[str, Any]:
        info = self._keeper.info(model)
        facts: dict[str, Any] = msgspec.to_builtins(info) if info else {}
        return {name: facts.get(name) for name in ("digest", "quantization", "parameter_size", "context_length")}

    def server_version(self, server_id: str) -> str | None:
        server = self._fleet.servers.get(server_id)
        return server.version or None if server else None

    async def digest(self, model: str) -> str | None:
        if (digest := self.facts(model)["digest"]) is None:
            digest = await self._keeper.digest(model)
        return str(digest) if digest else None
