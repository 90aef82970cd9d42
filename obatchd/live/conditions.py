"""Conditions outside the daemon that hinder its work: a full disk, a store or inbox that refuses, an unreadable job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from attrs import define, field

from obatchd import log
from obatchd.dispatch.holds import Holds
from obatchd.documents.alarms import Announcer, DiskLow
from obatchd.jobs.store import DISK_ERRORS
from obatchd.settings.tables.spool import DiskSettings
from obatchd.spool.layout import FreeSpace, Layout
from obatchd.words import binary_size, counted

_log = log.get(__name__)
RETRY_S = 1.0  # between two tries of a step that the disk refused
INTAKE = "intake"  # must not keep the intake from finding out that this condition is over
_DISK = "disk"
_RESUME = 1.1  # this much more than the least must be free again, so that the daemon does not go on and off
T = TypeVar("T")


class ConditionListener(Protocol):
    """Hears when drops may be taken again."""

    def condition_over(self) -> None:
        """A condition that may have kept drops in the inbox is over."""


@define(eq=False)
class Conditions:
    """Holds dispatch while any condition hinders all of it."""

    _holds: Holds
    _announcer: Announcer
    of_all: dict[str, str] = field(factory=dict, init=False)  # those that hinder everything: reason by kind
    of_jobs: dict[int, str] = field(factory=dict, init=False)  # those that hinder one job: reason by key
    free: FreeSpace = field(default=FreeSpace(0, 0), init=False)  # of the spool's file system, as last seen
    _unpublished: bool = field(default=False, init=False)
    _listeners: list[ConditionListener] = field(factory=list, init=False)

    def listen(self, listener: ConditionListener) -> None:
        self._listeners.append(listener)

    @property
    def may_claim(self) -> bool:
        """Whether drops may be taken out of the inbox."""
        return not self._unpublished and not self.of_all.keys() - {INTAKE}

    @property
    def disk_low(self) -> bool:
        return _DISK in self.of_all

    def report(self, kind: str, reason: str) -> None:
        """A condition hinders everything (``reason``), or no longer does (``""``)."""
        if reason:
            if kind not in self.of_all:
                _log.error("trouble", kind=kind, reason=reason)
                if kind == _DISK:
                    self._announcer.announce(DiskLow(reason))
            self.of_all[kind] = reason
            self._holds.hold(kind)
        elif self.of_all.pop(kind, None) is not None:
            _log.info("trouble_over", kind=kind)
            self._holds.release(kind)
            self._over()

    def report_job(self, job: int, reason: str) -> None:
        """A condition hinders one job alone (``reason``), or no longer does (``""``)."""
        if reason:
            self.of_jobs[job] = reason
        else:
            self.of_jobs.pop(job, None)

    def publishing_lags(self, lags: bool) -> None:
        """So many answered jobs wait for their publication that no more drops are taken, or no longer."""
        if self._unpublished and not lags:
            self._unpublished = False
            self._over()
        self._unpublished = lags

    async def until_disk_takes(
        self, step: Callable[[], Awaitable[T]], where: str | int, event: str, words: str, **fields: object
    ) -> T:
        """Do ``step`` until the disk does not refuse it any more; meanwhile a condition holds.

        Args:
            where: the kind of the condition, or the key of the one job that it hinders.
            event: logged for each refusal, with ``fields``.
            words: for people: the step that the disk holds up.
        """
        report = partial(self.report, where) if isinstance(where, str) else partial(self.report_job, where)
        while True:
            try:
                done = await step()
            except DISK_ERRORS as error:
                _log.error(event, **fields, reason=log.reason(error))
                report(f"{words}: {log.reason(error)}")
                await asyncio.sleep(RETRY_S)
            else:
                report("")
                return done

    async def look_at_disk(self, layout: Layout, limits: DiskSettings) -> None:
        """See whether the spool's disk is too full, or refuses to tell."""
        try:
            self.free = await asyncio.to_thread(layout.free, doubtful=bool(self.of_all))
        except OSError as error:
            self.report(_DISK, f"{layout.root}: {error.strerror}")
            return
        reason = disk_trouble(self.free, limits, low_already=self.disk_low)
        self.report(_DISK, f"{layout.root}: {reason}" if reason else "")

    def _over(self) -> None:
        for listener in self._listeners:
            listener.condition_over()


def disk_trouble(free: FreeSpace, limits: DiskSettings, *, low_already: bool) -> str:
    """Why nothing more should be begun; empty when all is well."""
    factor = _RESUME if low_already else 1
    found = []
    if free.read_only:
        found.append("it is mounted read-only; look at the kernel's log (dmesg) for errors of the disk")
    if free.bytes < limits.min_free_bytes * factor:
        least = binary_size(limits.min_free_bytes)
        found.append(f"{binary_size(free.bytes)} free, less than min_free_bytes ({least}); free some space")
    if 0 <= free.inodes < limits.min_free_inodes * factor:
        found.append(
            f"{counted(free.inodes, 'inode')} free, less than min_free_inodes ({limits.min_free_inodes}); "
            "delete some files"
        )
    return "; ".join(found)
