"""Stores of joined hosts, as whoever makes sure of models sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Protocol, TypeVar

import msgspec

from obatchd.documents.models import PullProgress
from obatchd.errors import ModelError, ObatchError
from obatchd.ollama.api import StoredModel
from obatchd.servers.stores.known import ModelInfo

_MOST_WAITING = 100  # steps that nobody has asked for yet
T = TypeVar("T")


class ElsewhereStore(Protocol):
    """The store of one joined host; :class:`obatchd.cluster.head.models.HostStore`.

    Every method raises ServerError (``host_away``) where the host is away or does not answer in time, and what the
    method of :class:`obatchd.servers.models.ModelKeeper` with its name raises on the host.
    """

    @property
    def name(self) -> str:
        """Of the host; the ``store`` of its models and of its servers."""
        ...

    @property
    def is_here(self) -> bool:
        """Whether it can be asked now."""
        ...

    @property
    def share(self) -> str:
        """As :func:`obatchd.servers.stores.sharing.share_of`: stores with the same one are one."""
        ...

    @property
    def pulls(self) -> Mapping[str, PullProgress]:
        """Downloads in progress there, by model."""
        ...

    async def ensure(self, model: str, *, by_admin: bool) -> ModelInfo: ...
    async def listed(self) -> list[StoredModel]: ...
    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw] | None: ...
    def pull(self, name: str) -> AsyncGenerator[PullProgress, None]: ...
    async def remove(self, name: str) -> None: ...


async def together(model: str, pulls: Mapping[str, AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The steps of downloads into several stores at once, as they come.

    One that fails ends no other one: at the end it is said where it failed, by a ModelError.
    """
    steps: asyncio.Queue[T | None] = asyncio.Queue(_MOST_WAITING)
    failed: dict[str, ObatchError] = {}

    async def follow(store: str, pull: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(pull):
                async for step in pull:
                    await steps.put(step)
        except ObatchError as error:
            failed[store] = error
        finally:
            await steps.put(None)

    tasks = [asyncio.create_task(follow(*each), name=f"pull-{each[0]}") for each in pulls.items()]
    left = len(tasks)
    try:
        while left:
            if (step := await steps.get()) is None:
                left -= 1
            else:
                yield step
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    _raise(model, failed, [store for store in pulls if store not in failed])
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome  # a defect


def _raise(model: str, failed: Mapping[str, ObatchError], had: list[str]) -> None:
    if not failed:
        return
    first = next(iter(failed.values()))
    if len(failed) == 1 and not had:
        raise first
    where = "; ".join(f"{store}: {error.message.rstrip('.')}" for store, error in failed.items())
    there = f" It is there now: {', '.join(had)}." if had else ""
    raise ModelError(f"{model} could not be pulled everywhere. {where}.{there}", code=first.code)
