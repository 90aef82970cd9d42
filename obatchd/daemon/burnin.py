"""Connects burn-in runs with the rest of a daemon, or of a host that joined; a part of the composition root."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import attrs

from obatchd.burnin.run.plan import STRESS
from obatchd.burnin.run.ports import BatchLoad, BatchWork, Model
from obatchd.burnin.stress import cublaslt, cuda
from obatchd.burnin.stress.device import OpenDevice
from obatchd.burnin.stress.outside import dcgm, gpu_burn
from obatchd.burnin.stress.parent import StressProcess
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.documents.alarms import Announcer, BurninFinished
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.monitor import MonitorListener, Quarantine
from obatchd.servers.fleet import Fleet
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import Server
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.simulator.cards import stress as stand_ins
from obatchd.tasks import TaskOwner

_HOLD = "burnin"
_FRESH_S = 15.0
_XIDS = 1000  # kept until a run asks for them
_PROGRAMS = {"dcgm": "dcgmi (NVIDIA DCGM)", "gpu-burn": "gpu_burn"}
_STAND_IN = "-simulated"  # ends the driver version of stand-in GPUs
_GRACE_S = 5.0  # for a stress process to end by itself, which it does between two products


class _Told(MonitorListener):
    """XIDs since the daemon began, which wait until a run asks for them."""

    def __init__(self) -> None:
        self.xids: deque[XidEvent] = deque(maxlen=_XIDS)

    def xid(self, event: XidEvent) -> None:
        self.xids.append(event)


class StressFiles(NamedTuple):
    """What stress processes need."""

    simulator: Path  # of stand-in GPUs
    libraries: Sequence[str]  # folders of Ollama that may hold libraries of CUDA


def stress_files(directory: Path, settings: Settings) -> StressFiles:
    """Those of a daemon or host whose own files are in ``directory``."""
    ollama = shutil.which(settings.servers.ollama)
    libraries = [str(Path(ollama).resolve().parent.parent / "lib" / "ollama")] if ollama else []
    return StressFiles(directory.absolute() / "simulator", libraries)


@attrs.define(eq=False)
class DispatchedWork:
    """Batch work of this daemon. Implements :class:`obatchd.burnin.run.ports.BatchWork`."""

    _dispatcher: Dispatcher

    def batch_load(self, server: str) -> BatchLoad:
        link = self._dispatcher.links.get(server)
        if link is None:
            return BatchLoad(0, 0, 0, 0)
        return BatchLoad(link.started, link.requests_done, link.tokens_done, link.attempts_failed)

    def keep_batch_away(self, away: bool) -> None:
        if away:
            self._dispatcher.holds.hold(_HOLD)
        else:
            self._dispatcher.holds.release(_HOLD)


class NoBatchWork:
    """A host that joined knows of no batch work: its head does. Implements :class:`obatchd.burnin.run.ports.BatchWork`.

    Runs that need it, with jobs or exclusive ones, are refused by the head.
    """

    def batch_load(self, server: str) -> BatchLoad:
        return BatchLoad(0, 0, 0, 0)

    def keep_batch_away(self, away: bool) -> None:
        pass


@attrs.define(eq=False)
class BurninHost:
    """This machine as burn-in runs see it. Implements :class:`obatchd.burnin.run.ports.RunHost`."""

    _fleet: Fleet
    _policy: GpuPolicy
    _models: ModelKeeper
    _work: BatchWork
    _settings: Current[Settings]
    _announcer: Announcer
    _files: StressFiles
    _told: _Told = attrs.field(factory=_Told, init=False)

    def __attrs_post_init__(self) -> None:
        self._policy.monitor.listen(self._told)

    @property
    def servers(self) -> Mapping[str, Server]:
        return self._fleet.servers

    @property
    def gpus_of(self) -> Mapping[str, tuple[Gpu, ...]]:
        return {name: server.gpus for name, server in self._fleet.servers.items() if server.gpus}

    def reading(self, gpu: str) -> Reading | None:
        reading = self._policy.watch.probe.readings.get(gpu)
        limit_s = max(_FRESH_S, 3 * self._settings.value.gpus.poll_s)
        return reading if reading is not None and time.time() - reading.at_s < limit_s else None

    def slow_reading(self, card: str) -> SlowReading | None:
        track = self._policy.monitor.tracks.get(card)
        return track.slow if track is not None else None

    def identity(self, gpu: Gpu) -> Identity:
        track = self._policy.monitor.tracks.get(gpu.card)
        return track.identity if track is not None else gpu.as_card()

    def new_xids(self) -> list[XidEvent]:
        xids = list(self._told.xids)
        self._told.xids.clear()
        return xids

    def monitoring_trouble(self) -> str:
        return "" if self._policy.watch.probe.state == "ok" else self._policy.watch.probe.message

    def host_trouble(self) -> str:
        return self._policy.watch.probe.host_trouble[1]

    def settings(self) -> Settings:
        return self._settings.value

    async def ensure_model(self, server: str, model: str) -> None:
        await self._models.ensure_on(self._fleet.servers[server], model)

    def model(self, name: str) -> Model:
        info = self._models.info(name)
        return Model(info.digest, info.context_length) if info else Model("", 0)

    def batch_load(self, server: str) -> BatchLoad:
        return self._work.batch_load(server)

    def keep_batch_away(self, away: bool) -> None:
        self._work.keep_batch_away(away)

    def finished(self, run: str, verdict: str) -> None:
        self._announcer.announce(BurninFinished(run, verdict))

    def missing_loads(self) -> dict[str, str]:
        real = any(not _is_stand_in(gpu) for gpus in self.gpus_of.values() for gpu in gpus)
        if real:
            why = "" if next(cublaslt.candidates(self._files.libraries), None) else cublaslt.MISSING
        else:
            why = "" if find_spec("numpy") else "Stand-in GPUs need numpy for it: pip install 'obatchd[simulator]'."
        missing = dict.fromkeys(STRESS, why) if why else {}
        for load, path in (("dcgm", dcgm.find()), ("gpu-burn", gpu_burn.find())):
            if not path:
                missing[load] = f"{_PROGRAMS[load]} is not installed, or not on the PATH of obatchd."
        return missing

    def stress(self, gpu: str, owner: TaskOwner, peers: Sequence[str] = ()) -> StressProcess:
        found = next(each for gpus in self.gpus_of.values() for each in gpus if each.uuid == gpu)
        opening: OpenDevice = partial(cuda.open_device, gpu, tuple(peers), tuple(self._files.libraries))
        if _is_stand_in(found):
            opening = partial(stand_ins.open_device, self._files.simulator, found.index, tuple(peers))
        limit_bytes = self._settings.value.burnin.stress_memory_mib * 2**20
        name = f"burnin-{'links' if peers else 'stress'}-{found.index}"
        return StressProcess(name, opening, limit_bytes, owner, grace_s=_GRACE_S)

    def quarantine_reason(self, gpu: Gpu) -> str:
        record = self._policy.monitor.records.get(gpu.card)
        return record.quarantine.reason if record is not None and record.quarantine is not None else ""

    def quarantine(self, gpu: Gpu, reason: str, action: str) -> None:
        if not self.quarantine_reason(gpu):
            self._policy.monitor.quarantine(gpu.card, Quarantine(reason, time.time(), "rules", action), False)

    def release(self, gpu: Gpu) -> None:
        self._policy.release(gpu.card)


def _is_stand_in(gpu: Gpu) -> bool:
    """Also where a stand-in of NVML tells it."""
    return gpu.driver.endswith(_STAND_IN)
