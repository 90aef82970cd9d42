"""A stress process as its parent sees it, whatever becomes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from functools import partial

import numpy
import pytest
from task_support import Failures

from obatchd.burnin.stress import cpu
from obatchd.burnin.stress.cpu import CpuBlock, CpuDevice, Result
from obatchd.burnin.stress.device import Device, OpenDevice
from obatchd.burnin.stress.parent import StressProcess
from obatchd.burnin.stress.protocol import Begin, End, Ended, FromProcess, Opened, Trouble, Work, Wrong
from obatchd.errors import DeviceError

BEGIN = Begin(["compute", "memory"], 90, ["FP32"], 7)
MUCH_BYTES = 2**30


class Hangs:
    """A device that does not return from its first write, whatever signal comes."""

    def written(self, block: CpuBlock) -> None:
        time.sleep(1000)

    def multiplied(self, result: Result, precision: str) -> None: ...


class Stops:
    """A device that stops the whole process, as one in the kernel is stopped."""

    def written(self, block: CpuBlock) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def multiplied(self, result: Result, precision: str) -> None: ...


class Eats:
    """A device that takes the host's memory."""

    def __init__(self) -> None:
        self.eaten: list[object] = []

    def written(self, block: CpuBlock) -> None:
        if len(self.eaten) < 20:
            self.eaten.append(numpy.ones(2**21))

    def multiplied(self, result: Result, precision: str) -> None: ...


class Dies:
    """A device whose driver kills the process."""

    def written(self, block: CpuBlock) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def multiplied(self, result: Result, precision: str) -> None: ...


def hanging() -> Device:
    return CpuDevice(disturbance=Hangs())


def stopping() -> Device:
    return CpuDevice(disturbance=Stops())


def eating() -> Device:
    return CpuDevice(disturbance=Eats(), block_bytes=2**16)


def dying() -> Device:
    return CpuDevice(disturbance=Dies())


def absent() -> Device:
    raise DeviceError("Nothing computes here.", code="no_library")


def broken() -> Device:
    raise KeyError("a defect")


class Rig:
    def __init__(self) -> None:
        self.failures = Failures()
        self.processes: list[StressProcess] = []

    def start(self, open_device: OpenDevice, memory_bytes: int = MUCH_BYTES, silent_s: float = 30.0) -> StressProcess:
        process = StressProcess(
            "stress", open_device, memory_bytes, self.failures, silent_s=silent_s, grace_s=2.0, exit_s=2.0
        )
        process.start()
        self.processes.append(process)
        return process


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    for process in rig.processes:
        await process.end()
    assert rig.failures == []


async def heard(
    process: StressProcess, begin: Begin | None = BEGIN, until: type[FromProcess] | None = None
) -> list[FromProcess]:
    """Frames, with ``begin`` sent after the first; until one of a kind, or until the process is gone."""
    said: list[FromProcess] = []
    async with asyncio.timeout(30):
        async for frame in process.frames():
            said.append(frame)
            if isinstance(frame, Opened) and begin is not None:
                assert process.send(begin)
            if until is not None and isinstance(frame, until):
                break
    return said


async def test_a_healthy_process_works_ends_and_leaves(rig: Rig) -> None:
    process = rig.start(partial(cpu.open_device, total_bytes=2**24, block_bytes=2**20))
    said = await heard(process, until=Work)
    assert isinstance(said[0], Opened)
    assert (said[0].library, said[0].total_bytes) == ("numpy", 2**24)
    assert process.send(End())
    said += await heard(process, None, until=Ended)
    assert not any(isinstance(frame, Wrong | Trouble) for frame in said)
    gone = await process.end()
    assert (gone.code, gone.left_behind) == ("left", False)
    assert process.send(End()) is False


async def test_one_that_hangs_in_the_driver_is_killed(rig: Rig) -> None:
    process = rig.start(hanging, silent_s=3.0)
    said = await heard(process)
    assert process.gone is not None
    assert process.gone == ("hung", "said nothing for 3 s and was killed", False)
    assert not any(isinstance(frame, Work) and frame.bytes_checked for frame in said)


async def test_one_that_hangs_can_be_ended(rig: Rig) -> None:
    process = rig.start(hanging)
    await heard(process, until=Opened)
    gone = await process.end()
    assert (gone.code, gone.left_behind) == ("left", False)


async def test_one_that_takes_too_much_memory_is_killed(rig: Rig) -> None:
    process = rig.start(eating, memory_bytes=150 * 2**20)
    await heard(process)
    assert process.gone is not None
    assert process.gone.code == "memory_limit"
    assert "more than 150.0 MiB, and was killed" in process.gone.words


async def test_one_that_dies_says_of_what(rig: Rig) -> None:
    process = rig.start(dying)
    await heard(process)
    assert process.gone == ("died", "died of signal 9", False)


async def test_one_without_its_library_says_so_and_ends(rig: Rig) -> None:
    process = rig.start(absent)
    said = await heard(process)
    assert said == [Trouble("no_library", "Nothing computes here.")]
    assert process.gone is not None


async def test_one_with_a_defect_says_so_and_ends(rig: Rig) -> None:
    process = rig.start(broken)
    said = await heard(process)
    assert said == [Trouble("defect", "The process that loads the GPU has a defect (KeyError).")]
    assert process.gone == ("died", "died with exit code 1", False)


async def test_one_that_cannot_be_killed_is_left_behind(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    process = rig.start(stopping, silent_s=3.0)
    monkeypatch.setattr("obatchd.child.Child._signal", lambda self: None)
    await heard(process)
    assert process.gone is not None and process.pid is not None
    assert (process.gone.code, process.gone.left_behind) == ("hung", True)
    os.kill(process.pid, signal.SIGKILL)


async def test_one_that_was_never_started_can_be_ended(rig: Rig) -> None:
    process = StressProcess("stress", hanging, MUCH_BYTES, rig.failures)
    assert (await process.end()).code == "left"
