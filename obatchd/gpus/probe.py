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
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.source import GpuSource
from obatchd.settings.tables.gpus import GpuSettings

log = obatchd.log.get(__name__)

START_TIMEOUT_S = 60.0  # without persistence mode the driver wakes each GPU first, for seconds
REPLACEMENTS = 3
RETRY_S = 60.0  # after a probe that ended because the driver cannot be used now

State = Literal["ok", "absent", "unknown"]


class Listener:
    """What somebody may want to hear from the probe, in the event loop; does nothing by itself."""

    def identities(self, identities: list[Identity]) -> None:
        """Who the cards are."""

    def readings(self, readings: list[Reading]) -> None:
        """What was read just now."""

    def slow_readings(self, readings: list[SlowReading]) -> None:
        """What changes slowly."""

    def xids(self, events: list[XidEvent]) -> None:
        """Errors that NVML reported."""


class Probe:
    """Runs the probe process and keeps what it says.

    Attributes:
        gpus: GPUs of the latest listing.
        readings: latest reading by GPU UUID; empty again once the probe is gone.
        host_trouble: slug and words of what is wrong with the driver of the whole host, while readings go on.
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
        silent_s: float | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.gpus: list[Gpu] = []
        self.readings: dict[str, Reading] = {}
        self.state: State = "unknown"
        self.message = "The GPUs have not been listed yet."
        self.code = "starting"
        self.replacements = 0
        self.pid: int | None = None
        self.host_trouble = ("", "")
        self._listeners: list[Listener] = []
        self._identities: list[Identity] = []
        self._settings = settings
        self._silent_s = silent_s or settings.silent_s
        self._warn_s = min(settings.silent_warn_s, self._silent_s)
        self._start_timeout_s = start_timeout_s
        self._open_source = open_source or _source_of(settings, simulated_dir)
        self._unusable = False
        self._late: tuple[State, str, str] | None = None
        self._listed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def listen(self, listener: Listener) -> None:
        """Let ``listener`` hear what is read from now on, and who the cards are as far as that was told already."""
        self._listeners.append(listener)
        if self._identities:
            listener.identities(self._identities)

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
            if self._unusable:  # it said why and ended: nothing hangs, so it may be asked again and again
                await asyncio.sleep(RETRY_S)
                continue
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
            pid = await asyncio.to_thread(_spawn, theirs, self._open_source, self._settings)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = pid
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            while True:
                self._take(await self._next(reader))
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

    async def _next(self, reader: asyncio.StreamReader) -> probe_child.Frame:
        """The next frame; raises TimeoutError when the driver has been silent for too long."""
        read = asyncio.create_task(_frame(reader))
        try:
            done, _ = await asyncio.wait({read}, timeout=self._warn_s)
            if not done:
                self._late = (self.state, self.code, self.message)
                words = f"The GPU driver has said nothing for {self._warn_s:g} s: the health of the GPUs is unknown."
                self._set("unknown", "probe_late", words)
                done, _ = await asyncio.wait({read}, timeout=self._silent_s - self._warn_s)
            if not done:
                raise TimeoutError
            if self._late and read.exception() is None:
                self._set(*self._late)
            self._late = None
            return read.result()
        finally:
            read.cancel()

    def _take(self, frame: probe_child.Frame) -> None:
        match frame:
            case probe_child.Listing(gpus, problems):
                self._list(gpus, problems)
            case probe_child.Absent(code, message):
                self._unusable = True
                self._set("unknown" if self.gpus else "absent", code, message)  # a driver that goes away is no absence
                self._listed.set()
            case probe_child.Readings(readings, _):
                self.readings = {reading.uuid: reading for reading in readings}
            case probe_child.Identities(identities):
                self._identities = identities
            case probe_child.SlowReadings(_, code, message):
                if (code, message) != self.host_trouble:
                    log.warning("gpu_host_trouble", code=code, message=message or "none any more")
                self.host_trouble = (code, message)
            case probe_child.Beat():
                pass
        for listener in self._listeners:
            _tell(listener, frame)

    def _list(self, gpus: list[Gpu], problems: list[str]) -> None:
        self._unusable = False
        self.gpus = gpus or self.gpus
        for problem in problems:
            log.warning("gpu_unusable", problem=problem)
        if gpus or problems:
            self._set("ok", "ok", " ".join([f"{len(gpus)} GPUs.", *problems]))
        elif self.gpus:
            self._set("unknown", "no_gpu", "The NVIDIA driver shows no GPU any more: look at dmesg.")
        else:
            self._set("absent", "no_gpu", "The NVIDIA driver is there but shows no GPU.")
        self._listed.set()

    def _set(self, state: State, code: str, message: str) -> None:
        if (state, code, message) != (self.state, self.code, self.message):
            write = log.warning if state == "unknown" else log.info
            write("probe_state", state=state, code=code, message=message)
        self.state, self.code, self.message = state, code, message


def _tell(listener: Listener, frame: probe_child.Frame) -> None:
    match frame:
        case probe_child.Readings(readings, xids):
            listener.readings(readings)
            if xids:
                listener.xids(xids)
        case probe_child.Identities(identities):
            listener.identities(identities)
        case probe_child.SlowReadings(slow):
            listener.slow_readings(slow)


def _source_of(settings: GpuSettings, simulated_dir: Path | None) -> Callable[[], GpuSource]:
    if isinstance(settings.use, str) and settings.use.startswith("simulated:"):
        if simulated_dir is None:
            raise ValueError("simulated GPUs need a directory")
        return partial(probe_child.open_simulated, simulated_dir, int(settings.use.partition(":")[2]))
    return probe_child.open_nvml


async def _frame(reader: asyncio.StreamReader) -> probe_child.Frame:
    size = int.from_bytes(await reader.readexactly(probe_child.HEADER_BYTES), "big")
    frame: probe_child.Frame = probe_child.decoder.decode(await reader.readexactly(size))
    return frame


def _spawn(channel: socket.socket, open_source: Callable[[], GpuSource], settings: GpuSettings) -> int:
    context = multiprocessing.get_context("forkserver")
    work = (channel, open_source, settings.poll_s, settings.slow_poll_s)
    process = context.Process(target=probe_child.main, args=work, name="probe", daemon=True)
    process.start()
    # multiprocessing joins its children when the interpreter ends, and a probe stuck in the driver would hold us there.
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    if process.pid is None:
        raise RuntimeError("a started process has a pid")
    return process.pid
