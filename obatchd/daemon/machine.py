"""The parts that belong to one machine, its GPUs and servers: the same in a daemon and on a host of many."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from obatchd.dispatch.workers import LOCAL, WorkerMaker
from obatchd.gpucare.watch import GpuWatch
from obatchd.gpus.kernel_log import KMSG
from obatchd.gpus.monitor import RecordStore
from obatchd.gpus.probe import Probe
from obatchd.gpus.source import OpenSource, open_nvml
from obatchd.servers.fleet import Fleet
from obatchd.servers.managed import FactStore
from obatchd.servers.models import ModelKeeper
from obatchd.servers.program import Ollama, Program
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskOwner

_CHANNEL = "OBATCHD_SIMULATOR_CHANNEL"  # see obatchd.simulator.far.channel


class MachineFacts(FactStore, RecordStore, Protocol):
    """Strings that are kept across restarts."""


class Platform(NamedTuple):
    """The source of GPU readings, the kernel's log, and the program of servers."""

    open_source: OpenSource
    kernel_log: Path
    program: Program


def choose_platform(settings: Settings, work: Path) -> Platform:
    """The platform of a daemon; stand-ins share files in ``work``."""
    use = settings.gpus.use
    simulated_gpus = isinstance(use, str) and use.startswith("simulated:")
    if not simulated_gpus and settings.servers.ollama != "simulator":
        return Platform(open_nvml, KMSG, Ollama(settings.servers.ollama))
    from obatchd.simulator.gpus import SimulatedGpus, kernel_log
    from obatchd.simulator.program import SimulatedOllama

    directory = work.absolute() / "simulator"
    open_source: OpenSource = open_nvml
    if simulated_gpus:
        open_source = partial(SimulatedGpus, directory, int(str(use).partition(":")[2]))
    return Platform(open_source, kernel_log(directory), SimulatedOllama(directory))


def choose_workers() -> WorkerMaker:
    """Makes the workers of a daemon: children of its own; in tests they may seem to be far away."""
    if not (trouble := os.environ.get(_CHANNEL)):
        return LOCAL
    from obatchd.simulator.far.channel import far

    return far(LOCAL, trouble)


@dataclass(frozen=True)
class Host:
    """The parts of one machine."""

    probe: Probe
    fleet: Fleet
    models: ModelKeeper
    watch: GpuWatch
    workers: WorkerMaker


async def machine(
    settings: Current[Settings], directory: Path, instance: str, facts: MachineFacts, owner: TaskOwner
) -> Host:
    """The parts of this machine. The probe runs already: which GPUs there are decides what is made.

    ``directory`` is for their files, ``instance`` marks the processes that are started.
    """
    chosen = choose_platform(settings.value, directory)
    probe = Probe(settings.value.gpus, chosen.open_source, owner)
    await probe.start()
    fleet = Fleet(settings, directory, instance, chosen.program, probe, facts, owner)
    watch = GpuWatch(settings, probe, fleet, facts, directory, chosen.kernel_log, owner)
    return Host(probe, fleet, ModelKeeper(settings, fleet), watch, choose_workers())
