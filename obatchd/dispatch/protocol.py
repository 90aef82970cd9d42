"""Main process ↔ worker: the messages in the frames of :mod:`obatchd.frames`, many requests per frame.

Nothing here assumes that both ends share a machine or a spool: an offer carries the request's own bytes, a result
carries the finished record. Keys are always (job key, line); the attempt number tells a late answer of an abandoned
attempt from the current one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

INTERACTIVE = (
    0  # the job in the keys of interactive requests, whose line is a number of the main process; jobs begin at 1
)
_same_bytes = msgspec.json.Encoder(order="sorted").encode


class Configure(msgspec.Struct, tag="configure", frozen=True):
    """First frame to a worker, and again whenever one of these changes."""

    server: str
    gpu: str
    base_url: str
    token: str
    slots: int
    connect_timeout_s: float
    stall_s: float
    request_timeout_s: float
    version: str = ""  # of Ollama; empty: not known


class JobContext(msgspec.Struct, tag="job", frozen=True):
    """The common part of a job's requests; sent to a worker before its first offer of that job."""

    job: int
    name: str
    system_message: str
    options: dict[str, Any]
    max_response_tokens: int
    format: str | dict[str, Any] = ""  # empty: text
    in_source: list[str] = []
    think: bool | str = "auto"  # auto: the model's own way


def context_sha256(context: JobContext) -> str:
    """The common part of a job's requests that bears on their answers; the same in any job with those settings."""
    return hashlib.sha256(_same_bytes(msgspec.structs.replace(context, job=0, name=""))).hexdigest()


class OfferItem(msgspec.Struct, array_like=True, frozen=True):
    """One request to be answered. ``servers`` are those of earlier attempts."""

    job: int
    line: int
    attempt: int
    raw: bytes
    servers: list[str] = []
    limit_s: float | None = None  # the rest of the request's total time, where that is less than an attempt's
    prepared: bytes = b""  # its sources, as the preparer gave them; empty where it names none
    family: int | None = None  # of the job's requests with the same long beginning


class Offer(msgspec.Struct, tag="offer", frozen=True):
    """Requests for the profile that the server has loaded. ``load_options`` go into every body unchanged.

    Those of a higher ``rank`` begin before all that the worker holds: they are interactive, one to an offer. With
    ``stream`` their texts are sent as they come, else the first sign of them alone.
    ``capabilities`` are those of the model as Ollama names them (vision, thinking …), and last "opens <think>" where
    its template begins the reasoning; none where they are not known.
    """

    model: str
    load_options: dict[str, Any]
    items: list[OfferItem]
    capabilities: list[str] = []
    rank: int = 0
    stream: bool = False


class Recall(msgspec.Struct, tag="recall", frozen=True):
    """Give back up to ``count`` requests that were offered and not started, the last offered first."""

    count: int


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Abandon everything of a job, started or not; nothing is answered for it."""

    job: int


class CancelOne(msgspec.Struct, tag="cancel_one", frozen=True):
    """Abandon one request, started or not; nothing is answered for it."""

    job: int
    line: int


class Forget(msgspec.Struct, tag="forget", frozen=True):
    """The job is over; its context is no longer needed."""

    job: int


class GiveUp(msgspec.Struct, tag="give_up", frozen=True):
    """End every attempt that has a slot with this fault: the server does not do its work."""

    fault: str
    code: str
    message: str


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Answered by a Progress frame at once. So many requests were ``offered`` to this worker before it."""

    offered: int = 0


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """First frame of a worker."""

    pid: int


class Started(msgspec.Struct, tag="started", frozen=True):
    """Requests that now occupy a slot."""

    keys: list[tuple[int, int]]


class ResultItem(msgspec.Struct, array_like=True, frozen=True):
    """The end of one attempt.

    ``record`` is the finished result object as JSON, valid for the outbox as it is. ``fault`` is empty for a success;
    else the kind of :mod:`obatchd.ollama.faults`, and ``record`` says what to publish if no other attempt follows.
    """

    job: int
    line: int
    attempt: int
    succeeded: bool
    record: bytes
    duration_s: float
    prompt_tokens: int
    response_tokens: int
    fault: str = ""
    code: str = ""
    message: str = ""
    eval_s: float = 0.0  # generating
    wait_s: float = 0.0  # inside the server, for a slot; 0 where it cannot be told
    active: int = 0  # the least number of requests in a slot at its start and its end
    vectors: bool = False  # asked for vectors, and may share a call with others that do
    beside_s: float = 0.0  # of several answers of one request: the time in other slots than its own


class TokenItem(msgspec.Struct, array_like=True, frozen=True):
    """What has come of one answer since the item before, in an attempt that goes on.

    All texts of an attempt that succeeds, put together, are those of its record. Both texts are empty where the request
    asked for no stream: then this is the first sign of its answer.
    """

    job: int
    line: int
    attempt: int
    text: str = ""
    think: str = ""
    calls: bytes = b""  # functions that the model asks for, as a JSON array; empty: none


class Tokens(msgspec.Struct, tag="tokens", frozen=True):
    """Of interactive requests; the first of each at once, later ones gathered for a moment."""

    items: list[TokenItem]


class Results(msgspec.Struct, tag="results", frozen=True):
    items: list[ResultItem]


class Returned(msgspec.Struct, tag="returned", frozen=True):
    """Answer to Recall, Cancel and CancelOne: requests the worker no longer holds and has not answered."""

    keys: list[tuple[int, int]]


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """Sign of life, every second: tokens received since the last one, requests in a slot, seconds since any token.

    ``held`` requests are at the worker, or in its results that it has not sent; -1: it does not count. It ``got`` so
    many offers of requests in its life; when the latest ping came, which said that ``offered`` were sent before it, it
    had got ``got_then``.
    """

    tokens: int
    active: int
    silent_s: float
    held: int = -1
    got: int = 0
    offered: int = 0
    got_then: int = 0


ToWorker = Configure | JobContext | Offer | Recall | Cancel | CancelOne | Forget | GiveUp | Ping
ToMain = Hello | Started | Tokens | Results | Returned | Progress

to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
to_main: msgspec.msgpack.Decoder[ToMain] = msgspec.msgpack.Decoder(ToMain)
