"""Alarms, and messages to submitters: JSON behind ``schema``, ``kind``, ``at``, ``host`` and ``text``."""

from __future__ import annotations

import socket
import time
from typing import Any, ClassVar, Protocol

import msgspec

from obatchd.documents import SCHEMA
from obatchd.times import duration, instant
from obatchd.words import ENDED, job_ending


class Alarm(msgspec.Struct, frozen=True):
    """Something needs somebody."""

    kind: ClassVar[str]  # one of settings.tables.people.AlarmKind, or one that is told in every case

    @property
    def words(self) -> str:
        """What happened, and what to do, in one line for people."""
        raise NotImplementedError


class Announcer(Protocol):
    """Tells somebody outside; :class:`obatchd.telling.alarms.Alarms`, and on a host of many
    :class:`obatchd.cluster.host.alarms.AlarmsToHead`."""

    def announce(self, alarm: Alarm) -> None:
        """Raise an alarm, if somebody wants to hear of its kind."""


class GpuQuarantined(Alarm, frozen=True):
    """A GPU is taken out of use."""

    kind = "quarantine"
    uuid: str
    index: int | None
    serial: str
    slot: str
    reason: str
    by: str  # rules, administrator
    action: str  # what to do

    @property
    def words(self) -> str:
        name = self.uuid if self.index is None else self.index
        return f"GPU {name} is in quarantine: {self.reason}" + (f". {self.action}" if self.action else "")


class GpusUnknown(Alarm, frozen=True):
    """The driver has not told anything about any GPU for minutes."""

    kind = "gpus_unknown"
    reason: str  # with what to do

    @property
    def words(self) -> str:
        return f"the GPUs are not watched: {self.reason}"


class ServerFailed(Alarm, frozen=True):
    """A server failed too often."""

    kind = "server_failed"
    server: str
    gpu: str  # UUIDs, with commas between
    reason: str

    @property
    def words(self) -> str:
        return f"server {self.server} failed: {self.reason}"


class BurninFinished(Alarm, frozen=True):
    """A burn-in is over."""

    kind = "burn_in_finished"
    run: str
    verdict: str

    @property
    def words(self) -> str:
        return f"burn-in {self.run} is over: {self.verdict}. See it: obatchctl burnin report {self.run}"


class DiskLow(Alarm, frozen=True):
    """The disk of the spool is too full to go on."""

    kind = "disk_low"
    reason: str

    @property
    def words(self) -> str:
        return f"work waits because of the disk: {self.reason}"


class DropChanged(Alarm, frozen=True):
    """A drop was written to after it had been taken: its job has not run the whole of it, or half an upload."""

    kind = "drop_changed"
    job: str
    owner: int  # uid
    more_bytes: int  # than were taken; negative: fewer
    action: str  # what to do

    @property
    def words(self) -> str:
        return f"the drop of job {self.job} was written to after it was taken. {self.action}"


class JobDone(Alarm, frozen=True):
    """A job's ``summary.json`` is there."""

    kind = "job_done"
    job: str
    owner: int  # uid
    requests: int
    succeeded: int
    failed: int
    wall_s: float
    cancelled: int = 0
    expired: int = 0

    @property
    def ending(self) -> str:
        return job_ending(self.requests, self.failed, self.cancelled, self.expired)

    @property
    def words(self) -> str:
        counts = {"failed": self.failed, "were cancelled": self.cancelled, "expired": self.expired}
        rest = "".join(f", {count} {what}" for what, count in counts.items() if count)
        of = f"{self.succeeded} of {self.requests} request{'' if self.requests == 1 else 's'} succeeded{rest}"
        return (
            f"job {self.job} {ENDED[self.ending]}: {of}, in {duration(self.wall_s)}. See it: obatchctl job {self.job}"
        )


class JobRefused(Alarm, frozen=True):
    """A drop turned out not to be a job; its reason is in ``failed/``. Only its submitter is told."""

    kind = "job_refused"
    job: str
    owner: int  # uid

    @property
    def words(self) -> str:
        return f"job {self.job} was refused. To see why: obatchctl job {self.job}"


class AlarmTest(Alarm, frozen=True):
    """``obatchctl alarms test``."""

    kind = "test"

    @property
    def words(self) -> str:
        return "this is a test: alarms arrive here"


def message(alarm: Alarm, host: str = "") -> dict[str, Any]:
    """An alarm of now as it leaves this host; ``host`` is the joined host that it comes from, else it is this one."""
    host = host or socket.gethostname()
    text = " ".join(f"obatchd on {host}: {alarm.words}".split())
    head = {"schema": SCHEMA, "kind": alarm.kind, "at": instant(time.time()), "host": host, "text": text}
    return head | msgspec.structs.asdict(alarm)
