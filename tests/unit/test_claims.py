"""Two daemons of one machine never have servers on one GPU."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path

import msgspec
import pytest

from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu
from obatchd.naming import user_name
from obatchd.servers.claims import GpuClaims

_HOLD = """
import asyncio, sys
from pathlib import Path
import msgspec
from obatchd.gpus.model import Gpu
from obatchd.servers.claims import GpuClaims

async def main():
    await GpuClaims(Path(sys.argv[1])).take([msgspec.json.decode(sys.argv[2], type=Gpu)])
    print("held", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def card(index: int = 0, driver: str = "550.1") -> Gpu:
    """A GPU that no other test has."""
    return Gpu(f"GPU-{uuid.uuid4()}", "H200", index, f"0000000{index}:41:00.0", None, driver)


async def test_a_gpu_of_another_process_is_refused_with_its_name_until_that_is_killed(tmp_path: Path) -> None:
    mine, theirs = card(0), card(1)
    there = tmp_path / "host"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, there, msgspec.json.encode(theirs)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        claims = GpuClaims(tmp_path / "spool")
        with pytest.raises(GpuError) as caught:
            await claims.take([mine, theirs])
        assert caught.value.code == "gpu_taken"
        for part in (f"pid {holder.pid}", user_name(os.getuid()), str(there), theirs.uuid, "gpus.exclude"):
            assert part in caught.value.message
        other = GpuClaims(tmp_path / "third")
        await other.take([mine])  # what was claimed before the refusal is free again
        await other.release()
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    await claims.take([mine, theirs])
    await claims.release()


async def test_what_is_released_can_be_taken(tmp_path: Path) -> None:
    gpu = card()
    one, other = GpuClaims(tmp_path / "one"), GpuClaims(tmp_path / "other")
    await one.take([gpu])
    with pytest.raises(GpuError, match="another obatchd"):
        await other.take([gpu])
    await one.release()
    await other.take([gpu])
    await other.release()


async def test_stand_ins_of_two_directories_are_not_the_same(tmp_path: Path) -> None:
    gpu = card(driver="550.1-simulated")
    one, other, same = GpuClaims(tmp_path / "one"), GpuClaims(tmp_path / "other"), GpuClaims(tmp_path / "one")
    await one.take([gpu])
    await other.take([gpu])
    with pytest.raises(GpuError, match="another obatchd"):
        await same.take([gpu])
    await one.release()
    await other.release()
