"""Stand-in GPUs whose utilisation, temperature and power follow the load of the stand-in server on them.

The server (:mod:`obatchd.simulator.ollama`) is the only one that knows its load, so it writes it to a file per GPU;
whoever reads the file works out the present from the last change. Nothing has to be written, and nobody has to wake
up, while the load stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from pathlib import Path

import msgspec

from obatchd.gpus.model import Gpu, GpuProcess, Reading

MEMORY_BYTES = 80 * 1024**3
DRIVER = "000.00-simulated"
POWER_LIMIT_W = 350.0

_WRITE_PAUSE_S = 0.2
_UTILISATION_TAU_S = 0.7  # time constants of the running averages
_POWER_TAU_S = 2.0
_TEMP_TAU_S = 20.0
_IDLE_TEMP_C, _BUSY_TEMP_C = 35, 75
_IDLE_POWER_W, _BUSY_POWER_W = 60.0, 300.0
_FULL_PERCENT = 98  # what all slots busy looks like; a real GPU seldom shows 100


def simulated_uuid(index: int) -> str:
    """The UUID of stand-in GPU ``index``, the same on every machine."""
    return f"GPU-5150a7ed-0000-4000-8000-{index:012d}"


def simulated_gpus(count: int) -> list[Gpu]:
    """The first ``count`` stand-in GPUs, in index order."""
    return [
        Gpu(
            uuid=simulated_uuid(index),
            name="Simulated GPU 80GB",
            index=index,
            pci_bus_id=f"00000000:{index + 1:02X}:00.0",
            memory_bytes=MEMORY_BYTES,
            driver=DRIVER,
        )
        for index in range(count)
    ]


class Averages(msgspec.Struct):
    """Running averages of the busy share (0 to 1) of a server's slots."""

    utilisation: float = 0.0
    power: float = 0.0
    temp: float = 0.0

    def advance(self, share: float, elapsed_s: float) -> None:
        """Let ``elapsed_s`` pass with a share of ``share`` of the slots busy."""
        self.utilisation = share + (self.utilisation - share) * math.exp(-elapsed_s / _UTILISATION_TAU_S)
        self.power = share + (self.power - share) * math.exp(-elapsed_s / _POWER_TAU_S)
        self.temp = share + (self.temp - share) * math.exp(-elapsed_s / _TEMP_TAU_S)


class Load(msgspec.Struct):
    """What a stand-in server last wrote about itself."""

    pid: int
    slots: int
    busy: int
    vram_bytes: int
    averages: Averages
    monotonic_s: float  # CLOCK_MONOTONIC is one clock for all processes of a machine
    runner_pid: int | None = None


class LoadReporter:
    """Writes the load of this process's server to ``<directory>/<uuid>.json`` whenever it changes.

    At most five times a second, and always once after the last change. Used inside a running event loop.
    """

    def __init__(self, directory: Path, uuids: list[str], slots: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._paths = [directory / f"{uuid}.json" for uuid in uuids]
        self._load = Load(os.getpid(), slots, 0, 0, Averages(), time.monotonic())
        for path in self._paths:  # a restarted server's GPU is still warm
            if (earlier := _read(path)) is not None:
                self._load.averages = _present(earlier).averages
        self._written_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._write()

    def busy(self, slots: int) -> None:
        """Slots that produce tokens now."""
        load, now_s = self._load, time.monotonic()
        load.averages.advance(load.busy / load.slots, now_s - load.monotonic_s)
        load.monotonic_s, load.busy = now_s, slots
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
        data = msgspec.json.encode(share_of_memory)
        for path in self._paths:
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            with contextlib.suppress(FileNotFoundError):  # the directory of a finished test
                temporary.write_bytes(data)
                temporary.replace(path)


class SimulatedGpus:
    """The stand-in of :class:`obatchd.gpus.nvml.Nvml`.

    Args:
        directory: where the servers write their load (``OBATCHD_SIMULATOR_GPU_DIR``).
        count: how many GPUs there are.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self._directory = directory
        self._gpus = simulated_gpus(count)

    def gpus(self) -> list[Gpu]:
        return list(self._gpus)

    def readings(self) -> list[Reading]:
        return [self._reading(gpu) for gpu in self._gpus]

    def _reading(self, gpu: Gpu) -> Reading:
        load = _read(self._directory / f"{gpu.uuid}.json")
        load = Load(0, 1, 0, 0, Averages(), time.monotonic()) if load is None else _present(load)
        processes = []
        if load.vram_bytes and load.runner_pid is not None and _alive(load.runner_pid):
            processes = [GpuProcess(load.runner_pid, load.vram_bytes)]
        averages = load.averages
        return Reading(
            uuid=gpu.uuid,
            at_s=time.time(),
            utilisation_percent=round(_FULL_PERCENT * averages.utilisation),
            memory_used_bytes=load.vram_bytes if processes else 0,
            memory_total_bytes=gpu.memory_bytes,
            temp_c=round(_IDLE_TEMP_C + (_BUSY_TEMP_C - _IDLE_TEMP_C) * averages.temp),
            power_w=round(_IDLE_POWER_W + (_BUSY_POWER_W - _IDLE_POWER_W) * averages.power, 1),
            power_limit_w=POWER_LIMIT_W,
            processes=processes,
        )


def _read(path: Path) -> Load | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Load)
    except FileNotFoundError:
        return None


def _present(load: Load) -> Load:
    """``load`` with its averages brought from its last change to now."""
    now_s = time.monotonic()
    busy = load.busy if _alive(load.pid) else 0
    # A file from before a reboot has a monotonic time in the future.
    load.averages.advance(busy / load.slots, max(0.0, now_s - load.monotonic_s))
    load.monotonic_s, load.busy = now_s, busy
    return load


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")
