"""The daemon's side of a stress process: starts it, hears it, watches its silence and its memory, and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import attrs

from obatchd.burnin.stress import process
from obatchd.burnin.stress.device import OpenDevice
from obatchd.burnin.stress.protocol import SILENT_S, Beat, FromProcess, Leave, Opened, ToProcess, from_process
from obatchd.child import Child, End, Keeper
from obatchd.tasks import TaskSet, set_within
from obatchd.words import binary_size

_OPENING_S = 120.0  # without persistence mode the driver wakes the cards first, and it loads a library of 750 MB
_LOOK_S = 0.25  # at its memory
_GRACE_S = 10.0  # to free the memory of the device, and to end by itself
_EXIT_S = 5.0  # until it is killed, and until one that was killed is left behind
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

GoneCode = Literal["left", "hung", "memory_limit", "died"]


class Gone(NamedTuple):
    """How a process ended: told to leave, silent for too long, over its memory limit, or by itself or somebody else.

    ``left_behind``: it was killed and is still there, so it hangs in the kernel; nobody waits for it.
    """

    code: GoneCode
    words: str  # that follow a name: "said nothing for 30 s and was killed" …
    left_behind: bool = False


@attrs.define(eq=False)
class StressProcess:
    """One process for one GPU, started once. It never blocks the event loop."""

    name: str
    _open_device: OpenDevice  # called in the process; pickled
    _memory_bytes: int  # more resident memory of the process than this ends it
    _tasks: TaskSet = attrs.field(alias="owner", converter=TaskSet)
    _silent_s: float = attrs.field(default=SILENT_S, kw_only=True)  # once the device is open
    _grace_s: float = attrs.field(default=_GRACE_S, kw_only=True)
    _exit_s: float = attrs.field(default=_EXIT_S, kw_only=True)
    pid: int | None = attrs.field(default=None, init=False)
    gone: Gone | None = attrs.field(default=None, init=False)  # None while it runs
    _child: Child | None = attrs.field(default=None, init=False)
    _reason: tuple[GoneCode, str] | None = attrs.field(default=None, init=False)
    _heard: asyncio.Queue[FromProcess | None] = attrs.field(factory=asyncio.Queue, init=False)
    _ended: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _keeper: Keeper[FromProcess] | None = attrs.field(default=None, init=False)

    def start(self) -> None:
        """Start the process; whether that succeeded is told by its frames, or by ``gone``."""
        work = partial(process.main, open_device=self._open_device)
        silent_s = max(_OPENING_S, self._silent_s)
        self._keeper = Keeper(self.name, work, from_process, self, silent_s=silent_s, exit_s=self._exit_s)
        self._tasks.start(self._keep(self._keeper), self.name)

    def send(self, message: ToProcess) -> bool:
        """Queue a command. False: the process is not there, or known to be gone."""
        return self._child is not None and self._child.send(message)

    async def frames(self) -> AsyncIterator[FromProcess]:
        """What the process says, until it is gone; then ``gone`` says why."""
        while (message := await self._heard.get()) is not None:
            yield message

    async def end(self) -> Gone:
        """Tell it to leave, kill it when it does not, and leave it behind when that does not help either.

        Takes at most the sum of the three limits; once it is gone, nothing at all.
        """
        if self.gone is None and self._reason is None:
            self._reason = ("left", "was told to leave")
        if self.send(Leave()):
            await set_within(self._grace_s, self._ended)
        await self._tasks.stop()
        if self.gone is None:  # it was never started
            self._conclude()
        assert self.gone is not None
        return self.gone

    # Calls of the keeper.

    def started(self, child: Child) -> None:
        self._child, self.pid = child, child.pid
        self._tasks.start(self._watch_memory(child), f"{self.name}-memory")

    def heard(self, message: FromProcess) -> None:
        if isinstance(message, Opened) and self._keeper is not None:
            self._keeper.silent_s = self._silent_s
        if not isinstance(message, Beat):
            self._heard.put_nowait(message)

    def ended(self, end: End) -> float | None:
        if self._reason is None:
            self._reason = ("hung", f"{end.words} and was killed") if end.silent else ("died", end.words)
        return None

    async def _keep(self, keeper: Keeper[FromProcess]) -> None:
        try:
            await keeper.run()
            await self._wait_for_end()
        except asyncio.CancelledError:
            await self._wait_for_end()
            raise
        finally:
            self._conclude()

    def _conclude(self) -> None:
        code, words = self._reason or ("died", "was lost")
        self._child = None
        self.gone = Gone(code, words, left_behind=self.pid is not None and _is_there(self.pid))
        self._heard.put_nowait(None)
        self._ended.set()

    async def _wait_for_end(self) -> None:
        """Of a process that was killed: the kernel frees what it had on the device first."""
        until_s = time.monotonic() + self._exit_s
        while self.pid is not None and _is_there(self.pid) and time.monotonic() < until_s:
            await asyncio.sleep(_LOOK_S / 5)

    async def _watch_memory(self, child: Child) -> None:
        while not self._ended.is_set():
            taken_bytes = _resident_bytes(child.pid)
            if taken_bytes > self._memory_bytes and self._reason is None:
                limit = binary_size(self._memory_bytes)
                words = f"took {binary_size(taken_bytes)} of the host's memory, more than {limit}, and was killed"
                self._reason = ("memory_limit", words)
                child.kill()
            await set_within(_LOOK_S, self._ended)


def _resident_bytes(pid: int) -> int:
    """Of a process, 0 when it is gone. proc(5) takes no lock of the process for it, so one that hangs is no matter."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE_BYTES
    return 0


def _is_there(pid: int) -> bool:
    """Whether a process has not ended; one that has, and that its parent has not asked about yet, has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"
