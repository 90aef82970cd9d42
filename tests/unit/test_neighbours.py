"""Other people's processes on our GPUs, as they are seen from this host."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from settings_support import in_force

from obatchd.gpus.model import Gpu, GpuProcess, Reading
from obatchd.servers.managed import Host, ManagedServer
from obatchd.servers.neighbours import Neighbours


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
