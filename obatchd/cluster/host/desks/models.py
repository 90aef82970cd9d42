"""The desk ``models`` of a host: the models in its store, for the head.

It shows what its servers share; nothing that somebody else keeps is reached through a host.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import attrs
import msgspec

from obatchd.documents.models import PullProgress
from obatchd.ollama.api import StoredModel
from obatchd.servers.models import ModelKeeper
from obatchd.servers.stores.known import ModelInfo


@attrs.define(eq=False)
class ModelDesk:
    """Each method is that of :class:`obatchd.servers.models.ModelKeeper` with its name, and raises what that does."""

    _keeper: ModelKeeper

    async def ensure(self, model: str, by_admin: bool = False) -> ModelInfo:
        self._keeper.forget(model)  # the head remembers what it was told, and asks anew where that seems wrong
        return await self._keeper.ensure(model, by_admin=by_admin)

    async def listed(self) -> list[StoredModel]:
        return await self._keeper.listed()

    async def show(self, model: str, verbose: bool = False) -> bytes:
        """All that the store tells of a model, as JSON in Ollama's words; empty: it has none of that name."""
        shown = await self._keeper.show(model, verbose=verbose)
        return b"" if shown is None else msgspec.json.encode(shown)

    async def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        async with aclosing(self._keeper.pull(name)) as steps:
            async for step in steps:
                yield step

    async def remove(self, name: str) -> None:
        await self._keeper.remove(name)
