"""The probe as the daemon sees it. Its process is real, what it reads is scripted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu, Reading
from obatchd.gpus.probe import REPLACEMENTS, Probe
from obatchd.settings import GpuSettings

GPU = Gpu("GPU-1", "Test", 0, "00000000:01:00.0", 2**30, "1.0")


class Scripted:
    """Lists one GPU and does what its script says at the n-th reading of its process."""

    def __init__(self, script: Callable[[int], None]) -> None:
        self._script = script
        self._count = 0

    def gpus(self) -> list[Gpu]:
        return [GPU]

    def readings(self) -> list[Reading]:
        self._count += 1
        self._script(self._count)
        return [Reading(GPU.uuid, time.time(), temp_c=self._count)]


def hang_at_second(count: int) -> None:
    if count == 2:
        time.sleep(3600)


def die_at_second(count: int) -> None:
    if count == 2:
        os._exit(1)


def fine(count: int) -> None:
    pass


def scripted(script: Callable[[int], None]) -> Scripted:
    return Scripted(script)


def no_driver() -> Scripted:
    raise GpuError("No NVIDIA driver on this host.", code="no_driver")


def hang() -> Scripted:
    time.sleep(3600)
    return Scripted(fine)


async def wait_for(condition: Callable[[], object], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def settings() -> GpuSettings:
    return GpuSettings(poll_s=0.02)


async def test_readings_arrive_and_the_process_ends_with_the_probe() -> None:
    probe = Probe(settings(), open_source=partial(scripted, fine))
    await probe.start()
    assert (probe.state, probe.gpus) == ("ok", [GPU])
    await wait_for(lambda: probe.readings and (probe.readings["GPU-1"].temp_c or 0) > 2)
    pid = probe.pid
    assert pid is not None
    await probe.stop()
    await wait_for(lambda: not alive(pid))


async def test_no_driver_is_absence() -> None:
    probe = Probe(settings(), open_source=no_driver)
    await probe.start()
    assert (probe.state, probe.code, probe.gpus) == ("absent", "no_driver", [])
    assert "No NVIDIA driver" in probe.message
    await probe.stop()


async def test_start_returns_when_the_driver_hangs() -> None:
    probe = Probe(settings(), open_source=hang, start_timeout_s=0.3)
    await probe.start()
    assert (probe.state, probe.gpus) == ("unknown", [])
    pid = probe.pid
    await probe.stop()
    if pid is not None:
        await wait_for(lambda: not alive(pid))  # although the call into the driver has not returned


async def test_a_silent_probe_is_replaced_a_few_times_then_given_up() -> None:
    probe = Probe(settings(), open_source=partial(scripted, hang_at_second), silent_s=1.0)
    await probe.start()
    assert probe.state == "ok"
    first = probe.pid
    assert first is not None
    await wait_for(lambda: probe.replacements >= 1)
    await wait_for(lambda: not alive(first))
    await wait_for(lambda: "given up" in probe.message)
    assert (probe.state, probe.replacements, probe.readings) == ("unknown", REPLACEMENTS, {})
    await probe.stop()


async def test_a_probe_that_dies_is_replaced() -> None:
    probe = Probe(settings(), open_source=partial(scripted, die_at_second))
    await probe.start()
    await wait_for(lambda: "given up" in probe.message)
    assert probe.replacements == REPLACEMENTS and "died" in probe.message
    await probe.stop()


async def test_simulated_gpus(tmp_path: Path) -> None:
    probe = Probe(GpuSettings(use="simulated:3", poll_s=0.05), tmp_path)
    await probe.start()
    assert probe.state == "ok" and [gpu.index for gpu in probe.gpus] == [0, 1, 2]
    await wait_for(lambda: len(probe.readings) == 3)
    await probe.stop()
