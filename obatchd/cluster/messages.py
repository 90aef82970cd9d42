"""Head ↔ host: the messages on channel 0 of a session.

A session begins so: the head sends :class:`Challenge`, the host answers with :class:`Hello`, the head says
:class:`Accepted` or :class:`Refused`. Then the host says what there is (:class:`ServerNews` of each server,
:class:`HostNews`), and from then on each change of it. Both sides may :class:`Call` each other at any time.
"""

from __future__ import annotations

from typing import Any

import msgspec

from obatchd.documents.gpus import Gpus, Reading
from obatchd.documents.models import PullProgress
from obatchd.gpus.model import Gpu
from obatchd.jobs.model import Profile

PROTOCOL = 1


class Challenge(msgspec.Struct, tag="challenge", frozen=True):
    """First message of the head. ``nonce`` is repeated in the hello, so that none can be said twice."""

    nonce: bytes
    version: str  # of the head's obatchd
    protocol: int = PROTOCOL


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """First message of a host."""

    nonce: bytes
    name: str  # of the host, as its credential has it
    version: str
    instance: str  # of the host's directory: another one after a reinstallation
    machine: str  # machine-id, hashed
    clock_s: float  # seconds since the epoch, as the host's clock has it
    allocation: str = ""  # what started it, in words: "Slurm job 4711"; empty: itself
    asks: bool = False  # for the terms alone, and has no servers until it has them
    protocol: int = PROTOCOL


class Terms(msgspec.Struct, tag="terms", frozen=True):
    """What the head decides for all hosts: settings by table and key (``servers`` → ``slots`` …). Again on a reload."""

    settings: dict[str, dict[str, Any]]
    lease_s: float


class Accepted(msgspec.Struct, tag="accepted", frozen=True):
    """The session has begun."""

    terms: Terms


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """There is no session; the head closes the connection. ``message`` says why, and what to do."""

    code: str
    message: str
    final: bool = False  # the same hello cannot do better later


# What there is at a host.


class SlotNews(msgspec.Struct, frozen=True):
    """Of a server whose slots obatchd chooses; as :class:`obatchd.dispatch.tuning.ports.TunableServer`."""

    device: str
    driver: str
    memory_bytes: int
    vram_bytes: int
    process_slots: int
    first_slots: int
    fresh: bool
    beside_others: bool


class ServerNews(msgspec.Struct, tag="server", frozen=True):
    """A server of the host, whole; sent at first and whenever anything of it has changed."""

    id: str  # on its host: gpu0
    state: str  # a ServerState
    reason: str
    down: str
    base_url: str
    gpu_label: str
    gpus: list[Gpu]
    slots: int
    version: str
    loaded: Profile | None
    loading: Profile | None
    load_s: float | None
    restarts: int
    pid: int | None
    load_options: dict[str, Any]  # beside the context length
    starting_runner: bool = False
    holds: dict[str, str] = {}
    model_vram_bytes: int | None = None
    unloads_in_s: float | None = None
    loads: int = 0  # of models, since the host's process began
    tuning: SlotNews | None = None  # None: its slots are fixed


class ServerGone(msgspec.Struct, tag="server_gone", frozen=True):
    """The host has that server no more."""

    id: str


class HostNews(msgspec.Struct, tag="host", frozen=True):
    """The host beside its servers: at first, and every few seconds where it has changed."""

    gpus: Gpus  # as ``obatchctl gpus`` shows them
    readings: list[Reading]  # of the GPUs of its servers, the latest ones
    notices: list[str] = []
    pulls: dict[str, PullProgress] = {}  # downloads of models in progress, as ModelKeeper.pulls
    leaving: str = ""  # why it is about to go: "its time limit is near"; it gets no new work then
    share: str = ""  # as :func:`obatchd.servers.stores.sharing.share_of` calls its store


class WorkerStarted(msgspec.Struct, tag="worker_started", frozen=True):
    """A worker runs at a server; ``channel`` is its own, and counts up in a session."""

    server: str
    channel: int
    pid: int


class WorkerEnded(msgspec.Struct, tag="worker_ended", frozen=True):
    """It is gone; as :class:`obatchd.child.End`. Nothing more comes on its channel, and what is sent there is lost."""

    channel: int
    words: str
    lived_s: float
    silent: bool = False


class AlarmNews(msgspec.Struct, tag="alarm", frozen=True):
    """An alarm for administrators: the name of its class in :mod:`obatchd.documents.alarms`, and its fields."""

    kind: str
    fields: dict[str, Any]


# What the head tells of a server.


class KillWorker(msgspec.Struct, tag="kill_worker", frozen=True):
    """End a worker that hangs; WorkerEnded follows, and another worker."""

    channel: int


class Busy(msgspec.Struct, tag="busy", frozen=True):
    """Whether a server has requests; said when that changes."""

    server: str
    busy: bool


class Progressed(msgspec.Struct, tag="progressed", frozen=True):
    """A server has done something of use; at most once a second."""

    server: str


class UseSlots(msgspec.Struct, tag="use_slots", frozen=True):
    """Of the slots of its process a server uses so many from now on."""

    server: str
    slots: int


class Fault(msgspec.Struct, tag="fault", frozen=True):
    """A strike against a server; ``broken``: restart it at once, after a pause."""

    server: str
    reason: str
    broken: bool = False


# Questions and commands, in both directions.


class Call(msgspec.Struct, tag="call", frozen=True):
    """``id`` counts up on the caller's side; ``arguments`` are the method's own, by name."""

    id: int
    method: str
    arguments: dict[str, Any]


class Part(msgspec.Struct, tag="part", frozen=True):
    """A part of the answer to a call that has several; the reply ends it."""

    id: int
    value: msgspec.Raw


class CallError(msgspec.Struct, frozen=True):
    """An ObatchError: the name of its class, its code and message."""

    kind: str
    code: str
    message: str


class Reply(msgspec.Struct, tag="reply", frozen=True):
    """The end of a call: its value as msgpack, or the error."""

    id: int
    value: msgspec.Raw
    error: CallError | None = None


class CancelCall(msgspec.Struct, tag="cancel_call", frozen=True):
    """Nobody waits for that any more; a reply may come or not."""

    id: int


ToHost = (
    Challenge
    | Accepted
    | Refused
    | Terms
    | KillWorker
    | Busy
    | Progressed
    | UseSlots
    | Fault
    | Call
    | Part
    | Reply
    | CancelCall
)
ToHead = (
    Hello
    | ServerNews
    | ServerGone
    | HostNews
    | WorkerStarted
    | WorkerEnded
    | AlarmNews
    | Call
    | Part
    | Reply
    | CancelCall
)

encode = msgspec.msgpack.Encoder().encode
to_host: msgspec.msgpack.Decoder[ToHost] = msgspec.msgpack.Decoder(ToHost)
to_head: msgspec.msgpack.Decoder[ToHead] = msgspec.msgpack.Decoder(ToHead)
