"""The objects of OpenAI's API that obatchd shows to programs, and keys.

Names, types and order of the fields are that API's (https://platform.openai.com/docs/api-reference/batch/object and
``/files/object``), so numbers have no unit in their names: times are whole seconds since 1970, sizes bytes.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

_T = TypeVar("_T")


class FileObject(msgspec.Struct, kw_only=True):
    """A file: one that was uploaded, or an output of a batch."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str  # batch, batch_output
    status: str = "processed"  # clients wait for this word
    status_details: str | None = None


class DeletedFile(msgspec.Struct):
    """What is said of a file that is no more."""

    id: str
    object: str = "file"
    deleted: bool = True


class LineFault(msgspec.Struct):
    """Why a line of a batch cannot be run."""

    code: str
    line: int | None
    message: str
    param: str | None = None


class LineFaults(msgspec.Struct):
    """The faults of a batch that failed, the first thousand."""

    data: list[LineFault]
    object: str = "list"


class RequestCounts(msgspec.Struct):
    """Requests of a batch. Those that were cancelled or expired count in ``total`` alone, as in that API."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class CachedTokens(msgspec.Struct):
    cached_tokens: int = 0


class ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int = 0


class TokenUsage(msgspec.Struct):
    """The tokens of a batch that is over; nobody counts those in a cache or of reasoning apart."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: CachedTokens = msgspec.field(default_factory=CachedTokens)
    output_tokens_details: ReasoningTokens = msgspec.field(default_factory=ReasoningTokens)


class BatchObject(msgspec.Struct, kw_only=True):
    """A batch."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: LineFaults | None = None
    input_file_id: str
    completion_window: str
    status: str  # validating, failed, in_progress, finalizing, completed, expired, cancelling, cancelled
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: TokenUsage | UnsetType = UNSET
    model: str | UnsetType = UNSET  # where one alone is asked, or has answered
    metadata: dict[str, str] | None = None


class ModelObject(msgspec.Struct):
    """A model that servers have."""

    id: str
    created: int = 0  # Ollama does not tell
    object: str = "model"
    owned_by: str = "ollama"


class Page(msgspec.Struct, Generic[_T], kw_only=True):
    """A part of a list."""

    object: str = "list"
    data: list[_T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Problem(msgspec.Struct):
    """Why a call was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ProblemDocument(msgspec.Struct):
    """The body of every refusal."""

    error: Problem


class KeyEntry(msgspec.Struct, kw_only=True):
    """A key, without what is secret of it."""

    id: str
    owner: int  # uid
    label: str
    scopes: list[str]
    administrator: bool
    created_at: str | None
    expires_at: str | None
    last_used_at: str | None


class NewKey(msgspec.Struct, kw_only=True):
    """``POST /v1/keys``: the key itself, which is shown this once."""

    key: str
    about: KeyEntry


class Keys(msgspec.Struct):
    """``GET /v1/keys``: the oldest first; those of a caller who is no administrator are their own."""

    keys: list[KeyEntry]


class HttpDoor(msgspec.Struct):
    """Where programs reach the API over HTTP."""

    address: str  # host:port; empty: over no network, only on the socket
    tls: bool
    problem: str  # why it cannot be reached there; empty: it can
