"""Questions and commands of programs over HTTP: the interface between ``front`` and the composition root.

The classes of :mod:`obatchd.operations` implement the Protocols. A method may raise ApiError, which says how OpenAI's
API refuses the call, and SpoolError where the disk refuses. What is somebody else's is not found.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from attrs import frozen

from obatchd.control.auth import Caller
from obatchd.control.operations import ModelOperations
from obatchd.documents.native import RunningModels, StoredModels
from obatchd.documents.programs import BatchObject, DeletedFile, FileObject, Page

RESULT_FILES = ("summary.json", "results.jsonl", "errors.jsonl")
KEY_PREFIX = "obk_"  # of every key
# What a key may be good for. A route says which of them it needs; a key that names none has those of programs.
BATCHES, INFERENCE, METRICS = "batches", "inference", "metrics"
SCOPES = (BATCHES, INFERENCE, METRICS)
SCOPES_OF_PROGRAMS = (BATCHES, INFERENCE)


class KeyHolder(NamedTuple):
    """Who a key stands for, and what it is good for."""

    key: str  # its id
    owner: int  # uid
    administrator: bool
    scopes: frozenset[str]
    label: str = ""


class KeyListener(Protocol):
    """Hears of keys that are good no more; :class:`obatchd.front.listener.Listener`."""

    def revoked(self, key: str) -> None:
        """The key with this id was removed: whoever uses it at this moment is cut off."""


class KeyHolders(Protocol):
    """Looks keys up."""

    def holder(self, key: str) -> KeyHolder | None:
        """Whose key this is; None: nobody's, or it has expired. Takes microseconds and writes nothing."""

    def listen(self, listener: KeyListener) -> None:
        """Tell ``listener`` from now on."""


class Selection(NamedTuple):
    """Which part of a list is asked for."""

    after: str | None  # the id before the first one
    limit: int
    descending: bool = True
    purpose: str | None = None


class FileTerms(NamedTuple):
    """What is said of a file beside its content."""

    purpose: str
    expires_after_s: int | None


class Content(NamedTuple):
    """Where the bytes of a file lie, and its name."""

    path: Path
    name: str


class Upload(Protocol):
    """A file on its way in. One that is not finished is abandoned, and nothing of it stays."""

    async def write(self, block: bytes) -> None:
        """Add bytes; raises ApiError where there are too many of them for the file, its owner or the disk."""

    async def finish(self, terms: FileTerms) -> FileObject:
        """The file is whole: it is durable when this returns."""

    async def abandon(self) -> None:
        """Forget it; nothing happens to one that is finished."""


class FileOperations(Protocol):
    """Files of programs."""

    async def begin(self, caller: Caller, name: str) -> Upload:
        """Begin an upload; raises ApiError where its owner has too many files, or there is no room."""

    def one(self, caller: Caller, file: str) -> FileObject:
        """One of them."""

    async def all(self, caller: Caller, selection: Selection) -> Page[FileObject]:
        """Files in the order of their ids; an output file stands where its batch does."""

    def content(self, caller: Caller, file: str) -> Content:
        """Where its bytes are."""

    async def remove(self, caller: Caller, file: str) -> DeletedFile:
        """Delete a file; of an output file also the answers in the store."""


class ResultFiles(Protocol):
    """The files of the outbox of a job, for the Python client on another host. Each method raises NotFoundError."""

    def one(self, caller: Caller, job: str, name: str) -> Path:
        """One of :data:`RESULT_FILES` of a job that is over."""

    def so_far(self, caller: Caller, job: str) -> AsyncGenerator[bytes, None]:
        """What has its outcome by now of a job that may still run: lines, in input order, in constant memory."""


class BatchAsked(NamedTuple):
    """The fields of a batch that is asked for, not checked yet."""

    fields: dict[str, Any]
    idempotency_key: str | None
    again: bool  # the client says that it asks once more


class BatchOperations(Protocol):
    """Batches."""

    async def create(self, caller: Caller, asked: BatchAsked) -> BatchObject:
        """Make a batch of an uploaded file; returns once it is durably accepted.

        One that was made lately for the same is returned instead, where its client asks again or never had an answer.
        """

    def answered(self, batch: str) -> None:
        """The answer to ``create`` has gone to its client."""

    async def one(self, caller: Caller, batch: str) -> BatchObject:
        """One of them."""

    async def all(self, caller: Caller, selection: Selection) -> Page[BatchObject]:
        """Batches, the newest first, those that were dropped into the inbox among them."""

    async def cancel(self, caller: Caller, batch: str) -> BatchObject:
        """Cancel the unfinished requests of a batch."""


class Piece(NamedTuple):
    """The next piece of an answer; ``calls`` are whole calls of functions, as JSON."""

    text: str
    think: str
    calls: Sequence[msgspec.Raw]


class Awaited(Protocol):
    """An answer that somebody waits for: ``wait`` for its pieces, then ask for its ``result``. Close it in any case."""

    async def wait(self, limit_s: float) -> bool:
        """Wait for more of the answer, or its end; False: ``limit_s`` have passed. May be cancelled."""

    def fresh(self) -> Piece | None:
        """What has come; None: the answer is over, where ``wait`` said that something is there."""

    async def result(self) -> bytes:
        """The result, as a line of ``results.jsonl``; raises ApiError where there is no answer."""

    async def body(self, key: str, model: str) -> bytes:
        """The result as OpenAI's API has it: the body of an answer whose id ends in ``key``. Else as ``result``.

        ``model`` is the name that is to stand in it.
        """

    def close(self) -> None:
        """Nobody waits any more: its slot is free within a moment."""


class Asking(Protocol):
    """Takes requests of people and programs that wait for the answer."""

    async def ask(self, caller: Caller, raw: bytes, *, stream: bool) -> Awaited:
        """Ask what one line of a drop asks, in pieces with ``stream``; raises ApiError where it is not taken."""


class NativeModels(Protocol):
    """The models of all servers as those of one Ollama."""

    def version(self) -> str:
        """The lowest version of the servers, so that no program counts on what one of them lacks.

        Raises ApiError where none is known yet.
        """

    async def stored(self) -> StoredModels:
        """All that any server has."""

    async def running(self) -> RunningModels:
        """All that any server has loaded."""

    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw]:
        """What a server that has it tells of a model, as it came; raises ApiError (404) where none has it."""

    async def check(self, model: str) -> None:
        """Make sure that a server has the model: calls of programs pull none. Raises as ``show``."""


@frozen(eq=False)
class Programs:
    """The daemon as programs see it, by what they ask about."""

    keys: KeyHolders
    files: FileOperations
    batches: BatchOperations
    models: ModelOperations
    native: NativeModels
    asking: Asking
