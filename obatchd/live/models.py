"""Questions about models and servers that the path of a request asks and cannot answer itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from obatchd.dispatch.events import ModelStore
from obatchd.documents.jobs import ModelFacts


class EnergyReading(NamedTuple):
    """The meter of a server's GPUs; the difference of two is the energy between them, if ``breaks`` is the same."""

    at_s: float  # monotonic
    energy_j: float
    breaks: int = 0


class Models(ModelStore, Protocol):
    """Given by the composition root."""

    def forget(self, model: str) -> None:
        """Forget the facts about a model."""

    def facts(self, model: str, servers: Sequence[str]) -> ModelFacts:
        """Facts about a model for the summary, as the servers have it that answered with it."""

    def server_version(self, server_id: str) -> str | None:
        """The Ollama version of a server."""

    def gpus_per_slot(self, server_id: str) -> float:
        """The share of a server's GPUs that each of its slots has; 0 on the CPU, elsewhere, or where it is gone."""

    def energy(self, server_id: str) -> EnergyReading | None:
        """The meter of a server's GPUs as it was read last; None where it has none."""

    def why_no_energy(self, server_id: str) -> str:
        """Why a server has no such meter, in words; empty where it has one."""

    async def digest(self, model: str) -> str | None:
        """The digest of a model, as soon as a server can tell it; None where no server has it."""
