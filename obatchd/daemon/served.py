"""Questions of the parts of the daemon about servers, answered for those of this machine and of joined hosts alike."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from msgspec import UNSET

from obatchd.cluster.head.server import HostedServer
from obatchd.documents import excerpt
from obatchd.documents.jobs import ModelFacts
from obatchd.errors import ServerError
from obatchd.gpucare.watch import GpuWatch
from obatchd.gpus.energy import EnergyMeters
from obatchd.live.models import EnergyReading
from obatchd.servers.fleet import Fleet
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import ServerFace


@attrs.define(eq=False)
class ServedModels:
    """The engine's questions about models, answered by the servers. Implements :class:`obatchd.live.models.Models`."""

    _keeper: ModelKeeper
    _fleet: Fleet
    _meters: EnergyMeters  # of this machine

    async def ensure(self, server_id: str, model: str) -> list[str]:
        if (server := self._fleet.find(server_id)) is None:  # it went with its host
            raise ServerError(f"server {server_id} is not there any more", code="not_ready")
        return (await self._keeper.ensure_on(server, model)).capabilities

    def forget(self, model: str) -> None:
        self._keeper.forget(model)

    def facts(self, model: str, servers: Sequence[str]) -> ModelFacts:
        known = self._fleet.all
        there = {name: known[name] for name in servers if name in known}
        infos = {name: info for name, server in there.items() if (info := self._keeper.info(model, server))}
        if (info := next(iter(infos.values()), None) or self._keeper.info(model)) is None:
            return ModelFacts()
        digests = {name: info.digest for name, info in infos.items() if info.digest}
        return excerpt(ModelFacts, info, digests=digests if len(set(digests.values())) > 1 else UNSET)

    def digest_on(self, server_id: str, model: str) -> str:
        server = self._fleet.find(server_id)
        info = self._keeper.info(model, server) if server else None
        return info.digest if info else ""

    def server_version(self, server_id: str) -> str | None:
        server = self._fleet.find(server_id)
        return server.version or None if server else None

    def gpus_per_slot(self, server_id: str) -> float:
        server = self._fleet.find(server_id)
        return len(server.gpus) / max(server.slots, 1) if server else 0.0

    def energy(self, server_id: str) -> EnergyReading | None:
        server = self._fleet.find(server_id)
        if server is None or self._beside(server):
            return None
        metered = self._meters_of(server).of([gpu.uuid for gpu in server.gpus])
        return EnergyReading(*metered) if metered else None

    def why_no_energy(self, server_id: str) -> str:
        server = self._fleet.find(server_id)
        if server is None:
            return "the server is not there any more"
        if not server.gpus:
            return "it computes on the CPU" if server.kind == "managed" else "its GPU is not known here"
        if any(gpu.parent_uuid for gpu in server.gpus):
            return "no driver tells the energy of a slice of a GPU"
        if others := self._beside(server):
            return f"it shares its GPU with {', '.join(others)}, and the energy is counted for the whole GPU"
        meters = self._meters_of(server)
        untold = [str(gpu.index) for gpu in server.gpus if not meters.tells(gpu.uuid)]
        return f"GPU {', '.join(untold)} does not tell its energy" if untold else ""

    def _meters_of(self, server: ServerFace) -> EnergyMeters:
        return server.sensors.meters if isinstance(server, HostedServer) else self._meters

    def _beside(self, server: ServerFace) -> list[str]:
        """Other servers on its GPUs, as ``ollama_instances`` may have them: nobody tells which of them took what."""
        cards = {gpu.card for gpu in server.gpus}
        return [
            other.id
            for other in self._fleet.all.values()
            if cards and other is not server and other.host == server.host and any(g.card in cards for g in other.gpus)
        ]

    async def digest(self, model: str) -> str | None:
        info = self._keeper.info(model)
        return (info.digest if info else await self._keeper.digest(model)) or None


@attrs.define(eq=False)
class GpuLoads:
    """How busy the GPUs of servers are. Implements :class:`obatchd.dispatch.recovery.GpuLoad`."""

    _watch: GpuWatch  # of this machine
    _fleet: Fleet

    def utilisation(self, server_id: str) -> int | None:
        server = self._fleet.guests.get(server_id)
        return server.utilisation if isinstance(server, HostedServer) else self._watch.utilisation(server_id)
