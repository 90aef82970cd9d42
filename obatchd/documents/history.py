"""GPUs and work over some time, in columns: one value for each step of a grid.

All columns of a document are as long as its ``at_s``, the beginnings of the steps in seconds since the epoch. ``null``
is a step of which nothing is known: the daemon was off, or the GPU asleep. The latest minute or two are not in it yet.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from obatchd.documents.gpus import GpuEventEntry

Column = list[float | None]


class GpuColumns(msgspec.Struct):
    """One card; means of each step but for ``temp_max_c``."""

    uuid: str
    index: int | None  # null: the card is not there any more
    name: str
    serial: str
    slot: str
    memory_total_bytes: int | None
    temp_c: Column
    temp_max_c: Column  # the highest
    power_w: Column
    utilisation_percent: Column
    memory_used_bytes: Column
    clock_mhz: Column
    slowed_percent: Column  # of the time, slowed down by its hardware
    host: str | UnsetType = UNSET  # the joined host that has it; absent: this machine


class GpuHistory(msgspec.Struct):
    """``GET /v1/gpu-history``."""

    step_s: int
    at_s: list[int]
    gpus: list[GpuColumns]  # by index
    events: list[GpuEventEntry]  # the latest 1,000 of that time, oldest first
    more_events: bool  # there were more of them


class HostWork(msgspec.Struct):
    """The work of all servers."""

    tokens_per_s: Column  # of answers, to jobs and to people
    requests_per_s: Column  # that ended, well or not
    failed_per_s: Column
    queued: Column  # requests of jobs that waited, those of paused ones included
    in_flight: Column
    waiting_people: Column  # requests of people that waited for a slot


class ServerWorked(msgspec.Struct):
    """The work of one server."""

    id: str
    tokens_per_s: Column
    in_flight: Column


class WorkHistory(msgspec.Struct):
    """``GET /v1/work-history``."""

    step_s: int
    at_s: list[int]
    host: HostWork
    servers: list[ServerWorked]  # those that had work in that time
