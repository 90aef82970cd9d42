"""The desk ``models`` of a host: the models in its store, for the head.

It shows what its servers share; nothing that somebody else keeps is reached through a host.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import attrs
import msgspec

from obatchd.documents.models import PullProgress
from obatchd.documents.native import StoredModel
from obatchd.servers.known import ModelInfo
from obatchd.servers.models import ModelKeeper


@attrs.define(eq=False)
class ModelDesk:
    """Each method is that of :class:`obatchd.servers.models.ModelKeeper` with its name, and raises what that does."""

    _keeper: ModelKeeper

    async def ensure(self, model: str, by_admin: bool = False) -> ModelInfo:
        return await self._keeper.ensure(model, by_admin=by_admin)

    async def stored(self) -> list[StoredModel]:
        """Every model, as Ollama tells it."""
        return [entry for _, entry in await self._keeper.stored()]

    async def show(self, model: str, verbose: bool = False) -> bytes | None:
        """All that the store tells of a model, as JSON in Ollama's words; None: it has none of that name."""
        shown = await self._keeper.show(model, verbose=verbose)
        return None if shown is None else msgspec.json.encode(shown)

    async def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        async with aclosing(self._keeper.pull(name)) as steps:
            async for step in steps:
                yield step

    async def remove(self, name: str) -> None:
        await self._keeper.remove(name)

    async def forget(self, model: str) -> None:
        self._keeper.forget(model)
