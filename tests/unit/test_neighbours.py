"""Other people's processes on our GPUs, as they are seen from this host."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from settings_support import in_force

from obatchd.gpus.model import Gpu, GpuProcess, Reading
from obatchd.servers.managed import Host, ManagedServer
from obatchd.servers.neighbours import Neighbours

GPUS = [Gpu(f"GPU-{n}", "H100", n, f"0000:0{n}:00.0", 80 * 2**30, "570.1") for n in range(2)]
GIB = 2**30
OTHERS = os.getppid()  # a process that is not ours


class Shared:
    """A server on GPUs on which processes of others hold memory, and the look at them."""

    def __init__(self, work: Path, held: dict[int, int | None], **gpus: Any) -> None:
        settings, anything = in_force(gpus={"poll_s": 0.01, "shared_bytes": GIB} | gpus), cast(Any, None)
        host = Host(settings, work, "mine", anything, anything, {}, anything, cpu_servers=0, models_dir=work)
        self.server = ManagedServer("group0", GPUS, 1, host)
        self.readings: dict[str, Reading] = {}
        self.hold(held)
        probe = cast(Any, SimpleNamespace(readings=self.readings, host_trouble=("", "")))
        self._watch = Neighbours(probe, "mine", settings).watch([self.server])

    def hold(self, held: dict[int, int | None]) -> None:
        for number, gpu in enumerate(GPUS):
            processes = [GpuProcess(OTHERS, held[number])] if number in held else []
            self.readings[gpu.uuid] = Reading(gpu.uuid, 0.0, processes=processes)

    async def until(self, found: Callable[[str], bool]) -> str:
        """What is in the way, when it is so for the first time."""
        async with asyncio.timeout(5):
            while not self.server.foreign or not found(self.server.shared_with):
                await asyncio.sleep(0.005)
        return self.server.shared_with

    async def __aenter__(self) -> Shared:
        self._watching = asyncio.create_task(self._watch)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)


async def test_memory_of_unknown_size_keeps_models_away_and_says_how_it_is_accepted(tmp_path: Path) -> None:
    async with Shared(tmp_path, {1: None}) as shared:
        words = await shared.until(bool)
        assert "the driver does not tell how much" in words and f"pid {OTHERS}" in words
        assert "obatchctl gpus share 1 (or gpus.share_unknown = true in the configuration)" in words
        shared.server.shared_cards = frozenset({"GPU-1"})
        await shared.until(lambda words: not words)
        shared.server.shared_cards = frozenset()
        await shared.until(bool)


async def test_work_goes_on_when_the_others_have_left(tmp_path: Path) -> None:
    async with Shared(tmp_path, {0: 9 * GIB}) as shared:
        await shared.until(bool)
        async with asyncio.timeout(5):
            while "shared" not in shared.server.holds:
                await asyncio.sleep(0.005)
            shared.hold({})
            while shared.server.holds or shared.server.foreign:
                await asyncio.sleep(0.005)


async def test_what_is_accepted_on_one_gpu_of_a_group_counts_on_the_other(tmp_path: Path) -> None:
    async with Shared(tmp_path, {0: None, 1: None}) as shared:
        assert "gpus share 0 and obatchctl gpus share 1" in await shared.until(bool)
        shared.server.shared_cards = frozenset({"GPU-0"})
        assert "there is room: obatchctl gpus share 1 " in await shared.until(lambda words: "share 0" not in words)


@pytest.mark.parametrize(("held", "free"), [({0: None}, True), ({0: GIB}, True), ({0: GIB + 1, 1: None}, False)])
async def test_a_setting_accepts_what_is_unknown_and_not_what_is_too_much(
    tmp_path: Path, held: dict[int, int | None], free: bool
) -> None:
    async with Shared(tmp_path, held, share_unknown=True) as shared:
        words = await shared.until(lambda words: bool(words) != free)
        assert "does not tell" not in words


async def test_nothing_is_said_of_an_accepted_process_that_turns_out_to_be_large(tmp_path: Path) -> None:
    async with Shared(tmp_path, {0: None}, share_unknown=True) as shared:
        await shared.until(lambda words: not words)
        shared.hold({0: 9 * GIB})
        assert (await shared.until(bool)).endswith("9.0 GiB")


async def test_a_process_that_may_not_be_looked_at_is_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(process: psutil.Process) -> str:  # /proc with hidepid=1: the process is there, its files cannot be read
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "status", hidden)
    settings, anything = in_force(gpus={"poll_s": 0.1, "shared_bytes": 2**30}), cast(Any, None)
    gpus = [Gpu(f"GPU-{n}", "H100", n, f"0000:0{n}:00.0", 80 * 2**30, "570.1") for n in range(2)]
    host = Host(settings, tmp_path, "mine", anything, anything, {}, anything, cpu_servers=0, models_dir=tmp_path)
    server = ManagedServer("group0", gpus, 1, host)
    # The same process on both, once without a number: the two are compared.
    held = {gpu.uuid: GpuProcess(os.getppid(), size) for gpu, size in zip(gpus, (None, 2**31), strict=True)}
    readings = {uuid: Reading(uuid, 0.0, processes=[process]) for uuid, process in held.items()}
    probe = cast(Any, SimpleNamespace(readings=readings, host_trouble=("", "")))
    watching = asyncio.create_task(Neighbours(probe, "mine", settings).watch([server]))
    try:
        async with asyncio.timeout(5):
            while not server.foreign and not watching.done():
                await asyncio.sleep(0.01)
        assert server.foreign == list(held.values())
        assert "other processes hold memory" in server.shared_with
        assert not watching.done()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_process_that_this_daemon_started_is_its_own(tmp_path: Path) -> None:
    """A burn-in loads GPUs with such, and a model is loaded beside them."""
    ours = subprocess.Popen(["sleep", "60"])
    try:
        async with Shared(tmp_path, {0: GIB}) as shared:
            await shared.until(lambda words: "hold memory" not in words)
            theirs = GpuProcess(OTHERS, GIB // 2)
            both = [theirs, GpuProcess(ours.pid, 40 * GIB)]
            shared.readings[GPUS[0].uuid] = Reading(GPUS[0].uuid, 0.0, processes=both)
            async with asyncio.timeout(5):
                while theirs not in shared.server.foreign:
                    await asyncio.sleep(0.005)
            assert shared.server.foreign == [theirs] and shared.server.shared_with == ""
    finally:
        ours.kill()
        ours.wait()
