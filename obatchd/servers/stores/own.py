"""The stores of the servers that this daemon speaks to itself: their Ollamas are asked over HTTP."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar
from urllib.parse import urlsplit

import attrs
import msgspec

import obatchd.log
from obatchd.documents.models import PullProgress
from obatchd.errors import ModelError, ServerError
from obatchd.model_names import folded
from obatchd.ollama.api import OllamaApi, ShownModel, StoredModel
from obatchd.servers.fleet import Fleet
from obatchd.servers.managed import ManagedServer
from obatchd.servers.server import Server
from obatchd.servers.stores.known import LOCAL, ModelInfo
from obatchd.servers.stores.sharing import share_of
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.servers import ModelSettings

log = obatchd.log.get(__name__)

_TIMEOUT_S = 60.0
_T = TypeVar("_T")


@attrs.define(eq=False)
class OwnStores:
    """Asks a store through whichever of its servers can be reached."""

    _current: Current[Settings] = attrs.field(alias="settings")
    _fleet: Fleet
    pulls: dict[str, PullProgress] = attrs.field(factory=dict, init=False)  # downloads in progress, by pull_key
    _hosts: dict[str, asyncio.Lock] = attrs.field(factory=dict, init=False)

    @property
    def _settings(self) -> ModelSettings:
        return self._current.value.models

    @property
    def names(self) -> list[str]:
        """Of those that can be asked."""
        return list(dict.fromkeys(server.store for server in self._fleet.servers.values() if server.up))

    @property
    def share(self) -> str:
        """Of the managed servers' store; see :mod:`obatchd.servers.stores.sharing`."""
        managed = (server for server in self._fleet.servers.values() if isinstance(server, ManagedServer))
        server = next(managed, None)
        return share_of(server.models_dir) if server is not None else ""

    def servers(self, store: str) -> list[Server]:
        return [server for server in self._fleet.servers.values() if server.store == store and server.up]

    def alone_on_host(self, store: str) -> asyncio.Lock:
        """Remote servers of one host may share a store without our knowing: there one pulls after the other."""
        host = next((urlsplit(server.base_url).hostname or "" for server in self.servers(store)), "")
        return self._hosts.setdefault(LOCAL if store == LOCAL else host, asyncio.Lock())

    async def look_up(self, store: str, model: str) -> ModelInfo | None:
        """What a store says of a model; None: it has none of that name."""

        async def ask(api: OllamaApi) -> ModelInfo | None:
            listed = await api.stored(_TIMEOUT_S)
            entry = next((entry for entry in listed if folded(entry.model) == folded(model)), None)
            return None if entry is None else described(model, store, entry, await api.show(model, _TIMEOUT_S))

        return await self._ask(store, f"look for {model}", ask)

    async def listed(self, store: str) -> list[StoredModel]:
        """Every model of a store."""
        return await self._ask(store, "list its models", lambda api: api.stored(_TIMEOUT_S))

    async def show(self, store: str, model: str, *, verbose: bool) -> dict[str, msgspec.Raw] | None:
        """All that a store tells of a model, in Ollama's words; None: it has none of that name."""
        try:
            return await self._ask(
                store, f"look for {model}", lambda api: api.show_all(model, _TIMEOUT_S, verbose=verbose)
            )
        except ModelError:
            return None

    async def remove(self, store: str, model: str) -> None:
        """Delete a model, which idle servers unload first; raises ModelError (``model_not_found``)."""
        for server in self.servers(store):
            if server.loaded is not None and folded(server.loaded.model) == folded(model):
                await server.unload()
        if await self.look_up(store, model) is None:
            words = f"There is no model {model} in the store; obatchctl models list shows those that are there."
            raise ModelError(words, code="model_not_found")
        await self._ask(store, f"remove {model}", lambda api: api.delete(model, _TIMEOUT_S))

    async def _ask(self, store: str, what: str, ask: Callable[[OllamaApi], Awaitable[_T]]) -> _T:
        """Ask the servers of a store one after another until one can be reached."""
        reason = "none is running"
        for server in self.servers(store):
            try:
                return await ask(server.api)
            except ServerError as error:
                if error.code not in ("server_unreachable", "timeout"):
                    raise
                reason = f"{server.id}: {error.message}"
        raise ServerError(f"No server of the store ({store}) can {what}: {reason}.", code="no_server")

    async def pull(self, store: str, model: str) -> AsyncGenerator[PullProgress, None]:
        """Pull or update a model through a server of a store; yields the progress.

        Raises ModelError: ``model_forbidden``, ``model_not_found``, ``pull_failed``, ``no_space``; ServerError
        (``no_server``) where no server of the store runs.
        """
        if self._settings.pull == "never":
            raise ModelError(
                f'Model {model} is not here and models.pull = "never". Put it into the store or change the setting.',
                code="model_forbidden",
            )
        # Imported when needed: with its HTTP client it takes a fifth of the time that the daemon needs to start.
        from obatchd.servers.stores.pulling import ServerLost, pull_through

        key = pull_key(store, model)
        if key in self.pulls:
            words = f"Model {model} is being pulled already; obatchctl status shows how far."
            raise ModelError(words, code="pull_failed")
        servers = self.servers(store)
        if not servers:
            raise ServerError(
                f"No server of the store ({store}) is running, so {model} cannot be pulled.", code="no_server"
            )
        state = self.pulls[key] = PullProgress(model, servers[0].id)
        log.info("pull_started", model=model, server=state.server, store=store)
        try:
            self._check_space(servers[0], model, 0)
            for attempt, server in enumerate(servers[:2]):
                state.server = server.id
                try:
                    async with aclosing(pull_through(server, state)) as steps:
                        async for missing_bytes in steps:
                            self._check_space(server, model, missing_bytes)
                            yield state
                    break
                except ServerLost as error:
                    # Parts stay in the store, so another server of it goes on where this one was lost.
                    if attempt == len(servers[:2]) - 1:
                        raise ModelError(f"Pulling {model} failed: {error}.", code="pull_failed") from error
            state.done = True
            log.info("pull_done", model=model, server=state.server, size_bytes=state.total_bytes)
        finally:
            del self.pulls[key]
        yield state

    def _check_space(self, server: Server, model: str, missing_bytes: int) -> None:
        """Remote stores are on disks that we cannot see; there the server itself names the fault."""
        if not isinstance(server, ManagedServer):
            return
        path = server.models_dir
        while not path.exists():
            path = path.parent
        free_bytes = shutil.disk_usage(path).free
        if free_bytes - missing_bytes < self._settings.pull_margin_bytes:
            raise ModelError(
                f"No space to pull {model}: {missing_bytes / 1e9:.1f} GB are missing, {server.models_dir} has "
                f"{free_bytes / 1e9:.1f} GB free, and {self._settings.pull_margin_bytes / 1e9:.1f} GB must remain "
                "(models.pull_margin_bytes). Remove a model (obatchctl models rm) or set servers.models_dir elsewhere.",
                code="no_space",
            )


def pull_key(store: str, model: str) -> str:
    """Of a download in progress."""
    return model if store == LOCAL else f"{model} on {store}"


def described(name: str, store: str, entry: StoredModel, show: ShownModel) -> ModelInfo:
    """A model as its store lists and shows it."""
    context = next((value for key, value in show.model_info.items() if key.endswith(".context_length")), 0)
    details = entry.details
    return ModelInfo(
        name, entry.digest, details.quantization_level, details.parameter_size, int(context or 0), show.abilities,
        entry.size, store,
    )  # fmt: skip
