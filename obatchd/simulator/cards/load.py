"""The load of a stand-in GPU: whoever loads it writes so to a file, and whoever reads it works out the present.

Nothing has to be written, and nobody has to wake up, while the load stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

_WRITE_PAUSE_S = 0.2
_UTILISATION_TAU_S = 0.7  # time constants of the running averages
_POWER_TAU_S = 2.0
_TEMP_TAU_S = 20.0


class Averages(msgspec.Struct):
    """Running averages of the busy share (0 to 1) of a GPU, and of the power that this takes.

    A power of 1 is that of a server whose slots are all busy; other loads may take more.
    """

    utilisation: float = 0.0
    power: float = 0.0
    temp: float = 0.0
    powered_s: float = 0.0  # integral of ``power`` over time

    def advance(self, share: float, elapsed_s: float, power: float | None = None) -> None:
        """Let ``elapsed_s`` pass with a share of ``share`` busy, and with that ``power``, else as much as ``share``."""
        power = share if power is None else power
        self.utilisation = share + (self.utilisation - share) * math.exp(-elapsed_s / _UTILISATION_TAU_S)
        above, rest = self.power - power, math.exp(-elapsed_s / _POWER_TAU_S)
        self.powered_s += power * elapsed_s + above * _POWER_TAU_S * (1 - rest)
        self.power = power + above * rest
        self.temp = power + (self.temp - power) * math.exp(-elapsed_s / _TEMP_TAU_S)


class Load(msgspec.Struct):
    """The latest note of a stand-in server about itself, or of a stress process."""

    pid: int
    slots: int
    busy: int
    vram_bytes: int
    averages: Averages
    monotonic_s: float  # CLOCK_MONOTONIC is one clock for all processes of a machine
    runner_pid: int | None = None
    power: float | None = None  # while it is busy; None: as its share of busy slots

    def advance(self) -> None:
        """Bring the averages from the last change to now."""
        now_s = time.monotonic()
        # A file from before a reboot has a monotonic time in the future.
        power = self.power if self.busy else None
        self.averages.advance(self.busy / self.slots, max(0.0, now_s - self.monotonic_s), power)
        self.monotonic_s = now_s

    @property
    def holder(self) -> int | None:
        """The process that holds the memory, if there is one that lives."""
        return self.runner_pid if self.vram_bytes and self.runner_pid and is_alive(self.runner_pid) else None


class Total(NamedTuple):
    """All loads of one GPU together; shares as in :class:`Averages`."""

    utilisation: float
    power: float
    temp: float
    powered_s: float
    held: list[tuple[int, int]]  # process, bytes of memory


class LoadReporter:
    """Writes the load of this process's server to ``<directory>/<uuid>.json`` whenever it changes.

    At most five times a second, and always once after the last change. Used inside a running event loop.
    """

    def __init__(self, directory: Path, uuids: list[str], slots: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._paths = [server_file(directory, uuid) for uuid in uuids]
        self._load = Load(os.getpid(), slots, 0, 0, Averages(), time.monotonic())
        for path in self._paths:  # a restarted server's GPU is still warm
            if (earlier := present(path)) is not None:
                self._load.averages = earlier.averages
        self._written_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._write()

    def busy(self, slots: int) -> None:
        """Slots that produce tokens now."""
        self._load.advance()
        self._load.busy = slots
        self._changed()

    def memory(self, vram_bytes: int, runner_pid: int | None) -> None:
        """Memory that the server's models hold, and the process that holds it."""
        self._load.vram_bytes, self._load.runner_pid = vram_bytes, runner_pid
        self._changed()

    def _changed(self) -> None:
        if self._timer is None:
            wait_s = max(0.0, self._written_s + _WRITE_PAUSE_S - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._write)

    def _write(self) -> None:
        self._timer, self._written_s = None, time.monotonic()
        share_of_memory = msgspec.structs.replace(self._load, vram_bytes=self._load.vram_bytes // len(self._paths))
        for path in self._paths:
            write(path, share_of_memory)


class StressReporter:
    """Writes the load of a stress process on one GPU to ``<directory>/<uuid>.stress.json`` when it changes."""

    def __init__(self, directory: Path, uuid: str) -> None:
        self._path = stress_file(directory, uuid)
        earlier = present(self._path)
        averages = earlier.averages if earlier else Averages()
        self._load = Load(os.getpid(), 1, 0, 0, averages, time.monotonic(), os.getpid(), 0.0)

    def tell(self, *, busy: bool, power: float, memory_bytes: int) -> None:
        """Whether anything computes now, the power that takes, and the memory that is held."""
        load = self._load
        if (load.busy, load.power, load.vram_bytes) == (int(busy), power, memory_bytes):
            return
        load.advance()
        load.busy, load.power, load.vram_bytes = int(busy), power, memory_bytes
        write(self._path, load)


def server_file(directory: Path, uuid: str) -> Path:
    return directory / f"{uuid}.json"


def stress_file(directory: Path, uuid: str) -> Path:
    return directory / f"{uuid}.stress.json"


def write(path: Path, load: Load) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):  # the directory of a finished test
        temporary.write_bytes(msgspec.json.encode(load))
        temporary.replace(path)


def present(path: Path) -> Load | None:
    """The load in a file as it is now; None where there is no file."""
    try:
        load = msgspec.json.decode(path.read_bytes(), type=Load)
    except FileNotFoundError:
        return None
    load.busy = load.busy if is_alive(load.pid) else 0
    load.advance()
    return load


def total(directory: Path, uuid: str) -> Total:
    """What a GPU does now."""
    found = [load for path in (server_file(directory, uuid), stress_file(directory, uuid)) if (load := present(path))]
    averages = [load.averages for load in found]
    return Total(
        utilisation=min(1.0, sum(each.utilisation for each in averages)),
        power=sum(each.power for each in averages),
        temp=sum(each.temp for each in averages),
        powered_s=sum(each.powered_s for each in averages),
        held=[(holder, load.vram_bytes) for load in found if (holder := load.holder)],
    )


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")
