"""Messages and questions of dispatch to the rest of the daemon."""

from __future__ import annotations

from typing import Protocol

import msgspec

from obatchd.dispatch.protocol import JobContext
from obatchd.errors import ObatchError
from obatchd.jobs.model import Profile

INTERRUPTED = "interrupted"  # recorded for an attempt that the end of the daemon cut short


class Finished(msgspec.Struct, array_like=True):
    """The recorded end of a request: the committer stores it, the job counts it."""

    job: int
    line: int
    lane: int
    succeeded: bool
    record: bytes
    duration_s: float
    response_tokens: int = 0
    prompt_tokens: int = 0
    server: str = ""  # that answered; empty where none did


class Failed(msgspec.Struct, array_like=True):
    """An attempt that ended in a fault and is not the last one."""

    job: int
    line: int
    attempt: int
    server: str
    started_s: float
    fault: str
    spent_s: float = 0.0


class DispatchEvents(Protocol):
    """Hears of requests on their way through dispatch; :class:`obatchd.delivery.completion.Completion`."""

    def finished(self, finished: Finished) -> None:
        """A request has its outcome."""

    def served(self, finished: Finished) -> None:
        """Somebody who waited for it was answered, which belongs to no job; a server worked for it."""

    def failed(self, failed: Failed) -> None:
        """An attempt failed and another one follows."""

    def hindered(self, job: int, reason: str) -> None:
        """A server's bad answer keeps a request of a job waiting, or cost it an attempt; in words for its owner."""

    def model_missing(self, model: str) -> None:
        """A server says that it does not have a model."""

    def unservable(self, profile: Profile, error: ObatchError) -> None:
        """No server can serve ``profile``: its requests are to fail with the reason."""

    def context_of(self, job: int) -> JobContext:
        """The shared part of the requests of a job, by its key."""

    def name_of(self, job: int) -> str:
        """The id that people know a job by, for logs; the key itself of one that is gone."""

    def defective(self, job: int) -> None:
        """The requests of the job with this key cannot be offered to any server, by a defect: they are to fail."""


class CrashListener:
    """Hears of crashes of servers; does nothing by itself. :class:`obatchd.gpucare.policy.GpuPolicy` judges by them."""

    def crashed(self, server_id: str, work: str, crashed_s: float) -> None:
        """A request was in flight as a server crashed, whose profile is ``work`` in words.

        ``crashed_s`` is monotonic, and nearly the same for all requests that the crash took along.
        """

    def cleared(self, server_id: str, work: str, crashed_s: float, answered_by: str) -> None:
        """The server with the id ``answered_by`` answered such a request."""


class ModelStore(Protocol):
    """Knows the servers' models; :mod:`obatchd.daemon.compose` has the one of the daemon."""

    async def ensure(self, server_id: str, model: str) -> list[str]:
        """Make sure that a model is in the store of a server; its capabilities. Raises ModelError where it cannot."""
