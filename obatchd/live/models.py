"""Questions about models and servers that the path of a request asks and cannot answer itself."""

from __future__ import annotations

from typing import Protocol

from obatchd.documents.jobs import ModelFacts


class Models(Protocol):
    """Given by the composition root."""

    async def ensure(self, server_id: str, model: str) -> list[str]:
        """Make sure of a model in that server's store; returns its capabilities, raises ModelError."""

    def forget(self, model: str) -> None:
        """Forget the facts about a model."""

    def facts(self, model: str) -> ModelFacts:
        """Facts about a model for the summary."""

    def server_version(self, server_id: str) -> str | None:
        """The Ollama version of a server."""

    async def digest(self, model: str) -> str | None:
        """The digest of a model, as soon as a server can tell it; None where no server has it."""
