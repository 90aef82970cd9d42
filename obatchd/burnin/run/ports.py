"""The daemon as a burn-in sees it, as interfaces; the composition root connects them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from obatchd.burnin.stress.parent import Gone
from obatchd.burnin.stress.protocol import FromProcess, ToProcess
from obatchd.gpus.model import Gpu, GpuProcess, Identity, Reading, SlowReading, XidEvent
from obatchd.jobs.model import Profile
from obatchd.ollama.api import OllamaApi
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskOwner


class RunServer(Protocol):
    """The part of a server that a run uses; :class:`obatchd.servers.server.Server` has it."""

    id: str
    slots: int
    reason: str
    loaded: Profile | None
    restarts: int
    version: str
    idle: asyncio.Event
    foreign: list[GpuProcess]

    @property
    def state(self) -> str:
        """In a word, for people."""

    @property
    def in_words(self) -> str:
        """The state in a sentence for people, with the reason."""

    @property
    def ended(self) -> Sequence[float]:
        """When we ended its process lately, seconds since the epoch."""

    @property
    def out_of_use(self) -> bool:
        """Whether nobody should wait for it."""

    @property
    def ready_for_test(self) -> bool:
        """Whether the server is up, and only a run, or a quarantine that it tests again, keeps work away."""

    @property
    def api(self) -> OllamaApi: ...
    def load_options(self, profile: Profile) -> dict[str, Any]: ...
    def progress(self) -> None: ...
    def fault(self, reason: str) -> None: ...
    async def load(self, profile: Profile) -> None: ...
    async def unload(self) -> None: ...
    def begin_test(self, reason: str) -> None: ...
    def end_test(self) -> None: ...
    async def quarantine(self, reason: str) -> None: ...
    def release(self) -> None: ...


class StressProcess(Protocol):
    """The process that loads one GPU; :class:`obatchd.burnin.stress.parent.StressProcess`."""

    gone: Gone | None

    def start(self) -> None: ...
    def send(self, message: ToProcess) -> bool: ...
    def frames(self) -> AsyncIterator[FromProcess]: ...
    async def end(self) -> Gone: ...


class Load(Protocol):
    """Loads of the plan on one server or GPU."""

    @property
    def carries(self) -> Collection[str]:
        """The names of those that it can do."""

    async def begin(self, loads: Sequence[str]) -> None:
        """Do these of them from now on; returns when they run, or cannot, or take too long to begin."""

    async def rest(self) -> None:
        """Do nothing any more; returns when that is so, or takes too long."""

    def look(self) -> None:
        """Called about once a second: count the time since the last call, and do what is due."""

    async def close(self) -> None:
        """End for good."""


class Tested(NamedTuple):
    """A server of a run, the UUIDs of its GPUs, and their kind.

    Servers of one kind get the same context and the same prompts, so that they can be compared.
    """

    server: RunServer
    gpus: list[str]
    kind: str


class BatchLoad(NamedTuple):
    """Work of batch jobs on a server since the daemon began, and the slots that they hold now."""

    in_slots: int
    requests: int
    tokens: int
    failed: int


class BatchWork(Protocol):
    """Batch jobs beside a run: :class:`obatchd.daemon.burnin.DispatchedWork`, or of a host that joined none."""

    def batch_load(self, server: str) -> BatchLoad:
        """The batch work of a server."""

    def keep_batch_away(self, away: bool) -> None:
        """Hold all batch work of the host, or let it go on."""


class Model(NamedTuple):
    """Facts about a model; ``context_length`` is 0 where it is unknown."""

    digest: str
    context_length: int


class RunHost(Protocol):
    """The daemon as a run sees it; :class:`obatchd.daemon.burnin.BurninHost`."""

    @property
    def servers(self) -> Mapping[str, RunServer]:
        """By id."""

    @property
    def gpus_of(self) -> Mapping[str, tuple[Gpu, ...]]:
        """The GPUs of each server that has some, by server id."""

    def reading(self, gpu: str) -> Reading | None:
        """The latest of a GPU or slice by UUID; None when there is none that is fresh."""

    def slow_reading(self, card: str) -> SlowReading | None:
        """The latest of a card by UUID."""

    def identity(self, gpu: Gpu) -> Identity:
        """Of the card of a GPU or slice."""

    def new_xids(self) -> list[XidEvent]:
        """The XIDs seen since the last call."""

    def monitoring_trouble(self) -> str:
        """Why nobody can watch the GPUs; empty when all is well."""

    def host_trouble(self) -> str:
        """The fault of the driver of the whole host; empty when there is none."""

    def settings(self) -> Settings:
        """Those in force."""

    async def ensure_model(self, server: str, model: str) -> None:
        """Make sure of a model at the server with this id; raises ModelError."""

    def model(self, name: str) -> Model:
        """Facts about a model."""

    def batch_load(self, server: str) -> BatchLoad:
        """The batch work of a server."""

    def keep_batch_away(self, away: bool) -> None:
        """Hold all batch work of the host, or let it go on."""

    def finished(self, run: str, verdict: str) -> None:
        """A run has ended."""

    def missing_loads(self) -> Mapping[str, str]:
        """The loads that this host cannot have, each with the reason and what to install."""

    def stress(self, gpu: str, owner: TaskOwner, peers: Sequence[str] = ()) -> StressProcess:
        """A process, not started yet, for the GPU or slice with this UUID.

        With ``peers`` it sees these other GPUs, too, and a fault of theirs may hit it: to measure links only.
        """

    def quarantine_reason(self, gpu: Gpu) -> str:
        """Why a GPU is in quarantine; empty when it is not."""

    def quarantine(self, gpu: Gpu, reason: str, action: str) -> None:
        """Take a GPU out of use; ``action`` says what to do about it."""

    def release(self, gpu: Gpu) -> None:
        """End the quarantine of a GPU that passed its test."""
