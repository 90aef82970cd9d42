"""Reasons not to load anything on a GPU: other people's processes, and a driver that was updated underneath.

The processes are shown and left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable

import attrs
import psutil

import obatchd.log
from obatchd.errors import ObatchError
from obatchd.gpus.model import Gpu, GpuProcess
from obatchd.gpus.probe import Probe
from obatchd.servers.environment import INSTANCE_MARK
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
    _words: dict[str, str] = attrs.field(factory=dict, init=False)  # the processes of others, by server

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
        found = [process for gpu in server.gpus for process in self._processes_on(gpu)]
        seen = tuple(sorted(((process.pid, process.memory_bytes) for process in found), key=str))
        if seen != self._seen.get(server.id):  # else nobody came or left
            self._seen[server.id] = seen
            self._note(server, await asyncio.to_thread(_foreign, found, self._instance))
        server.shared_with = self._hindrance(server)
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
                        reason="obatchd leaves them alone")  # fmt: skip
        server.foreign, self._words[server.id] = foreign, process_words(foreign)

    def _hindrance(self, server: ManagedServer) -> str:
        """The processes of others, in words, where they hold so much that nothing is loaded beside them.

        An amount that the driver does not tell is too much, until an administrator says that it is not.
        """
        settings, foreign = self._settings.value.gpus, server.foreign
        words = f"other processes hold memory on its GPU: {self._words.get(server.id, '')}"
        if sum(process.memory_bytes or 0 for process in foreign) > settings.shared_bytes:
            return words
        unknown = [process for process in foreign if process.memory_bytes is None]
        doubtful = [
            str(gpu.index)
            for gpu in server.gpus
            if gpu.card not in server.shared_cards and any(p in unknown for p in self._processes_on(gpu))
        ]
        if not doubtful or settings.share_unknown:
            return ""
        verbs = " and ".join(f"obatchctl gpus share {index}" for index in dict.fromkeys(doubtful))
        return (
            f"{words}; the driver does not tell how much, so nothing is loaded beside them. If there is room: {verbs} "
            "(or gpus.share_unknown = true in the configuration)"
        )

    def _processes_on(self, gpu: Gpu) -> list[GpuProcess]:
        reading = self._probe.readings.get(gpu.uuid)
        return reading.processes if reading else []


def _foreign(processes: Iterable[GpuProcess], instance: str) -> list[GpuProcess]:
    """Those of ``processes`` that are not ours.

    In a container NVML shows the host's pids: those unknown here cannot be told from our own and are left out.
    """
    found = []
    for process in processes:
        try:
            owner = psutil.Process(process.pid)
            # A zombie holds nothing any more: an orphan that was swept a moment ago.
            if owner.status() != psutil.STATUS_ZOMBIE and not is_marked(owner, instance) and not _is_child(owner):
                found.append(process)
        except psutil.AccessDenied:  # of another user, where /proc is mounted with hidepid=1
            found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def _is_child(process: psutil.Process) -> bool:
    """Whether this daemon started it beside its servers, which are marked: a burn-in loads GPUs with such."""
    marked = INSTANCE_MARK in process.environ()  # that of a server of another spool
    return not marked and any(parent.pid == os.getpid() for parent in process.parents())


def process_words(processes: Iterable[GpuProcess]) -> str:
    """Processes and their memory, for people."""
    return ", ".join(map(_one_in_words, processes))


def _one_in_words(process: GpuProcess) -> str:
    size = f"{process.memory_bytes / 2**30:.1f} GiB" if process.memory_bytes is not None else "memory"
    with contextlib.suppress(psutil.Error):
        owner = psutil.Process(process.pid)
        return f"{owner.name()} (pid {process.pid}, {owner.username()}) {size}"
    return f"pid {process.pid} {size}"
