"""Runs a program of other people: it may hang in the driver, say much, and leave children behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from obatchd.tasks import to_its_end

_CHUNK_BYTES = 65_536
_GRACE_S = 40.0  # dcgmi waits for up to 25 s until its diagnostic has stopped
_EXIT_S = 5.0


class Reader(Protocol):
    """Takes what a program says, a part at a time; may be called for hours."""

    def feed(self, text: str) -> None:
        """The next part, of output and errors as they come."""


class Ended(NamedTuple):
    """How a program ended. ``exit_code`` is None where it was ended by us, or is still there."""

    exit_code: int | None
    timed_out: bool = False
    left_behind: bool = False  # killed, and still there: it hangs in the kernel, and nobody waits for it


async def run(
    command: Sequence[str], environment: Mapping[str, str], reader: Reader, timeout_s: float, grace_s: float = _GRACE_S
) -> Ended:
    """Run a program in its own folder, where it may look for its files, to its end or for ``timeout_s``.

    Cancelled, it ends the program first. All its processes get the signals, since gpu-burn's children outlive it.
    Raises OSError where it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**_own_environment(), **environment},
        cwd=Path(command[0]).resolve().parent,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            await _read(process, reader)
            return Ended(await process.wait())
    except TimeoutError:
        left_behind = await to_its_end(_end(process, grace_s))
        return Ended(None, timed_out=True, left_behind=left_behind)
    except asyncio.CancelledError:
        await _end(process, grace_s)
        raise
    finally:
        _signal(process, signal.SIGKILL)  # children that outlive it, such as an nvidia-smi


def _own_environment() -> dict[str, str]:
    ours = ("OBATCH", "PYTHONSAFEPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


async def _read(process: asyncio.subprocess.Process, reader: Reader) -> None:
    assert process.stdout is not None
    while chunk := await process.stdout.read(_CHUNK_BYTES):
        reader.feed(chunk.decode("utf-8", "replace"))


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> bool:
    """End all its processes; whether the first one is still there."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _EXIT_S)):
        _signal(process, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await process.wait()
                return False
    return True


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
