"""Reasons not to load anything on a GPU: other people's processes, and a driver that was updated underneath.

The processes are shown and left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable

import attrs
import psutil

import obatchd.log
from obatchd.errors import ObatchError
from obatchd.gpus.model import GpuProcess
from obatchd.gpus.probe import Probe
from obatchd.servers.managed import ManagedServer
from obatchd.servers.server import Server
from obatchd.servers.sweep import is_marked
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

log = obatchd.log.get(__name__)


@attrs.define(eq=False)
class Neighbours:
    """Looks at every reading of the probe.

    A loaded model of ours goes on: its memory is taken, and it has the old driver's library. The next load waits
    until the others have left, or the host is rebooted.
    """

    _probe: Probe
    _instance: str
    _settings: Current[Settings]
    _seen: dict[str, tuple[tuple[int, int | None], ...]] = attrs.field(factory=dict, init=False)  # pid and memory

    async def watch(self, servers: Iterable[Server]) -> None:
        """Look for ever."""
        mine = [server for server in servers if isinstance(server, ManagedServer) and server.gpus]
        while True:
            for server in mine:
                try:
                    await self._look(server)
                except ObatchError as error:
                    log.warning("gpu_shared_unload_failed", server=server.id, reason=error.message)
            await asyncio.sleep(self._settings.value.gpus.poll_s)

    async def _look(self, server: ManagedServer) -> None:
        readings = [reading for gpu in server.gpus if (reading := self._probe.readings.get(gpu.uuid))]
        found = [process for reading in readings for process in reading.processes]
        seen = tuple(sorted(((process.pid, process.memory_bytes) for process in found), key=str))
        if seen != self._seen.get(server.id):  # else nobody came or left
            self._seen[server.id] = seen
            self._note(server, await asyncio.to_thread(_foreign, found, self._instance))
        server.driver_trouble = self._probe.host_trouble[1]
        await self._hold(server, "shared", server.shared_with)
        await self._hold(server, "driver", server.driver_trouble)

    async def _hold(self, server: ManagedServer, by: str, reason: str) -> None:
        if reason and server.loaded is None and server.loading is None:
            server.hold(by, reason)
        elif not reason and by in server.holds:
            log.info("gpu_usable_again", server=server.id, gpu=server.gpu_label, after=server.holds[by])
            server.resume(by)
        elif by in server.holds and server.loaded is not None and server.idle.is_set():
            await server.unload()  # it was to load another model, and has ended the one before

    def _note(self, server: ManagedServer, foreign: list[GpuProcess]) -> None:
        if {process.pid for process in foreign} - {process.pid for process in server.foreign}:
            log.warning("gpu_shared", server=server.id, gpu=server.gpu_label, processes=process_words(foreign),
                        reason="other processes hold memory on this GPU; they are left alone")  # fmt: skip
        server.foreign = foreign
        held_bytes = sum(math.inf if process.memory_bytes is None else process.memory_bytes for process in foreign)
        much = held_bytes > self._settings.value.gpus.shared_bytes
        server.shared_with = f"other processes hold memory on its GPU: {process_words(foreign)}" if much else ""


def _foreign(processes: Iterable[GpuProcess], instance: str) -> list[GpuProcess]:
    """Those of ``processes`` that are not ours.

    In a container NVML shows the host's pids: those unknown here cannot be told from our own and are left out.
    """
    found = []
    for process in processes:
        try:
            owner = psutil.Process(process.pid)
            # A zombie holds nothing any more: an orphan that was swept a moment ago.
            if owner.status() != psutil.STATUS_ZOMBIE and not is_marked(owner, instance):
                found.append(process)
        except psutil.AccessDenied:  # of another user, where /proc is mounted with hidepid=1
            found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def process_words(processes: Iterable[GpuProcess]) -> str:
    """Processes and their memory, for people."""
    return ", ".join(map(_one_in_words, processes))


def _one_in_words(process: GpuProcess) -> str:
    size = f"{process.memory_bytes / 2**30:.1f} GiB" if process.memory_bytes is not None else "memory"
    with contextlib.suppress(psutil.Error):
        owner = psutil.Process(process.pid)
        return f"{owner.name()} (pid {process.pid}, {owner.username()}) {size}"
    return f"pid {process.pid} {size}"
