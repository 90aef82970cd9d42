"""The desk ``doctor`` of a host: what the checks of ``obatchctl doctor`` find on its machine, for the head.

They run in a process of their own, because a disk or a driver that hangs would hold it up for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import msgspec

from obatchd.documents.hosts import Finding
from obatchd.errors import HostError
from obatchd.servers.fleet import Fleet
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_LIMIT_S = 45.0  # the head waits little longer; what they found until then is told
_KILLED_S = 2.0  # for the end of one that was killed
_TABLES = {"gpus", "servers", "disk"}  # those that the checks look at
_LOOK = "sudo dmesg | grep -i -e nvrm -e 'blocked for more than'"
_LINES: msgspec.json.Decoder[Finding] = msgspec.json.Decoder(Finding)


class Asked(msgspec.Struct):
    """What the process has to know, on its standard input."""

    settings: dict[str, Any]  # in force
    directory: str  # of the host's files
    urls: list[str]  # of its servers


@attrs.define(eq=False)
class HostDoctorDesk:
    """Implements :class:`obatchd.cluster.desks.DoctorDesk`."""

    _settings: Current[Settings]
    _directory: Path
    _fleet: Fleet
    _command: Sequence[str] = (sys.executable, "-P", "-m", "obatchd.cli.doctor.host_report")
    _turn: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _last: asyncio.subprocess.Process | None = attrs.field(default=None, init=False)

    async def examine(self) -> list[Finding]:
        told = self._settings.value.model_dump(mode="json", include=_TABLES)
        urls = [server.base_url for server in self._fleet.servers.values()]
        # Files in memory, not pipes: of a process that hangs in the kernel nothing stays open here, and one that has
        # ended without reading breaks nothing.
        async with self._turn:
            await self._see_the_last_end()
            with _memory("asked") as asked, _memory("said") as said, _memory("trouble") as trouble:
                asked.write(msgspec.json.encode(Asked(told, str(self._directory), urls)))
                asked.seek(0)
                self._last = await asyncio.create_subprocess_exec(
                    *self._command, stdin=asked, stdout=said, stderr=trouble, start_new_session=True
                )
                ended = await _has_ended(self._last)
                return _findings(_whole(said), _whole(trouble), ended, self._last.returncode)

    async def _see_the_last_end(self) -> None:
        """Raises HostError where it hangs: each further process would be one more that nobody can end."""
        if self._last is None:
            return
        try:
            async with asyncio.timeout(_KILLED_S):
                await self._last.wait()
        except TimeoutError:
            pid = self._last.pid
            raise HostError(
                f"its last checks still hang (pid {pid}), so no others are begun: see what they wait for there with  "
                f"sudo cat /proc/{pid}/stack  and mend that disk or driver, or restart the machine"
            ) from None


def _memory(name: str) -> BinaryIO:
    return open(os.memfd_create(f"doctor {name}"), "w+b", buffering=0)


def _whole(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)  # its offset is shared with the process


async def _has_ended(process: asyncio.subprocess.Process) -> bool:
    """False where it has not within the limit. It is killed then, and not waited for: it may hang in the kernel."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            await process.wait()
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return True


def _findings(said: bytes, trouble: bytes, ended: bool, code: int | None) -> list[Finding]:
    """Those of whole lines, and that there are no more. Raises HostError where the checks have a defect."""
    try:
        found = _LINES.decode_lines(said[: said.rfind(b"\n") + 1])
    except msgspec.DecodeError:
        found = []
    if not ended:
        place = f"the check after {found[-1].about}" if found else "the first check"
        text = f"its checks have not ended within {_LIMIT_S:g} s: a disk or the driver hangs in {place}"
        return [*found, Finding("bad", "doctor", text, _LOOK)]
    if code or not found:
        last = trouble.decode("utf-8", "replace").strip().rpartition("\n")[2] or "they said nothing"
        raise HostError(f"its checks ended by a defect of obatchd: {last}")
    return found
