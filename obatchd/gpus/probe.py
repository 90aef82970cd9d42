"""The daemon's side of the probe: readings of every GPU, and the certainty that asking for them never blocks."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

import obatchd.log
from obatchd.gpus import probe_child
from obatchd.gpus.model import Gpu, Reading
from obatchd.gpus.nvml import GpuSource
from obatchd.settings import GpuSettings

log = obatchd.log.get(__name__)

SILENT_S = 15.0  # a probe that says nothing for so long is given up
START_TIMEOUT_S = 10.0
REPLACEMENTS = 3

State = Literal["ok", "absent", "unknown"]


class Probe:
    """Runs the probe process and keeps what it says.

    Attributes:
        gpus: GPUs of the latest listing.
        readings: latest reading by GPU UUID; empty again once the state is unknown.
        state: ``ok``; ``absent``: no driver here; ``unknown``: the probe hangs or dies, which is not healthy.
        message: the state in plain words, with what to do.
        code: slug of the state when it is not ``ok``: ``no_driver``, ``driver_mismatch``, ``probe_silent`` …
    """

    def __init__(
        self,
        settings: GpuSettings,
        simulated_dir: Path | None = None,
        *,
        open_source: Callable[[], GpuSource] | None = None,
        silent_s: float = SILENT_S,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.gpus: list[Gpu] = []
        self.readings: dict[str, Reading] = {}
        self.state: State = "unknown"
        self.message = "The GPUs have not been listed yet."
        self.code = "starting"
        self.replacements = 0
        self.pid: int | None = None
        self._poll_s = settings.poll_s
        self._silent_s = silent_s
        self._start_timeout_s = start_timeout_s
        self._open_source = open_source or _source_of(settings, simulated_dir)
        self._listed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns after the first listing, the news that there is no driver, or ``start_timeout_s``."""
        self._task = asyncio.create_task(self._supervise(), name="probe")
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._listed.wait()
        except TimeoutError:
            self._set("unknown", "probe_silent", f"The GPU driver did not answer within {self._start_timeout_s:.0f} s.")

    async def stop(self) -> None:
        """Close the channel; the process ends by itself. It is never waited for: it may hang in the driver."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _supervise(self) -> None:
        while True:
            reason = await self._run()
            if self.state == "absent":
                return
            self.readings.clear()
            advice = f"Look at nvidia-smi and dmesg; replacement {self.replacements + 1} of {REPLACEMENTS} starts."
            if self.replacements >= REPLACEMENTS:
                advice = "It was replaced too often and is given up: look at nvidia-smi and dmesg, then restart."
            self._set("unknown", "probe_silent", f"The probe {reason}: the health of the GPUs is unknown. {advice}")
            if self.replacements >= REPLACEMENTS:
                self._listed.set()
                return
            self.replacements += 1

    async def _run(self) -> str:
        """One probe process, from its start to its end or abandonment; says how it ended."""
        ours, theirs = socket.socketpair()
        try:
            pid = await asyncio.to_thread(_spawn, theirs, self._open_source, self._poll_s)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = pid
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            while True:
                async with asyncio.timeout(self._silent_s):
                    size = int.from_bytes(await reader.readexactly(probe_child.HEADER_BYTES), "big")
                    body = await reader.readexactly(size)
                self._take(probe_child.decoder.decode(body))
        except TimeoutError:
            # Its socket is open, so the pid is still its own. A process stuck in the kernel stays; nobody waits for it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return f"said nothing for {self._silent_s:.0f} s"
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError) as error:
            log.debug("probe_ended", pid=pid, error=error)
            return "died"
        finally:
            self.pid = None
            writer.close()

    def _take(self, frame: probe_child.Frame) -> None:
        match frame:
            case probe_child.Listing(gpus, problems):
                self.gpus = gpus
                for problem in problems:
                    log.warning("gpu_unusable", problem=problem)
                if gpus or problems:
                    self._set("ok", "ok", " ".join([f"{len(gpus)} GPUs.", *problems]))
                else:
                    self._set("absent", "no_gpu", "The NVIDIA driver is there but shows no GPU.")
                self._listed.set()
            case probe_child.Absent(code, message):
                self._set("unknown" if self.gpus else "absent", code, message)  # a driver that goes away is no absence
                self._listed.set()
            case probe_child.Readings(readings):
                self.readings = {reading.uuid: reading for reading in readings}
            case probe_child.Beat():
                pass

    def _set(self, state: State, code: str, message: str) -> None:
        if (state, code, message) != (self.state, self.code, self.message):
            write = log.warning if state == "unknown" else log.info
            write("probe_state", state=state, code=code, message=message)
        self.state, self.code, self.message = state, code, message


def _source_of(settings: GpuSettings, simulated_dir: Path | None) -> Callable[[], GpuSource]:
    if isinstance(settings.use, str) and settings.use.startswith("simulated:"):
        if simulated_dir is None:
            raise ValueError("simulated GPUs need a directory")
        return partial(probe_child.open_simulated, simulated_dir, int(settings.use.partition(":")[2]))
    return probe_child.open_nvml


def _spawn(channel: socket.socket, open_source: Callable[[], GpuSource], poll_s: float) -> int:
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=probe_child.main, args=(channel, open_source, poll_s), name="probe", daemon=True)
    process.start()
    # multiprocessing joins its children when the interpreter ends, and a probe stuck in the driver would hold us there.
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    if process.pid is None:
        raise RuntimeError("a started process has a pid")
    return process.pid
