"""One Ollama server as the rest of obatchd sees it.

:class:`~obatchd.servers.life.Life` keeps it alive, :class:`Server` holds what is common to those that are: loading and
looking closer. What it means to open and close a server is for :class:`~obatchd.servers.managed.ManagedServer` and
:class:`~obatchd.servers.remote.RemoteServer`.
"""

from __future__ import annotations

import abc
import asyncio
import time
from typing import Any, Literal, Protocol

import obatchd.log
from obatchd.errors import ServerError
from obatchd.gpus.model import Gpu, GpuProcess
from obatchd.jobs.model import Profile
from obatchd.ollama.api import OllamaApi
from obatchd.servers.life import Life
from obatchd.servers.process import version_warning
from obatchd.servers.states import ServerState
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

log = obatchd.log.get(__name__)

_HEALTH_TIMEOUT_S = 5.0
_UNLOAD_TIMEOUT_S = 30.0

_BURN_IN = "burn-in"
_OF_TESTS = frozenset({_BURN_IN, "quarantine"})


class ServerListener(Protocol):
    """Hears of the servers of a fleet."""

    def server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        """The state of a server has changed."""


class Server(Life):
    """One server.

    Attributes:
        gpus: its GPUs, as far as we can see them; none for the CPU.
        slots: requests it works on at a time.
        loaded, loading: profile it has, profile it is being given.
        load_s: seconds the latest load took.
        in_flight: written by the dispatcher, as is ``idle``.
        version: of Ollama, empty until known.
        foreign: other people's processes that hold memory on its GPU.
        shared_with: these in words, when they hold so much that nothing is loaded beside them.
        driver_trouble: why a model that is loaded now would not find its GPU.
    """

    kind: Literal["managed", "remote"]

    def __init__(self, server_id: str, base_url: str, settings: Current[Settings], listener: ServerListener) -> None:
        super().__init__(server_id, settings)
        self.base_url = base_url
        self.gpus: tuple[Gpu, ...] = ()
        self.slots = 1
        self.loaded: Profile | None = None
        self.loading: Profile | None = None
        self.load_s: float | None = None
        self.in_flight = 0
        self.pid: int | None = None
        self.token = ""
        self.version = ""
        self.foreign: list[GpuProcess] = []
        self.shared_with = ""
        self.driver_trouble = ""
        self._listener = listener
        self._used_s = 0.0  # monotonic time of the latest load or progress
        self._load_lock = asyncio.Lock()

    @property
    def api(self) -> OllamaApi:
        return OllamaApi(self.base_url, self.token)

    @property
    def gpu(self) -> Gpu | None:
        """Of a server with one GPU, else None."""
        return self.gpus[0] if len(self.gpus) == 1 else None

    # --- what the two kinds differ in -------------------------------------------------------------------------------

    @abc.abstractmethod
    def load_options(self, profile: Profile) -> dict[str, Any]:
        """Load-time options; the same with every request for a profile, because Ollama reloads when one differs."""

    @abc.abstractmethod
    async def _load(self, profile: Profile) -> None:
        """Load a profile and verify it; raises ServerError or ModelError."""

    # --- life -------------------------------------------------------------------------------------------------------

    async def _check_health(self) -> None:
        await self.api.version(_HEALTH_TIMEOUT_S)

    def _forget(self) -> None:
        self.loaded = None
        self.pid = None

    def _tell(self, old: ServerState, new: ServerState, reason: str) -> None:
        self._listener.server_changed(self, old, new, reason)

    # --- tests ------------------------------------------------------------------------------------------------------

    def begin_test(self, reason: str) -> None:
        """Give the server no batch work until ``end_test``: a burn-in has it for itself."""
        self.hold(_BURN_IN, reason)

    def end_test(self) -> None:
        self.resume(_BURN_IN)

    @property
    def under_test(self) -> bool:
        """Whether a burn-in has the server for itself."""
        return _BURN_IN in self._holds

    @property
    def ready_for_test(self) -> bool:
        """Whether the server is up, and only a burn-in, or a quarantine that it tests again, keeps work away."""
        return self.up and not self._holds.keys() - _OF_TESTS

    def progress(self) -> None:
        super().progress()
        self._used_s = time.monotonic()

    # --- looking closer ---------------------------------------------------------------------------------------------

    @property
    def starting_runner(self) -> bool:
        """Whether Ollama is loading a model by itself, as after a crash of its runner."""
        return False

    async def one_token(self, timeout_s: float) -> None:
        """Have one token generated by the loaded model; raises ServerError when it does not come."""
        if (profile := self.loaded) is not None:
            pin = self.kind == "managed"
            await self.api.one_token(profile.model, self.load_options(profile), timeout_s, pin=pin)

    async def fallen_back(self) -> str:
        """Why the loaded model does not compute on the GPU alone any more; empty when it does or nobody can tell."""
        return ""

    # --- profiles ---------------------------------------------------------------------------------------------------

    async def load(self, profile: Profile) -> None:
        """Give the server a profile; nothing may be in flight.

        Raises:
            ModelError: this server cannot have it: ``model_not_found``, ``does_not_fit``, ``not_supported``.
            ServerError: it could not be loaded now.
        """
        async with self._load_lock:
            if self.loaded == profile:
                return
            if not self.up:
                raise ServerError(f"{self.id} is {self.state}: {self.reason}", code="not_ready")
            for by, reason in (("shared", self.shared_with), ("driver", self.driver_trouble)):
                if reason:
                    self.hold(by, reason)
                    raise ServerError(f"{self.id}: {reason}", code=f"gpu_{by}")
            self.loaded, self.loading = None, profile
            try:
                await self._load(profile)
                run_goes_on = self._ending is not None and not self._ending.done()
                if not run_goes_on:
                    raise ServerError(f"{self.id} ended while it loaded {profile.model}.", code="not_ready")
                self.loaded, self._used_s = profile, time.monotonic()
            finally:
                self.loading = None

    async def unload(self) -> None:
        """Free the memory of an idle model."""
        async with self._load_lock:
            profile, self.loaded = self.loaded, None
            if profile is not None and self.kind == "managed":
                await self.api.unload(profile.model, _UNLOAD_TIMEOUT_S)

    async def _when_healthy(self) -> None:
        limit_s = self._settings.idle_unload_s
        if limit_s and self.loaded and not self.in_flight and time.monotonic() - self._used_s >= limit_s:
            log.info("model_unloaded", server=self.id, model=self.loaded.model, idle_s=limit_s)
            await self.unload()

    async def _check_version(self, timeout_s: float) -> None:
        version = await self.api.version(timeout_s)
        if version != self.version:
            self.version = version
            if warning := version_warning(version):
                log.warning("ollama_version", server=self.id, version=version, warning=warning)
