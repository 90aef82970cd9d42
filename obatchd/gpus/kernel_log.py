"""XIDs out of the kernel log. Read in the main process, so that a hanging driver cannot keep its own error from us.

Facts: ``/dev/kmsg`` gives one record per read, from the oldest that the ring buffer still has, of this boot only;
EPIPE says that records were overwritten, and reading goes on. It needs root or CAP_SYSLOG where
``kernel.dmesg_restrict`` is 1; then ``journalctl`` may still show the kernel's messages to members of
``systemd-journal`` or ``adm``. A GPU that fell off the bus may say so without an XID, in one record or in three. A
stale XID must not condemn a repaired GPU, so lines older than a mark are passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs

import obatchd.log
from obatchd.gpus.model import XidEvent
from obatchd.tasks import TaskSet

log = obatchd.log.get(__name__)

KMSG = Path("/dev/kmsg")
_LOOK_S = 1.0
_RECORD_BYTES = 8192  # the kernel gives EINVAL to smaller buffers
_MOST_RECORDS = 2000  # at a look; a storm must not hold the loop
_JOURNAL_PAUSE_S = 60.0
_LINE_LIMIT_BYTES = 1024**2
_ADDRESS = r"([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.\d)?"
_XID = re.compile(rf"NVRM: Xid \(PCI:{_ADDRESS}[^)]*\): (\d+)")
_PID = re.compile(r"\bpid='?(\d+)'?")
_PROCESS = re.compile(r"\bname='?([^,']+)")
_NAMES_GPU = re.compile(rf"NVRM: (?:The NVIDIA )?GPU (?:at PCI:)?{_ADDRESS}")
_FELL_OFF = re.compile(r"(?:has )?fallen off the bus")
_FELL_OFF_XID = 79
_NEXT_MESSAGES = 3


def normal_address(bus_id: str) -> str:
    """A PCI address as both NVML (``00000000:41:00.0``) and the kernel (``0000:41:00``) have it: ``0000:41:00``."""
    parts = bus_id.lower().partition(".")[0].split(":")
    return ":".join([parts[0][-4:].zfill(4), *parts[1:]]) if len(parts) == 3 else bus_id.lower()


@attrs.define(eq=False)
class Parser:
    """Finds XIDs in the messages of the kernel, which may spread one over several records."""

    _named: str = attrs.field(default="", init=False)  # address that a message named just before
    _for: int = attrs.field(default=0, init=False)  # more messages for which that holds

    def event(self, message: str, at_s: float) -> XidEvent | None:
        """The XID in one message, if there is one."""
        if "NVRM" not in message:
            return None
        if found := _XID.search(message):
            pid, process = _PID.search(message), _PROCESS.search(message)
            return XidEvent(
                int(found[2]), at_s, pci_bus_id=normal_address(found[1]), line=message,
                pid=int(pid[1]) if pid else None, process=process[1] if process else "",
            )  # fmt: skip
        self._for -= 1
        if named := _NAMES_GPU.search(message):
            self._named, self._for = normal_address(named[1]), _NEXT_MESSAGES
        if self._for >= 0 and _FELL_OFF.search(message):
            return XidEvent(_FELL_OFF_XID, at_s, pci_bus_id=self._named, line=message)
        return None


class XidListener(Protocol):
    """Hears of XIDs; :class:`obatchd.gpus.monitor.Monitor`."""

    def xids(self, events: Sequence[XidEvent]) -> None:
        """The kernel log told of these."""


@attrs.define(eq=False)
class KernelLog:
    """Follows the kernel log."""

    _listener: XidListener
    _since_s: float  # epoch seconds; XIDs that are older are passed over
    _path: Path  # /dev/kmsg, or a file of such records, one a line
    _tasks: TaskSet = attrs.field(alias="owner", converter=TaskSet)  # one, without which errors of GPUs go unnoticed
    _parser: Parser = attrs.field(factory=Parser, init=False)
    source: str = attrs.field(default="", init=False)  # kmsg, journal, or empty while the log cannot be read
    problem: str = attrs.field(default="the kernel log has not been opened yet", init=False)  # why it cannot

    def start(self) -> None:
        self._tasks.start(self._follow(), "kernel-log")

    async def stop(self) -> None:
        await self._tasks.stop()

    async def _follow(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror}"
            await self._follow_journal()
            return
        try:
            rest = b""
            while True:
                rest = self._take_records(descriptor, rest)
                await asyncio.sleep(_LOOK_S)
        finally:
            os.close(descriptor)

    def _take_records(self, descriptor: int, rest: bytes) -> bytes:
        """Take the lines that are there; the unfinished end of a line is given back."""
        boot_s = time.time() - time.monotonic()
        self.source, self.problem = "kmsg", ""
        for _ in range(_MOST_RECORDS):
            try:
                data = os.read(descriptor, _RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EPIPE:  # EPIPE: records were overwritten before they were read
                    self.source, self.problem = "", f"{self._path}: {error.strerror}"
                    break
                continue
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take_record(line.decode("utf-8", "replace"), boot_s)
        return rest

    def _take_record(self, record: str, boot_s: float) -> None:
        """``priority,sequence,microseconds since boot,flags;message``; lines of a dictionary begin with a space."""
        head, found, message = record.partition(";")
        fields = head.split(",")
        if found and len(fields) >= 3 and fields[2].isdecimal():
            for part in message.replace("\\x0a", "\n").split("\n"):
                self._take(part, boot_s + int(fields[2]) / 1e6)

    def _take(self, message: str, at_s: float) -> None:
        event = self._parser.event(message, at_s)
        if event is not None and event.at_s >= self._since_s:
            self._listener.xids([event])

    async def _follow_journal(self) -> None:
        """``journalctl`` of this boot, for as long as it runs; again after a while when it ended or shows nothing."""
        since, refused, told = f"--since=@{self._since_s:.0f}", self.problem, ""
        while True:
            words = "journalctl shows no message of the kernel: add the daemon's user to the group systemd-journal"
            try:
                if await self._journal("--lines=1", take=False):  # a kernel always has said something
                    self.source, self.problem, told = "journal", "", ""
                    await self._journal("--follow", "--lines=all", since, take=True)
                    words = "journalctl ended"
            except OSError as error:
                words = f"journalctl: {error.strerror}"
            self.source, self.problem = "", f"{refused}; {words}"
            if told != self.problem:
                told = self.problem
                log.warning("kernel_log_blind", reason=told)
            await asyncio.sleep(_JOURNAL_PAUSE_S)

    async def _journal(self, *arguments: str, take: bool) -> int:
        """Run ``journalctl`` to its end; how many lines it gave."""
        process = await asyncio.create_subprocess_exec(
            "journalctl", "--dmesg", "--output=json", "--no-pager", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            limit=_LINE_LIMIT_BYTES,
        )  # fmt: skip
        count = 0
        try:
            while process.stdout is not None and (line := await process.stdout.readline()):
                count += 1
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    entry = json.loads(line)
                    if take:
                        self._take(str(entry["MESSAGE"]), int(entry["__REALTIME_TIMESTAMP"]) / 1e6)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        return count
