"""The models in the stores: found, pulled when allowed, listed and removed.

All managed servers share one store, every remote server has its own. A download is made through one server only:
two servers that pull the same model into one store overwrite each other's parts.
"""

from __future__ import annotations

import asyncio
import difflib
import fnmatch
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import attrs
import msgspec

import obatchd.log
from obatchd.documents import native
from obatchd.documents.models import PullProgress
from obatchd.errors import ModelError, ObatchError, ServerError
from obatchd.model_names import canonical, folded, plain
from obatchd.ollama.api import OllamaApi, ShownModel, StoredModel
from obatchd.servers.fleet import Fleet
from obatchd.servers.known import LOCAL, KnownModels, ModelInfo, as_told
from obatchd.servers.managed import ManagedServer
from obatchd.servers.server import Server
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
    # Downloads in progress by model name; of a remote server, with its id behind it.
    pulls: dict[str, PullProgress] = attrs.field(factory=dict, init=False)
    _known: KnownModels = attrs.field(factory=KnownModels, init=False)
    _running: dict[tuple[str, str], asyncio.Task[ModelInfo]] = attrs.field(factory=dict, init=False)
    _hosts: dict[str, asyncio.Lock] = attrs.field(factory=dict, init=False)

    @property
    def _settings(self) -> ModelSettings:
        return self._current.value.models

    async def close(self) -> None:
        """Give up downloads."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def has(self, server: Server, model: str) -> bool:
        """Whether the model is known to be in the server's store."""
        return self.info(model, server) is not None

    def info(self, model: str, server: Server | None = None) -> ModelInfo | None:
        """Facts about a model that was made sure of before, as one server has it or as any does."""
        return self._known.get(store_of(server), model) if server else self._known.of(model)

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
        if not found:
            # A store that could not be asked may have it: that is no reason to fail a job for good.
            raise next((error for error in failed if not isinstance(error, ModelError)), failed[0])
        for error in failed:
            log.info("model_not_everywhere", model=model, reason=error)
        return found[0]

    async def ensure_on(self, server: Server, model: str) -> ModelInfo:
        """As :meth:`ensure` of one server's store, e.g. of a remote server that came up later."""
        self._check_allowed(model, by_admin=False)
        return await self._ensure_in(store_of(server), model, by_admin=False)

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
        stores = list(dict.fromkeys(store_of(server) for server in self._fleet.servers.values() if server.up))
        if aim and not stores:
            raise ServerError(f"No server is running that could {aim}: obatchctl status shows why.", code="no_server")
        return stores

    def _servers(self, store: str) -> list[Server]:
        return [server for server in self._fleet.servers.values() if store_of(server) == store and server.up]

    async def _ensure_in(self, store: str, model: str, by_admin: bool) -> ModelInfo:
        key = (store, folded(model))
        if (known := self._known.get(store, model)) is not None:
            return known
        if (task := self._running.get(key)) is None:
            task = asyncio.create_task(self._find_or_pull(store, model, by_admin), name=f"ensure-{model}")
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
        async with self._alone_on_host(store):
            if (info := await self._look_up(store, model)) is not None:
                return info
            try:
                async with aclosing(self._pull(store, model)) as progress:
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
        if store != LOCAL and (servers := self._servers(store)):
            return f"Whoever keeps that server can: on the host of {servers[0].address}, ollama pull {model}"
        return f"An administrator can: obatchctl models pull {model}"

    def _alone_on_host(self, store: str) -> asyncio.Lock:
        """Remote servers of one host may share a store without our knowing: there one pulls after the other."""
        host = next((urlsplit(server.base_url).hostname or "" for server in self._servers(store)), "")
        return self._hosts.setdefault(LOCAL if store == LOCAL else host, asyncio.Lock())

    async def _look_up(self, store: str, model: str) -> ModelInfo | None:
        """What a store says of a model; it is known from then on."""

        async def ask(api: OllamaApi) -> ModelInfo | None:
            listed = await api.stored(_TIMEOUT_S)
            entry = next((entry for entry in listed if folded(entry.model) == folded(model)), None)
            return None if entry is None else _describe(model, store, entry, await api.show(model, _TIMEOUT_S))

        if (info := await self._ask(store, f"look for {model}", ask)) is not None:
            self._known.learn(info)
        return info

    async def _ask(self, store: str, what: str, ask: Callable[[OllamaApi], Awaitable[_T]]) -> _T:
        """Ask the servers of a store one after another until one can be reached."""
        reason = "none is running"
        for server in self._servers(store):
            try:
                return await ask(server.api)
            except ServerError as error:
                if error.code not in ("server_unreachable", "timeout"):
                    raise
                reason = f"{server.id}: {error.message}"
        raise ServerError(f"No server of the store ({store}) can {what}: {reason}.", code="no_server")

    # --- pulling ----------------------------------------------------------------------------------------------------

    async def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        """Pull or update a model in the managed servers' store, else in the remote ones; yields the progress.

        Of these only in those that lack it, unless all have it. Raises ModelError: ``model_forbidden`` when pulls are
        switched off, else as :meth:`ensure`.
        """
        stores = self._stores(f"pull {name}")
        lacking = [] if LOCAL in stores else [store for store in stores if await self._look_up(store, name) is None]
        for store in [LOCAL] if LOCAL in stores else lacking or stores:
            async with aclosing(self._pull(store, name)) as progress:
                async for step in progress:
                    yield step
            await self._look_up(store, name)

    async def _pull(self, store: str, model: str) -> AsyncGenerator[PullProgress, None]:
        if self._settings.pull == "never":
            raise ModelError(
                f'Model {model} is not here and models.pull = "never". Put it into the store or change the setting.',
                code="model_forbidden",
            )
        # Imported when needed: with its HTTP client it takes a fifth of the time that the daemon needs to start.
        from obatchd.servers.pulling import ServerLost, pull_through

        key = model if store == LOCAL else f"{model} on {store}"
        if key in self.pulls:
            words = f"Model {model} is being pulled already; obatchctl status shows how far."
            raise ModelError(words, code="pull_failed")
        servers = self._servers(store)
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

    # --- listing and removing ---------------------------------------------------------------------------------------

    async def list_models(self) -> list[ModelInfo]:
        """Every model of every store that can be asked; ``capabilities`` and ``context_length`` are left out."""
        return [_describe(entry.model, store, entry, ShownModel()) for store, entry in await self._listed()]

    async def stored(self) -> list[tuple[str, native.StoredModel]]:
        """The same as Ollama tells it, each with its store."""
        return [(store, as_told(entry)) for store, entry in await self._listed()]

    async def _listed(self) -> list[tuple[str, StoredModel]]:
        found: list[tuple[str, StoredModel]] = []
        for store in self._stores():
            try:
                listed = await self._ask(store, "list its models", lambda api: api.stored(_TIMEOUT_S))
            except ServerError as error:
                log.warning("models_not_listed", store=store, reason=error.message)
                continue
            found += [(store, entry) for entry in listed]
            self._known.compare(store, {entry.model: entry.digest for entry in listed})
        return found

    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw] | None:
        """All that a store tells of a model, in Ollama's words; None: none has it.

        Raises ServerError where no store can be asked.
        """
        for store in self._stores(f"look for {model}"):
            try:
                return await self._ask(
                    store, f"look for {model}", lambda api: api.show_all(model, _TIMEOUT_S, verbose=verbose)
                )
            except ModelError:
                continue
        return None

    async def digest(self, model: str) -> str | None:
        """The digest of a model in the first store that has it, None where none has; waits for the first server."""
        while not self._stores():
            await asyncio.sleep(_FIRST_SERVER_S)
        found = (info.digest for info in await self.list_models() if folded(info.name) == folded(model))
        return next(found, None)

    async def remove(self, name: str) -> None:
        """Delete a model from the managed servers' store; idle servers unload it. Remote stores are never touched.

        Raises ModelError: ``model_not_found``, or ``model_in_use`` while a server works with it; ServerError
        (``no_server``) where no managed server runs.
        """
        if (stores := self._stores()) and LOCAL not in stores:
            words = f"Only remote servers run; obatchd removes nothing there: run `ollama rm {name}` on their hosts."
            raise ServerError(words, code="no_server")
        users = [
            server
            for server in self._servers(LOCAL)
            if folded(name) in {folded(profile.model) for profile in (server.loaded, server.loading) if profile}
        ]
        if busy := [server.id for server in users if server.loading or server.in_flight]:
            words = f"Model {name} is at work on {', '.join(busy)}. Wait for its jobs, or cancel them: obatchctl jobs."
            raise ModelError(words, code="model_in_use")
        for server in users:
            await server.unload()
        if await self._look_up(LOCAL, name) is None:
            words = f"There is no model {name} in the store; obatchctl models list shows those that are there."
            raise ModelError(words, code="model_not_found")
        await self._ask(LOCAL, f"remove {name}", lambda api: api.delete(name, _TIMEOUT_S))
        self._known.forget(name, LOCAL)
        log.info("model_removed", model=name)


def store_of(server: Server) -> str:
    """The name of a server's model store."""
    return LOCAL if server.kind == "managed" else server.id


def _describe(name: str, store: str, entry: StoredModel, show: ShownModel) -> ModelInfo:
    context = next((value for key, value in show.model_info.items() if key.endswith(".context_length")), 0)
    details = entry.details
    return ModelInfo(
        name, entry.digest, details.quantization_level, details.parameter_size, int(context or 0), show.abilities,
        entry.size, store,
    )  # fmt: skip
