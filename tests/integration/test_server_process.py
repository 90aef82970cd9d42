"""What is cancelled ends, whatever happens at the same moment; and nothing is closed that is somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from obatchd.servers.process import ServerProcess


class Unheard:
    """Implements :class:`obatchd.servers.process.ProcessListener`."""

    def process_ended(self) -> None:
        pass


async def test_a_stop_at_the_moment_the_gpu_is_seen_is_not_swallowed(tmp_path: Path) -> None:
    process = ServerProcess("gpu0", tmp_path / "log", Unheard())
    looking = asyncio.create_task(process.sees(["GPU-1"], 30))
    await asyncio.sleep(0)
    process.line('time=… msg="inference compute" id=GPU-1 library=CUDA')
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking


@pytest.mark.parametrize(
    "named", ["id=GPU-1 filter_id=", "id=0 filter_id=GPU-1"], ids=["0.24", "0.33"]
)  # where the server saw the UUID that it was given
async def test_a_server_proves_its_gpu_and_its_loads_by_the_words_of_its_line(tmp_path: Path, named: str) -> None:
    process = ServerProcess("gpu0", tmp_path / "log", Unheard())
    process.line(f'level=INFO source=types.go:32 msg="inference compute" {named} library=CUDA compute=9.0 name=CUDA0')
    assert await process.sees(["GPU-1"], 0) is True
    assert await process.sees(["GPU-2"], 0) is None
    engine, short = ("llama-server", "llama-server") if named.startswith("id=0") else ("llama runner", "runner")
    process.line(f'level=INFO msg="starting {short}" cmd="/usr/lib/ollama/{short} --model /m/sha256-1 --port 1"')
    assert process.loading_since_s is not None
    process.line(f'level=INFO msg="{engine} started in 0.25 seconds"')
    assert process.loading_since_s is None


async def test_a_server_lives_through_slurms_word_before_the_time_limit(tmp_path: Path) -> None:
    process = ServerProcess("gpu0", tmp_path / "log", Unheard())
    await process.start(["sleep", "60"], os.environ, tmp_path)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGUSR1)
    blocked = Path(f"/proc/{process.pid}/status").read_text().partition("SigBlk:")[2].split()[0]
    await process.stop(5)
    assert int(blocked, 16) >> (signal.SIGUSR1 - 1) & 1
    assert process.returncode == -signal.SIGTERM


async def test_the_end_of_a_server_closes_no_descriptor_of_anybody_else(tmp_path: Path) -> None:
    """A number that is closed twice may be another thread's file by the second time."""
    over, closed = threading.Event(), []

    def use_files() -> None:
        while not over.is_set():
            descriptor = os.open("/dev/null", os.O_RDONLY)
            try:
                os.read(descriptor, 1)
                os.close(descriptor)
            except OSError as error:
                closed.append(errno.errorcode[error.errno or 0])

    threads = [threading.Thread(target=use_files) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(int(os.environ.get("OBATCHD_TEST_PIPES", "200"))):
            process = ServerProcess("gpu0", tmp_path / "log", Unheard())
            await process.start(["/bin/true"], {}, tmp_path)
            await process.stop(5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert closed == []


async def test_everything_a_server_wrote_is_read_before_it_counts_as_ended(tmp_path: Path) -> None:
    process = ServerProcess("gpu0", tmp_path / "log", Unheard())
    script = "head -c 1000000 /dev/zero | tr '\\0' 'x' | fold -w 999; echo; echo last words"
    await process.start(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]}, tmp_path)
    async with asyncio.timeout(20):
        await process.ended.wait()
    await process.stop(5)
    assert process.log.lines[-1] == "last words"
    assert (tmp_path / "log").read_bytes().endswith(b"\nlast words\n")


async def test_a_stuck_process_that_ends_at_last_takes_the_next_one_not_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obatchd.servers.process._LEFTOVER_S", 0.05)
    kill = os.killpg
    process = ServerProcess("gpu0", tmp_path / "log", Unheard())
    await process.start(["/bin/sleep", "60"], {}, tmp_path)
    stuck = process.pid
    assert stuck is not None
    with monkeypatch.context() as kernel:
        kernel.setattr(os, "killpg", lambda group, number: None)  # the kernel does not let it end
        await process.stop(0.05)
    await process.start(["/bin/sleep", "60"], {}, tmp_path)
    kill(stuck, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        async with asyncio.timeout(10):
            while True:
                kill(stuck, 0)
                await asyncio.sleep(0.01)
    assert not process.ended.is_set() and process.returncode is None
    await process.stop(5)
    assert process.returncode == -signal.SIGTERM
