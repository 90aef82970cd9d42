"""Questions and commands to the daemon: the interface between ``control`` and the composition root.

Every method may raise NotFoundError, and ControlError where the present state forbids the action. The classes of
:mod:`obatchd.operations` implement the Protocols, and :class:`obatchd.burnin.run.manager.Burnin` the one of that name.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from attrs import frozen

from obatchd.control.auth import Caller
from obatchd.control.hosts import JoinedHostOperations
from obatchd.documents.answers import AlarmsTested, HostState, Paused, Reloaded, Removed, RemovedJobs
from obatchd.documents.audit import AuditAsked, AuditDocument
from obatchd.documents.burnin.report import BurninBrief, BurninHead, BurninReport, BurninSeries, BurninStatus, ListedRun
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEventEntry, Gpus, Released
from obatchd.documents.history import GpuHistory, WorkHistory
from obatchd.documents.jobs import JobAnswers, JobDocument, JobFailures, OwnerUsage
from obatchd.documents.models import ModelEntry, PullProgress
from obatchd.documents.programs import HttpDoor, KeyEntry, NewKey
from obatchd.documents.status import ServerEntry, Status
from obatchd.documents.tuning import SlotTuning
from obatchd.documents.web import EndedSessions
from obatchd.naming import EVERY_JOB, JobFilter


@frozen(eq=False)
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
    token: str = ""  # the same whenever the client sends this submission; empty: it sends it once
    again: bool = False  # it has sent it before and does not know what became of it


class JobOperations(Protocol):
    """Jobs. One is named as :class:`obatchd.naming.JobName` says; a job that the caller may not see is not found."""

    def all(
        self, caller: Caller, state: str | None, limit: int, *, mine: bool = False, only: JobFilter = EVERY_JOB
    ) -> list[JobDocument]:
        """Jobs, newest first, in a JobState or (None) in any; with ``mine`` administrators get only their own, too."""

    def one(self, caller: Caller, job_id: str) -> JobDocument:
        """One of them."""

    async def failures(self, caller: Caller, job_id: str) -> JobFailures:
        """Why requests of a job have no answer."""

    async def usage(self, caller: Caller, month: str | None, *, mine: bool = False) -> list[OwnerUsage]:
        """The sums of a month (2026-11, in UTC) or (None) of all, of those owners whose jobs the caller may see."""

    async def submit(self, submission: Submission) -> JobDocument:
        """Take a drop; returns once it is durably accepted.

        One that is sent ``again``, and was accepted before, is the job of that time; then no file is asked for. Raises
        DropRefused where it cannot become a job, ConfigError where its settings are wrong: then no file has been asked
        for.
        """

    async def cancel(self, caller: Caller, job_id: str) -> JobDocument:
        """Cancel the unfinished requests of a job."""

    async def retry(
        self, caller: Caller, job_id: str, changes: dict[str, Any] | None = None, only: str = "failed"
    ) -> JobDocument:
        """A new job from the requests of a finished one that have no answer, in it or in an earlier retry of it.

        ``only`` may also be ``truncated`` or ``ungrounded``: those whose answer was cut, or has values of its own.
        ``changes`` are settings as in a job.toml, not checked yet; they count before those of the job and its requests.
        Raises ConfigError where they are wrong.
        """

    async def remove(self, caller: Caller, job_id: str) -> Removed:
        """Erase a job that is over: results, prompts, and every trace in the store."""

    async def remove_all(self, caller: Caller, job_ids: Sequence[str]) -> RemovedJobs:
        """Erase jobs, given by their whole ids, those of them that are over."""

    async def pause(self, caller: Caller, job_id: str) -> JobDocument:
        """Dispatch nothing more of a job."""

    async def resume(self, caller: Caller, job_id: str) -> JobDocument:
        """End ``pause``."""


class ServerOperations(Protocol):
    """Servers, for administrators."""

    def all(self) -> list[ServerEntry]:
        """The servers of this host, with their work."""

    def tuning(self) -> SlotTuning:
        """How many slots they were tried with, and how fast they were."""

    async def act(self, caller: Caller, server_id: str, action: str) -> ServerEntry:
        """``drain``, ``resume`` or ``restart`` one server; after a few seconds it returns how far that is."""

    def log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        """The last lines that a managed server wrote; with ``follow`` those that come, until the caller goes away."""


class ModelOperations(Protocol):
    """The models in the stores of the servers."""

    async def all(self) -> list[ModelEntry]:
        """The models present."""

    def pull(self, name: str) -> AsyncIterator[PullProgress]:
        """Pull a model; yields until it is there."""

    async def remove(self, name: str) -> Removed:
        """Delete a model from the store."""


class GpuOperations(Protocol):
    """GPUs as operators see them. A GPU is named by UUID or its beginning, index, or serial number."""

    def all(self) -> Gpus:
        """The GPUs of this host, and the state of the host."""

    async def one(self, name: str) -> GpuDetails:
        """One of them."""

    async def events(self, name: str | None, limit: int) -> list[GpuEventEntry]:
        """The latest events of one or of all, oldest first."""

    async def quarantine(self, caller: Caller, name: str, reason: str) -> GpuEntry:
        """Take a GPU out of use."""

    async def release(self, caller: Caller, name: str) -> Released:
        """End a quarantine or a known warning; raises ControlError where its reason still holds, or there is none."""

    async def lend(self, caller: Caller, name: str, for_s: float) -> GpuEntry:
        """Free a GPU for so long."""

    async def take_back(self, caller: Caller, name: str) -> GpuEntry:
        """End a loan."""

    async def share(self, caller: Caller, name: str, shared: bool) -> GpuEntry:
        """Load models beside processes of others whose memory the driver does not tell, or do so no more."""


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

    async def series(self, run: str, points: int) -> BurninSeries:
        """The readings and speeds of a run over time, also of the one in progress."""

    async def runs(self) -> list[ListedRun]:
        """All runs, newest first."""


class NewKeyAsked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/keys``."""

    label: str = ""
    days: float | None = None  # how long it is good; None: until it is removed
    scopes: list[str] | None = None  # of obatchd.control.programs
    administrator: bool = False


class KeyOperations(Protocol):
    """Keys of programs. A caller who is no administrator sees and removes their own alone."""

    async def add(self, caller: Caller, asked: NewKeyAsked) -> NewKey:
        """Make a key of the caller's; raises ConfigError or ForbiddenError."""

    def all(self, caller: Caller) -> list[KeyEntry]:
        """The keys, the oldest first."""

    async def remove(self, caller: Caller, key: str) -> Removed:
        """Remove a key, by its id or the beginning of it."""


class Door(Protocol):
    """The API over HTTP, as operators see it; :class:`obatchd.front.listener.Listener`."""

    def state(self) -> HttpDoor | None:
        """Where it can be reached; None where it listens on its socket alone."""

    def page_url(self) -> str:
        """The address of the page for a browser on this host; raises ControlError, with what to do, where none gets
        there."""


class WebOperations(Protocol):
    """Sessions of the web page, each caller's own."""

    def code(self, caller: Caller) -> tuple[str, float]:
        """A code that opens one session as the caller, once, and for how many seconds it can; raises ControlError."""

    def end_all(self, caller: Caller) -> EndedSessions:
        """End all sessions of the caller's, and forget their codes; what is under way in them is cut off."""


class Metrics(Protocol):
    """Numbers of the daemon; :class:`obatchd.metrics.exposition.Exposition`."""

    def text(self, *, process: bool = True) -> bytes:
        """All of them in Prometheus' text format; ``process``: also those of any process, such as its memory."""


class HostOperations(Protocol):
    """The host as a whole."""

    def status(self, caller: Caller, jobs: int | None = None) -> Status:
        """The whole state, of jobs and drops only those that the caller may see; without the burn-in in progress.

        It has the first ``jobs`` of those in work, or as many as anybody reads.
        """

    async def pause(self, caller: Caller) -> Paused:
        """Dispatch nothing more of any job, until ``resume``, after a restart of the daemon too."""

    async def resume(self, caller: Caller) -> Paused:
        """End ``pause``."""

    async def drain(self, caller: Caller) -> HostState:
        """Dispatch nothing new; the state goes draining, then drained. Returns at once."""

    async def undrain(self, caller: Caller) -> HostState:
        """End ``drain``."""

    async def test_alarms(self) -> AlarmsTested:
        """Send an alarm through every way that is set up; it takes as long as the slowest."""

    def reload(self) -> Awaitable[Reloaded]:
        """Read the settings again; raises ConfigError where they are wrong: the old ones stay in force."""


class AnswersAsked(NamedTuple):
    """Which results of a job are asked for."""

    after: int = 0  # a place
    limit: int = 20
    outcome: str | None = None  # None: any
    code: str | None = None  # of failures; None: any
    settled: bool = False  # also to which place nothing is missing


class AnswerOperations(Protocol):
    """Answers of jobs."""

    async def part(self, caller: Caller, job_id: str, asked: AnswersAsked) -> JobAnswers:
        """Some of them, beside their prompts. Raises ControlError where neither store nor outbox has them any more."""


class Look(NamedTuple):
    """An overview as it is sent."""

    revision: str
    body: bytes  # an :class:`obatchd.documents.status.Overview` as JSON


class Overviews(Protocol):
    """All that a page shows at a glance."""

    def look(self, caller: Caller, jobs: int, *, mine: bool, fresh: bool) -> Look:
        """Status, GPUs and jobs that the caller may see, at most a second old; with ``fresh`` of this moment."""


class SpanAsked(NamedTuple):
    """Which time is asked for, in seconds since the epoch, and how finely."""

    since_s: float
    until_s: float
    points: int  # steps at most


class HistoryOperations(Protocol):
    """What was, in columns. Raises ControlError where it cannot be read."""

    async def gpus(self, asked: SpanAsked, name: str | None) -> GpuHistory:
        """Readings and events of one GPU or of all."""

    async def work(self, asked: SpanAsked) -> WorkHistory:
        """Tokens and requests of all servers and of each."""


@frozen(eq=False)
class Reads:
    """What people look at again and again, by what they ask about."""

    overviews: Overviews
    answers: AnswerOperations
    history: HistoryOperations


class AuditOperations(Protocol):
    """The audit log, for administrators."""

    async def entries(self, asked: AuditAsked) -> AuditDocument:
        """Those asked for; raises ConfigError where there is no such kind."""

    def recorded(
        self, caller: Caller, kind: str, target: str = "", detail: str = ""
    ) -> AbstractAsyncContextManager[None]:
        """Write down what is about to be done, of a kind of :mod:`obatchd.documents.audit`, and that it failed, where
        it does. Most operations do so by themselves."""


@frozen(eq=False)
class Operations:
    """The daemon as its operators see it, by what they ask about."""

    jobs: JobOperations
    servers: ServerOperations
    models: ModelOperations
    gpus: GpuOperations
    burnin: Burnin
    host: HostOperations
    keys: KeyOperations
    http: Door
    audit: AuditOperations
    metrics: Metrics
    reads: Reads
    web: WebOperations
    hosts: JoinedHostOperations
