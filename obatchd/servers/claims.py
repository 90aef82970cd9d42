"""Which GPUs of this machine an obatchd has servers on, so that no other one takes them, too.

Each GPU is a listening socket in Linux's abstract namespace (unix(7)), which vanishes with its process, however that
ends. SO_PEERCRED names the process that listens. The namespace is that of the network: two containers do not see each
other's sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu
from obatchd.gpus.source import source_of
from obatchd.naming import user_name

_CREDENTIALS = struct.Struct("3i")  # ucred: pid, uid, gid
_ASK_S = 1.0
_GONE_S = 2.0  # a holder that does not answer is about to be gone
_TRY_S = 0.05
_MOST_BYTES = 4096


class Holder(NamedTuple):
    """Whoever has a GPU."""

    pid: int
    uid: int
    directory: str  # empty where it does not say


class GpuClaims:
    """The GPUs of one process. ``directory`` is the one that it works on; its stand-ins are nobody else's."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory.absolute())
        self._servers: list[asyncio.Server] = []

    async def take(self, gpus: Iterable[Gpu]) -> None:
        """Claim all of these, or none. Raises GpuError (``gpu_taken``) where another process has one, and names it."""
        try:
            for gpu in gpus:
                await self._take(gpu)
        except BaseException:
            await self.release()
            raise

    async def release(self) -> None:
        """Give all back."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for server in servers:
            await server.wait_closed()

    async def _take(self, gpu: Gpu) -> None:
        address = self._address(gpu)
        deadline_s = time.monotonic() + _GONE_S
        while (listening := _listen(address)) is None:
            holder = await asyncio.to_thread(_ask, address)
            if holder is not None or time.monotonic() > deadline_s:
                raise GpuError(_taken(gpu, holder), code="gpu_taken")
            await asyncio.sleep(_TRY_S)
        self._servers.append(await asyncio.start_unix_server(self._answer, sock=listening))

    def _address(self, gpu: Gpu) -> str:
        stand_in = source_of(gpu.driver)
        mark = hashlib.sha256(self._directory.encode()).hexdigest()[:12] + "-" if stand_in else ""
        return f"\0obatchd-gpu-{mark}{gpu.uuid}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say which directory this process works on."""
        with contextlib.suppress(OSError):
            writer.write(self._directory.encode()[:_MOST_BYTES])
            await writer.drain()
        writer.close()


def _listen(address: str) -> socket.socket | None:
    """A socket that listens there; None where another one does."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(address)
        listening.listen()
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return listening


def _ask(address: str) -> Holder | None:
    """Who listens there; None: nobody any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ASK_S)
        try:
            asking.connect(address)
            told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
        pid, uid, _ = _CREDENTIALS.unpack(told)
        directory = b""
        with contextlib.suppress(OSError):
            directory = asking.recv(_MOST_BYTES)
    return Holder(pid, uid, os.fsdecode(directory))


def _taken(gpu: Gpu, holder: Holder | None) -> str:
    which = f"GPU {gpu.index} ({gpu.uuid}) is in use by another obatchd of this machine"
    if holder is None:
        return f"{which}, which does not say who it is: stop that one first."
    where = f", directory {holder.directory}" if holder.directory else ""
    return (
        f"{which} (pid {holder.pid}, user {user_name(holder.uid)}{where}): stop that one, or leave the GPU to it with "
        f'gpus.exclude = ["{gpu.uuid}"].'
    )
