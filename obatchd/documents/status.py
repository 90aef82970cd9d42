"""The whole state of the daemon, and its servers: ``GET /v1/status`` and ``/v1/servers``."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from obatchd.documents import Document, Number
from obatchd.documents.burnin.report import BurninBrief
from obatchd.documents.engine import EngineState
from obatchd.documents.gpus import Gpus
from obatchd.documents.jobs import JobDocument
from obatchd.documents.models import Pull
from obatchd.documents.programs import HttpDoor


class ServerGpu(msgspec.Struct):
    """A GPU of a server, with its latest reading; a slice of a GPU has its parent's index."""

    uuid: str
    index: int
    name: str
    utilisation_percent: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temp_c: int | None = None
    power_w: float | None = None
    asleep: bool | UnsetType = UNSET  # nobody uses it, and it is not asked, so that it can sleep


class LoadedModel(msgspec.Struct):
    """A model in the memory of a server."""

    model: str
    context_length: int  # tokens


class RefusedModel(msgspec.Struct):
    """A model that a server was to have lately, and cannot: it is asked again after ten minutes, or when resumed."""

    model: str
    context_length: int  # tokens
    code: str
    reason: str  # with what to do


class ServerEntry(msgspec.Struct):
    """One server."""

    id: str
    kind: str  # managed, remote
    state: str  # a ServerState
    reason: str  # why it is in that state
    url: str
    gpu: ServerGpu | None  # the first
    gpus: list[ServerGpu]  # several of a group; none of a server on the CPU or elsewhere
    loaded: LoadedModel | None
    loading: LoadedModel | None
    in_flight: int  # requests in a slot
    offered: int  # requests that its worker has, those in a slot included
    slots: int
    tokens_per_s: float  # over the last 30 s
    requests_done: int
    restarts: int  # runs that ended unasked; of a server that others start, only those in which it answered
    watchdog: dict[str, int]  # findings by name
    pid: int | None  # of ollama, where we started it
    worker_pid: int | None  # of the process that sends it requests
    cannot_have: list[RefusedModel] | UnsetType = UNSET  # absent without any
    families: int | UnsetType = UNSET  # of the offered requests, different long beginnings that others share; or absent
    host: str | UnsetType = UNSET  # the joined host that keeps it alive; absent: this machine


class HostBrief(msgspec.Struct):
    """A joined host in a few words; ``GET /v1/hosts`` has more."""

    name: str
    state: str  # here, away, draining, leaving
    reason: str  # of its state; empty: it is here and gets work
    since: str | None  # when it came or went
    version: str  # of its obatchd; empty: it has not come since the daemon began


class Servers(msgspec.Struct):
    """``GET /v1/servers``; those of joined hosts behind, by host."""

    servers: list[ServerEntry]


class ProbeState(msgspec.Struct):
    """The process that asks the driver."""

    state: str  # ok, absent (no driver), unknown (it does not answer)
    message: str
    pid: int | None


class QueueCounts(msgspec.Struct):
    """All jobs in work."""

    requests: int  # that wait, those of paused jobs included
    jobs: int
    finished: int  # requests of these jobs
    total: int  # requests of these jobs, as far as they are read
    requests_per_s: Number  # over the last 30 s


class InteractiveState(msgspec.Struct):
    """Requests of people who wait for the answer, which belong to no job."""

    waiting: int  # for a slot
    in_flight: int  # in a slot
    answered: int  # since the daemon began
    first_token_p95_s: float | None  # 19 of 20 answers of the last ten minutes began within this time
    reserved_slots: int  # that batches leave free, over all servers


class BlockedDrop(msgspec.Struct):
    """A drop that waits in the inbox because something is in its way."""

    name: str
    reason: str


class InboxState(msgspec.Struct):
    """The inbox as the last scan found it."""

    settling: int  # drops that may still be written to
    blocked: list[BlockedDrop]
    refused: int  # since the daemon began
    problem: str  # why it cannot be read; empty: it can
    waiting: int | UnsetType = UNSET  # drops that are ready, and not taken until the reasons of the status are over


class DiskState(msgspec.Struct):
    """The file system of the spool."""

    free_bytes: int
    free_inodes: int  # -1 where the file system does not count them
    low: bool  # dispatch and inbox wait


class Overview(Document):
    """``GET /v1/page``: all that a page shows at a glance, in one document."""

    revision: str  # another one as soon as anything else in the document is another one
    uid: int  # of the caller
    administrator: bool
    status: Status  # without jobs; free bytes and inodes are rounded, so that they change seldom
    gpus: Gpus
    jobs: list[JobDocument]  # all in work, up to 1,000, and the newest others; newest first
    next: str | None  # for older ones: the id to ask for as ``after`` of ``GET /v1/jobs``; null: there are none


class Status(Document):
    """``GET /v1/status``; of jobs and drops only those that the caller may see."""

    version: str
    spool: str
    pid: int
    started_at: str | None
    state: str  # running, paused, draining, drained, degraded (somebody should look at the reasons), stopping
    reasons: list[str]
    servers: list[ServerEntry]
    gpus: ProbeState
    notices: list[str]  # worth knowing, hinders nothing
    queue: QueueCounts
    inbox: InboxState
    disk: DiskState
    pulls: list[Pull]
    jobs: list[JobDocument]  # in work, the first 50
    burnin: BurninBrief | None = None  # the run in progress
    interactive: InteractiveState | UnsetType = UNSET  # absent while nobody asked in the last ten minutes
    waiting_for_restart: list[str] | UnsetType = UNSET  # settings that a reload found changed
    http: HttpDoor | UnsetType = UNSET  # where programs reach the API over TCP; absent where they do not
    hosts: list[HostBrief] | UnsetType = UNSET  # that joined, by name; absent without any
    engine: EngineState | UnsetType = UNSET  # that starts hosts; absent where none does
