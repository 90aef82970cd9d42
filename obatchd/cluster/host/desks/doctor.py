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
from typing import Any

import attrs
import msgspec

from obatchd.documents.hosts import Finding
from obatchd.errors import HostError
from obatchd.servers.fleet import Fleet
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_LIMIT_S = 45.0  # three of the checks may take 15 s each, where driver and programs hang
_TABLES = {"gpus", "servers", "disk"}  # those that the checks look at


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

    async def examine(self) -> list[Finding]:
        told = self._settings.value.model_dump(mode="json", include=_TABLES)
        urls = [server.base_url for server in self._fleet.servers.values()]
        said, trouble = await self._run(msgspec.json.encode(Asked(told, str(self._directory), urls)))
        try:
            return msgspec.json.decode(said, type=list[Finding])
        except msgspec.DecodeError:
            last = trouble.decode("utf-8", "replace").strip().rpartition("\n")[2] or "they said nothing"
            raise HostError(f"its checks ended by a defect of obatchd: {last}") from None

    async def _run(self, asked: bytes) -> tuple[bytes, bytes]:
        pipe = asyncio.subprocess.PIPE
        with open(os.memfd_create("doctor"), "w+b") as question:  # a pipe to a process that has ended raises
            question.write(asked)
            question.seek(0)
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=question, stdout=pipe, stderr=pipe, start_new_session=True
            )
        try:
            async with asyncio.timeout(_LIMIT_S):
                return await process.communicate()
        except TimeoutError:
            raise HostError(f"its checks have not ended within {_LIMIT_S:g} s: a disk or the driver hangs") from None
        finally:
            if process.returncode is None:  # nobody waits for it: it may hang in the kernel
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
