"""One Ollama server as the rest of obatchd sees it.

:class:`~obatchd.servers.life.Life` keeps it alive, :class:`Server` holds what is common to those that are: loading and
looking closer. What it means to open and close a server is for :class:`~obatchd.servers.managed.ManagedServer` and
:class:`RemoteServer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

import obatchd.log
from obatchd.errors import ServerError
from obatchd.gpus.model import Gpu, GpuProcess
from obatchd.jobs.model import Profile
from obatchd.ollama.api import OllamaApi
from obatchd.ollama.connections import Broken
from obatchd.servers.life import Life
from obatchd.servers.process import version_warning
from obatchd.servers.states import ServerState
from obatchd.settings import addresses
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

if TYPE_CHECKING:
    from obatchd.servers.managed import ManagedServer

log = obatchd.log.get(__name__)

_HEALTH_TIMEOUT_S = 5.0
_UNLOAD_TIMEOUT_S = 30.0
_BURN_IN = "burn-in"
_OF_TESTS = frozenset({_BURN_IN, "quarantine"})


class ServerListener(Protocol):
    """Hears of the servers of a fleet."""

    def server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        """The state of a server has changed."""


class ServerFace(Protocol):
    """The part of a server that operators see and command, wherever it is kept alive; :class:`Server` has it, and
    :class:`obatchd.cluster.head.server.HostedServer` that of another host.

    Dispatch has its own part (:class:`obatchd.dispatch.link.ServerPort`), and so has a burn-in
    (:class:`obatchd.burnin.run.ports.RunServer`).
    """

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def host(self) -> str:
        """The name of the host that keeps it alive; empty for this one."""
        ...

    @property
    def store(self) -> str:
        """The name of its model store; servers with one name share it."""
        ...

    @property
    def base_url(self) -> str:
        """As its own host reaches it."""
        ...

    @property
    def gpu_label(self) -> str: ...
    @property
    def version(self) -> str:
        """Of Ollama; empty until known."""
        ...

    @property
    def state(self) -> ServerState: ...
    @property
    def reason(self) -> str:
        """Of the latest change of state."""
        ...

    @property
    def down(self) -> str: ...
    @property
    def in_words(self) -> str: ...
    @property
    def up(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    @property
    def holds(self) -> Mapping[str, str]:
        """Who keeps work away, and why."""
        ...

    @property
    def gpus(self) -> tuple[Gpu, ...]: ...
    @property
    def gpu(self) -> Gpu | None: ...
    @property
    def slots(self) -> int: ...
    @property
    def model_vram_bytes(self) -> int | None: ...
    @property
    def unloads_in_s(self) -> float | None: ...
    @property
    def loaded(self) -> Profile | None: ...
    @property
    def loading(self) -> Profile | None: ...
    @property
    def in_flight(self) -> int:
        """Requests that it works on."""
        ...

    @property
    def restarts(self) -> int: ...
    @property
    def pid(self) -> int | None:
        """Of ``ollama serve``, on the machine where we started it."""
        ...

    def resume(self) -> None: ...
    async def try_again(self) -> None: ...
    async def drain(self, reason: str) -> bool: ...
    async def restart(self, reason: str) -> None: ...


class Server(Life):
    """One server."""

    kind: Literal["managed", "remote"]
    host = ""
    pins = True  # it is for us to say how long a model is kept

    def __init__(self, server_id: str, base_url: str, settings: Current[Settings], listener: ServerListener) -> None:
        super().__init__(server_id, settings)
        self.base_url = base_url
        self.gpus: tuple[Gpu, ...] = ()  # as far as we can see them; none for the CPU
        self.slots = 1  # requests it works on at a time
        self.loaded: Profile | None = None
        self.loading: Profile | None = None  # it is being given this one
        self.load_s: float | None = None  # seconds that the latest load took
        self.loads = 0  # of models, since this process began
        self.in_flight = 0  # written by the dispatcher, as is ``idle``
        self.pid: int | None = None
        self.token = ""
        self.version = ""  # of Ollama, empty until known
        self.foreign: list[GpuProcess] = []  # other people's processes that hold memory on its GPU
        self.shared_with = ""  # these in words, when they hold so much that nothing is loaded beside them
        self.shared_cards: frozenset[str] = frozenset()  # UUIDs: what others hold there of unknown size is accepted
        self.driver_trouble = ""  # why a model that is loaded now would not find its GPU
        self._listener = listener
        self._used_s = 0.0  # monotonic time of the latest load or progress
        self._load_lock = asyncio.Lock()

    @property
    def api(self) -> OllamaApi:
        return OllamaApi(self.base_url, self.token)

    @property
    def address(self) -> str:
        """Its host and port, as [ollama_instances] names them."""
        return urlsplit(self.base_url).netloc

    @property
    def store(self) -> str:
        """The name of its model store: all managed servers of a host share one."""
        return self.id

    @property
    def tuning(self) -> ManagedServer | None:
        """Itself, where obatchd finds out the best number of slots."""
        return None

    @property
    def gpu(self) -> Gpu | None:
        """Of a server with one GPU, else None."""
        return self.gpus[0] if len(self.gpus) == 1 else None

    def load_options(self, profile: Profile) -> dict[str, Any]:
        """Load-time options; the same with every request for a profile, because Ollama reloads when one differs."""
        return {"num_ctx": profile.context_length}

    async def _check_health(self) -> None:
        await self.api.version(_HEALTH_TIMEOUT_S)

    def _forget(self) -> None:
        self.loaded = None
        self.pid = None

    def _tell(self, old: ServerState, new: ServerState, reason: str) -> None:
        self._listener.server_changed(self, old, new, reason)

    def begin_test(self, reason: str) -> None:
        """Give the server no batch work until ``end_test``: a burn-in has it for itself."""
        self.hold(_BURN_IN, reason)

    def end_test(self) -> None:
        self.resume(_BURN_IN)

    @property
    def under_test(self) -> bool:
        """Whether a burn-in has the server for itself."""
        return _BURN_IN in self.holds

    @property
    def ready_for_test(self) -> bool:
        """Whether the server is up, and only a burn-in, or a quarantine that it tests again, keeps work away."""
        return self.up and not self.holds.keys() - _OF_TESTS

    def progress(self) -> None:
        super().progress()
        self._used_s = time.monotonic()

    @property
    def ended(self) -> Sequence[float]:
        """When we ended its process lately, seconds since the epoch."""
        return ()

    @property
    def starting_runner(self) -> bool:
        """Whether Ollama is loading a model by itself, as after a crash of its runner."""
        return False

    async def one_token(self, timeout_s: float) -> None:
        """Have one token generated by the loaded model; raises ServerError when it does not come."""
        if (profile := self.loaded) is not None:
            await self.api.one_token(profile.model, self.load_options(profile), timeout_s, pin=self.pins)

    @property
    def model_vram_bytes(self) -> int | None:
        """How much memory of its GPUs the loaded model takes; None where nobody tells."""
        return None

    @property
    def unloads_in_s(self) -> float | None:
        """After how long without work it unloads its model; None: it keeps it."""
        limit_s = self._settings.idle_unload_s
        return max(0.0, self._used_s + limit_s - time.monotonic()) if limit_s else None

    async def fallen_back(self) -> str:
        """Why the loaded model does not compute on the GPU alone any more; empty when it does or nobody can tell."""
        return ""

    async def load(self, profile: Profile) -> None:
        """Give the server a profile; nothing may be in flight.

        Raises ModelError where this server cannot have it: ``model_not_found``, ``does_not_fit``, ``not_supported``,
        ServerError where it could not be loaded now.
        """
        async with self._load_lock:
            if self._as_wanted(profile):
                return
            if not self.up:
                raise ServerError(self.in_words, code="not_ready")
            for by, reason in (("shared", self.shared_with), ("driver", self.driver_trouble)):
                if reason:
                    self.hold(by, reason)
                    raise ServerError(f"{self.id}: {reason}", code=f"gpu_{by}")
            self.loaded, self.loading = None, profile
            try:
                await self._load(profile)
                if self._ending is None or self._ending.done():
                    raise ServerError(f"{self.id} ended while it loaded {profile.model}.", code="not_ready")
                self.loaded, self._used_s = profile, time.monotonic()
                self.loads += 1
            finally:
                self.loading = None

    def _as_wanted(self, profile: Profile) -> bool:
        """Whether there is nothing to load."""
        return self.loaded == profile

    async def _load(self, profile: Profile) -> None:
        """Load a profile and verify it; raises ServerError or ModelError."""
        began_s, timeout_s = time.monotonic(), self._settings.load_timeout_s
        await self.api.load(profile.model, self.load_options(profile), timeout_s, pin=self.pins)
        self.load_s = time.monotonic() - began_s

    async def unload(self) -> None:
        """Free the memory of an idle model."""
        async with self._load_lock:
            profile, self.loaded = self.loaded, None
            if profile is not None and self.pins:
                await self.api.unload(profile.model, _UNLOAD_TIMEOUT_S)

    async def _when_healthy(self) -> None:
        limit_s = self._settings.idle_unload_s
        if limit_s and self.loaded and not self.in_flight and time.monotonic() - self._used_s >= limit_s:
            log.info("model_unloaded", server=self.id, model=self.loaded.model, idle_s=limit_s)
            await self.unload()

    async def _check_version(self, timeout_s: float) -> None:
        known, self.version = self.version, await self.api.version(timeout_s)
        if self.version != known and (warning := version_warning(self.version)):
            log.warning("ollama_version", server=self.id, version=self.version, warning=warning)


class RemoteServer(Server):
    """One entry of ``[ollama_instances]``, which somebody else keeps: it is only used and watched.

    It is told what to load, never for how long to keep it.
    """

    kind = "remote"
    ours = False
    pins = False

    def __init__(self, address: str, settings: Current[Settings], listener: ServerListener) -> None:
        scheme, host, port = addresses.split(address)
        netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        server_id = f"remote-{host.replace(':', '.')}-{port}"
        super().__init__(server_id, f"{scheme}://{netloc}", settings, listener)
        self.slots = settings.value.servers.remote_slots
        self.token = settings.value.servers.remote_token

    async def _open(self) -> None:
        try:
            await self._check_version(_HEALTH_TIMEOUT_S)
        except ServerError as error:
            if not isinstance(error.__cause__, Broken) or self.base_url.startswith("https:"):
                raise
            words = f"{error.message} Does it speak https? Then write https:// in front of its address."
            raise ServerError(words, code=error.code) from error

    async def _close(self) -> None:
        pass
