"""What is cancelled ends, whatever happens at the same moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from obatchd.servers.process import ServerProcess


async def test_a_stop_at_the_moment_the_gpu_is_seen_is_not_swallowed(tmp_path: Path) -> None:
    process = ServerProcess("gpu0", tmp_path / "log", lambda: None)
    looking = asyncio.create_task(process.sees(["GPU-1"], 30))
    await asyncio.sleep(0)
    process._line('time=… msg="inference compute" id=GPU-1 library=CUDA')
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
