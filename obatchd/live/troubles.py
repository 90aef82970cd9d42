"""What hinders the work from outside: a full disk, a store or inbox that refuses, a job that cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from obatchd import log
from obatchd.live.disk import disk_trouble
from obatchd.settings.tables.alarms import AlarmKind
from obatchd.settings.tables.disk import DiskSettings
from obatchd.spool.layout import FreeSpace, Layout

_log = log.get(__name__)
INTAKE = "intake"  # its own trouble must not keep the intake from finding out that it is over
_DISK = "disk"


class Troubles:
    """Holds dispatch while anything hinders all of it.

    Attributes:
        of_all: what holds up everything: reason by kind.
        of_jobs: what holds up one job: reason by key.
        free: of the spool's file system, as last seen.
        announce: tells alarms, by kind.
    """

    def __init__(self, hold: Callable[[str], None], unhold: Callable[[str], None]) -> None:
        """``hold`` and ``unhold`` are called with the kind of a trouble that begins and ends."""
        self.of_all: dict[str, str] = {}
        self.of_jobs: dict[int, str] = {}
        self.free = FreeSpace(0, 0)
        self.announce: Callable[[AlarmKind, dict[str, Any]], None] = lambda kind, facts: None
        self._hold = hold
        self._unhold = unhold

    @property
    def may_claim(self) -> bool:
        """Whether drops may be taken out of the inbox."""
        return not self.of_all.keys() - {INTAKE}

    @property
    def disk_low(self) -> bool:
        return _DISK in self.of_all

    def say(self, kind: str, reason: str) -> None:
        """Something outside hinders the work (``reason``), or no longer does (``""``)."""
        if reason:
            if kind not in self.of_all:
                _log.error("trouble", kind=kind, reason=reason)
                if kind == _DISK:
                    self.announce("disk_low", {"reason": reason})
            self.of_all[kind] = reason
            self._hold(kind)
        elif self.of_all.pop(kind, None) is not None:
            _log.info("trouble_over", kind=kind)
            self._unhold(kind)

    def say_of_job(self, job: int, reason: str) -> None:
        """Something hinders one job alone (``reason``), or no longer does (``""``)."""
        if reason:
            self.of_jobs[job] = reason
        else:
            self.of_jobs.pop(job, None)

    async def look_at_disk(self, layout: Layout, limits: DiskSettings) -> None:
        """See whether the spool's disk is too full, or refuses to tell."""
        try:
            self.free = await asyncio.to_thread(layout.free, doubtful=bool(self.of_all))
        except OSError as error:
            self.say(_DISK, f"{layout.root}: {error.strerror}")
            return
        reason = disk_trouble(self.free, limits, low_already=self.disk_low)
        self.say(_DISK, f"{layout.root}: {reason}" if reason else "")
