"""What a burn-in needs of the rest of the daemon, as interfaces; the composition root connects them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from obatchd.burnin.run.load import LoadedServer
from obatchd.gpus.model import Gpu, GpuProcess, Identity, Reading, SlowReading, XidEvent
from obatchd.jobs.model import Profile
from obatchd.servers.states import ServerState
from obatchd.settings.tables.gpu_health import GpuHealthSettings


class RunServer(LoadedServer, Protocol):
    """The part of a server that a run uses; :class:`obatchd.servers.server.Server` has it."""

    state: ServerState
    reason: str
    loaded: Profile | None
    restarts: int
    version: str
    idle: asyncio.Event
    foreign: list[GpuProcess]

    async def load(self, profile: Profile) -> None: ...
    @property
    def holds(self) -> dict[str, str]: ...
    def hold(self, by: str, reason: str) -> None: ...
    def resume(self, by: str) -> None: ...
    async def quarantine(self, reason: str) -> None: ...
    def release(self) -> None: ...


class BatchLoad(NamedTuple):
    """What batch work did on a server since the daemon began, and how many slots it holds now."""

    in_slots: int
    requests: int
    tokens: int
    failed: int


class Model(NamedTuple):
    """What is known of a model; ``context_length`` is 0 where it is not told."""

    digest: str
    context_length: int


@dataclass(frozen=True)
class Surroundings:
    """The daemon as a run sees it.

    Attributes:
        servers: by id.
        gpus_of: the GPUs of each server, by server id.
        reading, slow: the latest of a GPU or slice by UUID; None when there is none that is fresh.
        identity: of the card of a GPU or slice.
        xids: takes the XIDs seen since it was called last.
        monitoring: why nobody can watch the GPUs; empty when all is well.
        host_trouble: what is wrong with the driver of the whole host; empty when nothing is.
        ensure_model: ``(server id, model)``: makes sure of it; raises ModelError.
        model: what is known of a model.
        batch: what batch work does on a server.
        keep_batch_away: hold all batch work of the host, or let it go on.
        finished: a run has ended: its id and its verdict.
        quarantined: why a GPU is in quarantine; empty when it is not.
        quarantine: take a GPU out of use: it, why, and what to do.
        release: end the quarantine of a GPU that passed its re-test.
    """

    servers: Mapping[str, RunServer]
    gpus_of: Mapping[str, tuple[Gpu, ...]]
    reading: Callable[[str], Reading | None]
    slow: Callable[[str], SlowReading | None]
    identity: Callable[[Gpu], Identity]
    xids: Callable[[], list[XidEvent]]
    monitoring: Callable[[], str]
    host_trouble: Callable[[], str]
    health: Callable[[], GpuHealthSettings]
    ensure_model: Callable[[str, str], Awaitable[object]]
    model: Callable[[str], Model]
    batch: Callable[[str], BatchLoad]
    keep_batch_away: Callable[[bool], None]
    finished: Callable[[str, str], None]
    quarantined: Callable[[Gpu], str]
    quarantine: Callable[[Gpu, str, str], None]
    release: Callable[[Gpu], None]
