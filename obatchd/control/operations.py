"""Questions and commands to the daemon: the interface between ``control`` and the composition root."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from obatchd.control.auth import Caller
from obatchd.documents.answers import HostState, Paused, Reloaded, Removed
from obatchd.documents.burnin import BurninBrief, BurninHead, BurninReport, BurninStatus, ListedRun
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEventEntry, Gpus, Released
from obatchd.documents.jobs import JobDocument
from obatchd.documents.models import ModelEntry, PullProgress
from obatchd.documents.status import ServerEntry, Status

ServerAction = Literal["drain", "resume", "restart"]


@dataclass(frozen=True)
class Submission:
    """A drop handed over through ``submit.sock``.

    ``files`` yields each file's name (in a folder: its name there; else the drop's own) and an open descriptor of a
    regular file at offset 0. It blocks, so it belongs in a thread; it can be used once; each descriptor is
    closed when the next one is asked for. It raises ControlError when the client goes away or breaks the protocol:
    then nothing may be accepted.
    """

    name: str
    kind: Literal["file", "folder"]
    owner: int  # uid
    settings: dict[str, Any]  # a job.toml's content, not checked yet; see parse_job_settings
    files: Iterator[tuple[str, int]]


class GpuOperations(Protocol):
    """GPUs as operators see them. A GPU is named by UUID or its beginning, index, or serial number.

    Every method but ``all`` raises NotFoundError for an unknown one. Implemented by
    :class:`obatchd.operations.gpus.GpuService`.
    """

    def all(self) -> Gpus:
        """The GPUs of this host, and the state of the host."""

    async def one(self, name: str) -> GpuDetails:
        """One of them."""

    async def events(self, name: str | None, limit: int) -> list[GpuEventEntry]:
        """The latest events of one or of all, oldest first."""

    async def quarantine(self, name: str, reason: str) -> GpuEntry:
        """Take a GPU out of use."""

    async def release(self, name: str) -> Released:
        """End a quarantine or a known warning.

        Raises:
            ControlError: its reason still holds, or there is none.
        """

    async def lend(self, name: str, for_s: float) -> GpuEntry:
        """Free a GPU for so long."""

    async def take_back(self, name: str) -> GpuEntry:
        """End a loan."""


class Burnin(Protocol):
    """Questions and commands about burn-in runs."""

    async def start(self, asked: dict[str, Any]) -> BurninStatus:
        """Begin a run; raises ConfigError or ControlError."""

    async def stop(self, who: str) -> BurninHead:
        """End the run in progress."""

    def brief(self) -> BurninBrief | None:
        """The run in progress in a few words."""

    async def status(self) -> BurninStatus:
        """The run in progress or the latest one."""

    async def report(self, run: str) -> BurninReport:
        """A whole report."""

    async def runs(self) -> list[ListedRun]:
        """All runs, newest first."""


class Operations(Protocol):
    """The daemon as its operators see it. Job ids may be given as a unique beginning.

    Every method may raise NotFoundError, and ControlError where the present state forbids the action. A job that the
    caller may not see is not found. Implemented by :class:`obatchd.operations.service.OperatorService`.
    """

    @property
    def gpus(self) -> GpuOperations:
        """GPUs and their health."""

    def status(self, caller: Caller) -> Status:
        """The whole state, of jobs and drops only those that the caller may see; without the burn-in in progress."""

    def jobs(self, caller: Caller, state: str | None, limit: int, *, mine: bool = False) -> list[JobDocument]:
        """Jobs, newest first, in a JobState or (None) in any; with ``mine`` administrators get only their own, too."""

    def job(self, caller: Caller, job_id: str) -> JobDocument:
        """One job."""

    async def submit(self, submission: Submission) -> JobDocument:
        """Take a drop; returns once it is durably accepted.

        Raises:
            DropRefused: it cannot become a job.
            ConfigError: its settings are wrong; no file has been asked for.
        """

    async def cancel(self, caller: Caller, job_id: str) -> JobDocument:
        """Cancel the unfinished requests of a job."""

    async def retry(self, caller: Caller, job_id: str) -> JobDocument:
        """A new job from the requests of a finished one that did not succeed."""

    async def remove_job(self, caller: Caller, job_id: str) -> Removed:
        """Erase a job that is over: results, prompts, and every trace in the store."""

    async def pause(self, caller: Caller, job_id: str | None) -> JobDocument | Paused:
        """Dispatch nothing more of a job, or of all (``None``, for administrators)."""

    async def resume(self, caller: Caller, job_id: str | None) -> JobDocument | Paused:
        """End ``pause``."""

    async def server_action(self, server_id: str, action: ServerAction) -> ServerEntry:
        """Drain, resume or restart one server; after a few seconds it returns how far that is."""

    def server_log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        """The last lines that a managed server wrote; with ``follow`` those that come, until the caller goes away."""

    async def drain(self) -> HostState:
        """Dispatch nothing new on the whole host; the state goes draining, then drained. Returns at once."""

    async def undrain(self) -> HostState:
        """End ``drain``."""

    async def models(self) -> list[ModelEntry]:
        """The models present."""

    def pull_model(self, name: str) -> AsyncIterator[PullProgress]:
        """Pull a model; yields until it is there."""

    async def remove_model(self, name: str) -> Removed:
        """Delete a model from the store."""

    def reload(self) -> Awaitable[Reloaded]:
        """Read the settings again.

        Raises:
            ConfigError: they are wrong; the old ones stay in force.
        """
