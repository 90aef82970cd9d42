"""Small answers of the control API, and errors."""

from __future__ import annotations

import msgspec


class Error(msgspec.Struct):
    """Why a request was refused."""

    code: str  # slug, see obatchd.errors
    message: str  # for people, with what to do


class ErrorDocument(msgspec.Struct):
    """The answer to every request that was refused, and the last line or frame of one that goes on."""

    error: Error


class Ping(msgspec.Struct):
    """``GET /v1/ping``."""

    version: str
    pid: int


class Alive(msgspec.Struct):
    """``GET /healthz``."""

    alive: bool


class Readiness(msgspec.Struct):
    """``GET /readyz``: a server is up, the disk has room, and the daemon is not stopping."""

    ready: bool


class Removed(msgspec.Struct):
    """A job or a model that is no more."""

    removed: str  # the job's id, the model's name


class RemovedJobs(msgspec.Struct):
    """``POST /v1/jobs/remove``."""

    removed: list[str]  # ids
    kept: dict[str, str]  # ids of those that could not be erased, with why


class Paused(msgspec.Struct):
    """``POST /v1/pause`` and ``/v1/resume``: whether all dispatch is paused."""

    paused: bool
    held_up: str | msgspec.UnsetType = msgspec.UNSET  # why no job gets on all the same; absent where one can


class HostState(msgspec.Struct):
    """``POST /v1/drain`` and ``/v1/undrain``: the state of the status document."""

    state: str


class Reloaded(msgspec.Struct):
    """``POST /v1/reload``: keys of settings, such as ``dispatch.strikes``."""

    changed: list[str]  # in force
    next_job: list[str]  # those of them that hold for jobs accepted from now on
    needs_restart: list[str]  # not in force


class WayTried(msgspec.Struct):
    """What came of a message that was sent through one way."""

    way: str  # command NAME, webhook at HOST
    told: bool
    reason: str  # why it did not arrive; empty: it did


class AlarmsTested(msgspec.Struct):
    """``POST /v1/alarms/test``: every way of ``[alarms]``."""

    ways: list[WayTried]


class LogLine(msgspec.Struct):
    """Each line of ``GET /v1/servers/SERVER/log``."""

    line: str


class MetricsText(msgspec.Struct):
    """``GET /v1/metrics``."""

    text: str  # in Prometheus' text format
