"""The GPUs and the Ollama of this host, or stand-ins, as the settings say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from obatchd.gpus.kernel_log import KMSG
from obatchd.gpus.source import OpenSource, open_nvml
from obatchd.servers.program import Ollama, Program
from obatchd.settings.settings import Settings


class Platform(NamedTuple):
    """The source of GPU readings, the kernel's log, and the program of servers."""

    open_source: OpenSource
    kernel_log: Path
    program: Program


def choose(settings: Settings, work: Path) -> Platform:
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
