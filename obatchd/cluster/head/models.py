"""The models of joined hosts: each host has one store, which it asks itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import attrs
import msgspec

from obatchd.cluster.head.asking import ANSWER_S, ask, follow, lied
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.trust import lie
from obatchd.documents.models import PullProgress
from obatchd.errors import ModelError, ObatchError, ServerError
from obatchd.model_names import folded
from obatchd.ollama.api import StoredModel
from obatchd.servers.stores.known import ModelInfo
from obatchd.words import in_order

T = TypeVar("T")


@attrs.define(eq=False)
class HostStores(Mapping[str, "HostStore"]):
    """The stores of all known hosts, by name."""

    _hosts: Mapping[str, JoinedHost]  # live
    _stores: dict[str, HostStore] = attrs.field(factory=dict, init=False)

    def __getitem__(self, name: str) -> HostStore:
        host = self._hosts[name]
        store = self._stores.get(name)
        if store is None or store.host is not host:  # one that was forgotten may come anew
            store = self._stores[name] = HostStore(host)
        return store

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._hosts, key=in_order))

    def __len__(self) -> int:
        return len(self._hosts)


@attrs.define(eq=False)
class HostStore:
    """Implements :class:`obatchd.servers.stores.elsewhere.ElsewhereStore`."""

    host: JoinedHost

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def is_here(self) -> bool:
        return self.host.session is not None

    @property
    def share(self) -> str:
        return self.host.news.share if self.host.news is not None else ""

    @property
    def pulls(self) -> Mapping[str, PullProgress]:
        return self.host.news.pulls if self.host.news is not None and self.is_here else {}

    async def ensure(self, model: str, *, by_admin: bool) -> ModelInfo:
        """A host that is silent about it for a minute, and does not pull it, is waited for no longer."""
        asked = ask(self.host, "models.ensure", ModelInfo, None, model=model, by_admin=by_admin)
        asking = asyncio.ensure_future(self._told(asked))
        try:
            while not (await asyncio.wait({asking}, timeout=ANSWER_S))[0]:
                if folded(model) not in map(folded, self.pulls):
                    words = f"host {self.name} has not said within {ANSWER_S:g} s whether it has {model}"
                    raise ServerError(words, code="host_away")
            return msgspec.structs.replace(asking.result(), name=model, store=self.name)
        finally:
            asking.cancel()

    async def listed(self) -> list[StoredModel]:
        return await self._told(ask(self.host, "models.listed", list[StoredModel]))

    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw] | None:
        shown = await self._told(ask(self.host, "models.show", bytes, model=model, verbose=verbose))
        try:
            return msgspec.json.decode(shown, type=dict[str, msgspec.Raw]) if shown else None
        except msgspec.MsgspecError as error:
            raise lied(self.host, lie(f"what it shows of a model is none: {error}")) from None

    async def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        async with aclosing(follow(self.host, "models.pull", PullProgress, name=name)) as steps:
            async for step in steps:
                step.server = f"{self.name}.{step.server}"
                yield step

    async def remove(self, name: str) -> None:
        await self._told(ask(self.host, "models.remove", type(None), name=name))

    async def _told(self, asked: Coroutine[Any, Any, T]) -> T:
        """Whatever goes wrong there is a ServerError or ModelError here, in words that name the host."""
        try:
            return await asked
        except ModelError as error:
            raise ModelError(self._words(error), code=error.code) from None
        except ObatchError as error:
            raise ServerError(self._words(error), code=error.code) from None

    def _words(self, error: ObatchError) -> str:
        return error.message if self.name in error.message else f"host {self.name}: {error.message}"
