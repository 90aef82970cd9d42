"""Alarms, as the command of ``[alarms]`` gets them in JSON, behind ``schema``, ``kind``, ``at`` and ``host``."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Alarm(msgspec.Struct, frozen=True):
    """Something needs somebody."""

    kind: ClassVar[str]  # one of settings.tables.people.AlarmKind


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


class ServerFailed(Alarm, frozen=True):
    """A server failed too often."""

    kind = "server_failed"
    server: str
    gpu: str  # UUIDs, with commas between
    reason: str


class BurninFinished(Alarm, frozen=True):
    """A burn-in is over."""

    kind = "burn_in_finished"
    run: str
    verdict: str


class DiskLow(Alarm, frozen=True):
    """The disk of the spool is too full to go on."""

    kind = "disk_low"
    reason: str


class DropChanged(Alarm, frozen=True):
    """A drop was written to after it had been taken: its job has not run the whole of it, or half an upload."""

    kind = "drop_changed"
    job: str
    owner: int  # uid
    more_bytes: int  # than were taken; negative: fewer
    action: str  # what to do


class JobDone(Alarm, frozen=True):
    """A job's ``summary.json`` is there."""

    kind = "job_done"
    job: str
    owner: int  # uid
    requests: int
    succeeded: int
    failed: int
    wall_s: float
