"""The engine's questions about models, answered by the servers. Implements :class:`obatchd.live.models.Models`."""

from __future__ import annotations

from obatchd.documents import excerpt
from obatchd.documents.jobs import ModelFacts
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

    def facts(self, model: str) -> ModelFacts:
        info = self._keeper.info(model)
        return excerpt(ModelFacts, info) if info else ModelFacts()

    def server_version(self, server_id: str) -> str | None:
        server = self._fleet.servers.get(server_id)
        return server.version or None if server else None

    async def digest(self, model: str) -> str | None:
        if (digest := self.facts(model).digest) is None:
            digest = await self._keeper.digest(model)
        return digest or None
