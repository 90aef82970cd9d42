"""What the control API can ask of the daemon: the interface between ``control`` and the composition root."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from obatchd.control.auth import Caller

Document = dict[str, Any]  # plain data, ready for JSON; times are ISO-8601 UTC
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
    settings: Document  # a job.toml's content, not checked yet; see parse_job_settings
    files: Iterator[tuple[str, int]]


class GpuDesk(Protocol):
    """GPUs as operators see them. A GPU is named by UUID or its beginning, index, or serial number.

    Every method but ``gpus`` raises NotFoundError for an unknown one.
    """

    def gpus(self) -> Document:
        """``{"state": "ok|absent|unknown", "message", "host": {"code", "message"} | null, "kernel_log": {"source",
        "problem"}, "gpus": [{"uuid", "index", "name", "serial", "slot", "health": "ok|warn|quarantine|unknown",
        "reason", "action", "quarantine": {"since", "by", "reason", "findings"} | null, "lent_until", "servers",
        "shared_with", "temp_c", …}]}``."""
        ...

    async def gpu(self, name: str) -> Document:
        """One of them, with ``identity``, ``reading``, ``slow_reading``, ``findings`` and the last ``events``."""
        ...

    async def events(self, name: str | None, limit: int) -> list[Document]:
        """``[{"at", "uuid", "serial", "slot", "kind", "level", "signal", "text"}]``, oldest first."""
        ...

    async def quarantine(self, name: str, reason: str) -> Document:
        """Take a GPU out of use; returns its entry."""
        ...

    async def release(self, name: str) -> Document:
        """End a quarantine or a known warning: ``{"uuid", "forgotten", "accepted": [signals]}``.

        Raises:
            ControlError: its reason still holds, or there is none.
        """
        ...

    async def lend(self, name: str, for_s: float) -> Document:
        """Free a GPU for so long; returns its entry."""
        ...

    async def take_back(self, name: str) -> Document:
        """End a loan; returns its entry."""
        ...


class Engine(Protocol):
    """The daemon as its operators see it. Job ids may be given as a unique beginning.

    Every method may raise NotFoundError, and ControlError where the present state forbids the action. A job that the
    caller may not see is not found.
    """

    @property
    def gpu_desk(self) -> GpuDesk:
        """GPUs and their health."""
        ...

    def status(self, caller: Caller) -> Document:
        """The status document, of jobs and drops only those that the caller may see.

        ``{"schema": 1, "version", "spool", "pid", "started_at",
        "state": "running|paused|draining|drained|degraded", "reasons": [str],
        "servers": [{"id", "kind", "state", "reason", "url", "gpu": {"uuid", "index", "name", "utilisation_percent",
        "memory_used_bytes", "memory_total_bytes", "temp_c", "power_w"} | null, "loaded": {"model",
        "context_length"} | null, "loading": {...} | null, "in_flight", "slots", "tokens_per_s", "requests_done",
        "restarts", "pid"}],
        "gpus": {"state": "ok|absent|unknown", "message", "pid"},
        "queue": {"requests", "jobs", "finished", "total", "requests_per_s"},
        "inbox": {"settling", "blocked": [{"name", "reason"}], "refused", "problem"},
        "disk": {"free_bytes", "free_inodes", "low"},
        "pulls": [{"model", "completed_bytes", "total_bytes", "status"}], "jobs": [job summary of each job in work]}``.
        ``degraded`` means that something listed in ``reasons`` needs somebody's attention.
        """
        ...

    def jobs(self, caller: Caller, state: str | None, limit: int, *, mine: bool = False) -> list[Document]:
        """Job summaries, newest first; with ``mine`` an administrator gets only their own, too.

        ``{"job", "name", "owner", "state", "paused", "model", "priority", "accepted_at", "finished_at", "requests",
        "indexed", "succeeded", "failed", "cancelled", "expired", "in_flight", "requests_per_s", "tokens_per_s",
        "eta_s", "position", "expected_start_at", "outbox", "refused_to", "notes"}``; ``requests`` is null until the
        drop is wholly read, ``indexed`` counts those read so far. A refused job has no outbox; it lies where
        ``refused_to`` says, with the reason.
        """
        ...

    def job(self, caller: Caller, job_id: str) -> Document:
        """One job's summary."""
        ...

    async def submit(self, submission: Submission) -> Document:
        """Take a drop; returns ``{"job", "outbox", …}`` once it is durably accepted.

        Raises:
            DropRefused: it cannot become a job.
            ConfigError: its settings are wrong; no file has been asked for.
        """
        ...

    async def cancel(self, caller: Caller, job_id: str) -> Document:
        """Cancel what is not finished of a job; returns its summary."""
        ...

    async def retry(self, caller: Caller, job_id: str) -> Document:
        """A new job from the requests of a finished one that did not succeed; returns its summary."""
        ...

    async def remove_job(self, caller: Caller, job_id: str) -> Document:
        """Erase a job that is over: results, prompts, and every trace in the store; returns ``{"removed": id}``."""
        ...

    async def pause(self, caller: Caller, job_id: str | None) -> Document:
        """Dispatch nothing more of a job, or of all (``None``, for administrators)."""
        ...

    async def resume(self, caller: Caller, job_id: str | None) -> Document:
        """End ``pause``."""
        ...

    async def server_action(self, server_id: str, action: ServerAction) -> Document:
        """Drain, resume or restart one server; returns its entry of the status document."""
        ...

    def server_log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        """The last lines that a managed server wrote; with ``follow`` those that come, until the caller goes away."""
        ...

    async def drain(self) -> Document:
        """Dispatch nothing new on the whole host; the state goes draining, then drained. Returns at once."""
        ...

    async def undrain(self) -> Document:
        """End ``drain``."""
        ...

    async def models(self) -> list[Document]:
        """The models present: ``{"model", "size_bytes", "digest", "quantization", "parameter_size"}``."""
        ...

    def pull_model(self, name: str) -> AsyncIterator[Document]:
        """Pull a model; yields ``{"model", "completed_bytes", "total_bytes", "status"}`` until it is there."""
        ...

    async def remove_model(self, name: str) -> Document:
        """Delete a model from the store."""
        ...

    async def reload(self) -> Document:
        """Read the settings again: ``{"changed": [keys applied], "next_job": [those of them that hold for jobs accepted
        from now on], "needs_restart": [keys]}``.

        Raises:
            ConfigError: they are wrong; the old ones stay in force.
        """
        ...
