"""The models in the stores: found, pulled when allowed, listed and removed.

All managed servers share one store, every remote server has its own, and so has every joined host. A download is made
through one server only: two servers that pull the same model into one store overwrite each other's parts.
"""

from __future__ import annotations

import asyncio
import difflib
import fnmatch
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import attrs
import msgspec

import obatchd.log
from obatchd.documents import native
from obatchd.documents.models import PullProgress
from obatchd.errors import ModelError, ObatchError, ServerError
from obatchd.model_names import canonical, folded, plain
from obatchd.ollama.api import ShownModel, StoredModel
from obatchd.servers.fleet import Fleet
from obatchd.servers.server import ServerFace
from obatchd.servers.stores.elsewhere import ElsewhereStore, together
from obatchd.servers.stores.known import LOCAL, KnownModels, ModelInfo, as_told
from obatchd.servers.stores.own import OwnStores, described, pull_key
from obatchd.servers.stores.sharing import Turns, each_once
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.servers import ModelSettings

log = obatchd.log.get(__name__)

_TIMEOUT_S = 60.0
_T = TypeVar("_T")
_FIRST_SERVER_S = 0.5  # between two looks whether a server is up


@attrs.define(eq=False)
class ModelKeeper:
    """Makes sure of models, once per store."""

    _current: Current[Settings] = attrs.field(alias="settings")
    _fleet: Fleet
    elsewhere: Mapping[str, ElsewhereStore] = attrs.field(factory=dict, init=False)  # of joined hosts, by name
    _own: OwnStores = attrs.field(init=False)
    _known: KnownModels = attrs.field(factory=KnownModels, init=False)
    _running: dict[tuple[str, str], asyncio.Task[ModelInfo]] = attrs.field(factory=dict, init=False)
    _turns: Turns = attrs.field(factory=Turns, init=False)

    @_own.default
    def _of_this_daemon(self) -> OwnStores:
        return OwnStores(self._current, self._fleet)

    @property
    def _settings(self) -> ModelSettings:
        return self._current.value.models

    async def close(self) -> None:
        """Give up downloads."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def pulls(self) -> dict[str, PullProgress]:
        """Downloads in progress by model name; of a remote server or a joined host, with its id behind it."""
        found = dict(self._own.pulls)
        for store in self.elsewhere.values():
            found |= {pull_key(store.name, model): progress for model, progress in store.pulls.items()}
        return found

    @property
    def share(self) -> str:
        """Of the managed servers' store; see :mod:`obatchd.servers.stores.sharing`."""
        return self._own.share

    def has(self, server: ServerFace, model: str) -> bool:
        """Whether the model is known to be in the server's store."""
        return self.info(model, server) is not None

    def info(self, model: str, server: ServerFace | None = None) -> ModelInfo | None:
        """Facts about a model that was made sure of before, as one server has it or as any does."""
        return self._known.get(server.store, model) if server else self._known.of(model)

    @property
    def notices(self) -> list[str]:
        """Notices for administrators although everything works."""
        return self._known.notices(self._stores())

    def forget(self, model: str) -> None:
        """Look again next time: a server said that it does not have the model."""
        self._known.forget(model)

    async def ensure(self, model: str, *, by_admin: bool = False) -> ModelInfo:
        """Make sure that at least one store has the model, and every reachable one that may have it.

        Raises ModelError: ``model_forbidden``, ``model_not_found``, ``pull_failed`` or ``no_space``, ServerError
        (``no_server``) where no server can be asked now.
        """
        self._check_allowed(model, by_admin)
        stores = self._stores(f"look for {model}")
        looks = (self._ensure_in(store, model, by_admin) for store in stores)
        outcomes = await asyncio.gather(*looks, return_exceptions=True)
        found = [outcome for outcome in outcomes if isinstance(outcome, ModelInfo)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if not found:  # a store that could not be asked may have it: that is no reason to fail a job for good
            raise next((error for error in failed if not isinstance(error, ModelError)), failed[0])
        for error in failed:
            log.info("model_not_everywhere", model=model, reason=error)
        return found[0]

    async def ensure_on(self, server: ServerFace, model: str) -> ModelInfo:
        """As :meth:`ensure` of one server's store, e.g. of a remote server that came up later."""
        self._check_allowed(model, by_admin=False)
        return await self._ensure_in(server.store, model, by_admin=False)

    def _check_allowed(self, model: str, by_admin: bool) -> None:
        names = {model, plain(model), canonical(model)}
        if by_admin or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self._settings.allow):
            return
        patterns = ", ".join(self._settings.allow) or "none"
        raise ModelError(
            f"Model {model} may not be used here. Allowed are: {patterns} (setting models.allow).",
            code="model_forbidden",
        )

    def _stores(self, aim: str = "") -> list[str]:
        """The stores that can be asked; with an ``aim`` there must be one."""
        stores = self._own.names + [store.name for store in self.elsewhere.values() if store.is_here]
        if aim and not stores:
            raise ServerError(f"No server is running that could {aim}: obatchctl status shows why.", code="no_server")
        return stores

    def _managed(self, stores: list[str]) -> list[str]:
        """Those of them that are ours to fill and to clear."""
        return [store for store in stores if store == LOCAL or store in self.elsewhere]

    def _share(self, store: str) -> str:
        """What says that stores are one; empty: this one is by itself."""
        elsewhere = self.elsewhere.get(store)
        return elsewhere.share if elsewhere is not None else self.share if store == LOCAL else ""

    async def _ensure_in(self, store: str, model: str, by_admin: bool) -> ModelInfo:
        key = (store, folded(model))
        if (known := self._known.get(store, model)) is not None:
            return known
        if (task := self._running.get(key)) is None:
            look = self._ensure_elsewhere if store in self.elsewhere else self._find_or_pull
            task = asyncio.create_task(look(store, model, by_admin), name=f"ensure-{model}")
            self._running[key] = task
            task.add_done_callback(partial(self._ended, key))
        # Shielded: whoever waits may give up without ending it for the others.
        return await asyncio.shield(task)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[ModelInfo]) -> None:
        """A look or a download is over. Where all who waited have given up, nobody else asks how it ended."""
        self._running.pop(key, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, ObatchError):
            log.info("model_not_had", model=key[1], store=key[0], reason=error)
        else:
            log.exception("defect", error, task=task.get_name())

    async def _ensure_elsewhere(self, store: str, model: str, by_admin: bool) -> ModelInfo:
        """Have a host make sure of a model, by the settings that it has of us."""
        async with self._turns.at(self._share(store)):
            info = await self.elsewhere[store].ensure(model, by_admin=by_admin)
        self._known.learn(info)
        return info

    async def _find_or_pull(self, store: str, model: str, by_admin: bool) -> ModelInfo:
        if (info := await self._look_up(store, model)) is not None:
            return info
        policy = self._settings.pull
        if not by_admin and policy != "allowed":
            raise ModelError(
                f'Model {model} is not in the store ({store}), and models.pull = "{policy}" keeps jobs from '
                f"pulling it. {self._who_pulls(store, model)}.",
                code="model_not_found",
            )
        async with self._turns.at(self._share(store)), self._own.alone_on_host(store):
            if (info := await self._look_up(store, model)) is not None:
                return info
            try:
                async with aclosing(self._own.pull(store, model)) as progress:
                    async for _ in progress:
                        pass
            except ModelError as error:
                if error.code not in ("pull_failed", "model_not_found"):
                    raise
                raise ModelError(f"{error.message}{await self._meant(model)}", code=error.code) from error
            if (info := await self._look_up(store, model)) is not None:
                return info
        raise ModelError(f"Model {model} was pulled but is not in the store ({store}).", code="pull_failed")

    async def _meant(self, model: str) -> str:
        """The model of the stores whose name looks most like this one, which no registry has or none is reached."""
        names = [info.name.removesuffix(":latest") for info in await self.list_models()]
        close = difflib.get_close_matches(model, names, 1)
        return f" Did you mean {close[0]}, which is here?" if close else ""

    def _who_pulls(self, store: str, model: str) -> str:
        if store != LOCAL and (servers := self._own.servers(store)):
            return f"Whoever keeps that server can: on the host of {servers[0].address}, ollama pull {model}"
        return f"An administrator can: obatchctl models pull {model}"

    async def _look_up(self, store: str, model: str) -> ModelInfo | None:
        """What a store says of a model; it is known from then on."""
        if (info := await self._own.look_up(store, model)) is not None:
            self._known.learn(info)
        return info

    # --- pulling ----------------------------------------------------------------------------------------------------

    async def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        """Pull or update a model in the managed servers' store and those of joined hosts, all at once, else in the
        remote ones; yields the progress.

        Of remote ones only in those that lack it, unless all have it. Raises ModelError: ``model_forbidden`` when pulls
        are switched off, else as :meth:`ensure`.
        """
        stores = self._stores(f"pull {name}")
        if managed := self._managed(stores):
            places = each_once({store: self._share(store) for store in managed})
            pulls = together(name, {store: self._pull_and_learn(store, name) for store in places})
            async with aclosing(pulls):
                async for step in pulls:
                    yield step
            return
        lacking = [store for store in stores if await self._look_up(store, name) is None]
        for store in lacking or stores:
            async with aclosing(self._pull_and_learn(store, name)) as progress:
                async for step in progress:
                    yield step

    async def _pull_and_learn(self, store: str, model: str) -> AsyncGenerator[PullProgress, None]:
        pull = self.elsewhere[store].pull(model) if store in self.elsewhere else self._own.pull(store, model)
        share = self._share(store)
        async with self._turns.at(share), aclosing(pull):
            async for step in pull:
                yield step
        for other in self._managed(self._stores()):
            if share and self._share(other) == share:
                self._known.forget(model, other)
        if store in self.elsewhere:
            await self._ensure_elsewhere(store, model, by_admin=True)
        else:
            await self._look_up(store, model)

    # --- listing and removing ---------------------------------------------------------------------------------------

    async def list_models(self) -> list[ModelInfo]:
        """Every model of every store that can be asked; ``capabilities`` and ``context_length`` are left out."""
        return [described(entry.model, store, entry, ShownModel()) for store, entry in await self._listed()]

    async def stored(self) -> list[tuple[str, native.StoredModel]]:
        """The same as Ollama tells it, each with its store."""
        return [(store, as_told(entry)) for store, entry in await self._listed()]

    async def _listed(self) -> list[tuple[str, StoredModel]]:
        stores = self._stores()
        listings = await asyncio.gather(*map(self._list, stores))
        return [(store, entry) for store, listed in zip(stores, listings, strict=True) for entry in listed]

    async def _list(self, store: str) -> list[StoredModel]:
        try:
            if store in self.elsewhere:
                listed = await self.elsewhere[store].listed()
            else:
                listed = await self._own.listed(store)
        except ObatchError as error:
            log.warning("models_not_listed", store=store, reason=error.message)
            return []
        self._known.compare(store, {entry.model: entry.digest for entry in listed})
        return listed

    async def listed(self) -> list[StoredModel]:
        """What all stores list."""
        return [entry for _, entry in await self._listed()]

    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw] | None:
        """All that a store tells of a model, in Ollama's words; None: none has it.

        Raises ServerError where a store that may have it cannot be asked.
        """
        untold: ServerError | None = None
        for store in self._stores(f"look for {model}"):
            try:
                if (shown := await self._show(store, model, verbose)) is not None:
                    return shown
            except ServerError as error:
                untold = untold or error
        if untold is not None:
            raise untold
        return None

    async def _show(self, store: str, model: str, verbose: bool) -> dict[str, msgspec.Raw] | None:
        if store in self.elsewhere:
            return await self.elsewhere[store].show(model, verbose=verbose)
        return await self._own.show(store, model, verbose=verbose)

    async def digest(self, model: str) -> str | None:
        """The digest of a model in the first store that has it, None where none has; waits for the first server."""
        while not self._stores():
            await asyncio.sleep(_FIRST_SERVER_S)
        found = (info.digest for info in await self.list_models() if folded(info.name) == folded(model))
        return next(found, None)

    async def remove(self, name: str) -> None:
        """Delete a model from the managed servers' store and those of joined hosts; idle servers unload it. Remote
        stores are never touched.

        Raises ModelError: ``model_not_found``, or ``model_in_use`` while a server works with it; ServerError
        (``no_server``) where no managed server runs, or another code where a host did not do it.
        """
        stores = self._stores()
        managed = self._managed(stores) or [LOCAL]
        if stores and not self._managed(stores):
            words = f"Only remote servers run; obatchd removes nothing there: run `ollama rm {name}` on their hosts."
            raise ServerError(words, code="no_server")
        users = [
            server
            for server in self._fleet.all.values()
            if server.store in managed and server.up
            if folded(name) in {folded(profile.model) for profile in (server.loaded, server.loading) if profile}
        ]
        if busy := [server.id for server in users if server.loading or server.in_flight]:
            words = f"Model {name} is at work on {', '.join(busy)}. Wait for its jobs, or cancel them: obatchctl jobs."
            raise ModelError(words, code="model_in_use")
        places = each_once({store: self._share(store) for store in managed})
        removing = (self._remove_from(store, name) for store in places)
        failed = [found for found in await asyncio.gather(*removing, return_exceptions=True) if found is not None]
        absent = [error for error in failed if isinstance(error, ModelError) and error.code == "model_not_found"]
        for store in managed:
            self._known.forget(name, store)
        for error in failed:
            if error not in absent or len(absent) == len(places):
                raise error
        log.info("model_removed", model=name)

    async def _remove_from(self, store: str, name: str) -> None:
        place = self.elsewhere.get(store)
        await (self._own.remove(store, name) if place is None else place.remove(name))
