"""Questions about models and servers that the path of a request asks and cannot answer itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from obatchd.dispatch.events import ModelStore
from obatchd.documents.jobs import ModelFacts


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

    async def digest(self, model: str) -> str | None:
        """The digest of a model, as soon as a server can tell it; None where no server has it."""
