"""Stand-in operations behind the real control sockets, for tests of the API and the commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from task_support import Failures

from obatchd.client import runtime
from obatchd.control.auth import Access, Caller
from obatchd.control.operations import AnswersAsked, Look, NewKeyAsked, Operations, Reads, SpanAsked, Submission
from obatchd.control.sockets import ControlServer
from obatchd.control.submit import SubmitServer
from obatchd.documents import excerpt
from obatchd.documents.answers import AlarmsTested, HostState, Paused, Reloaded, Removed, RemovedJobs, WayTried
from obatchd.documents.audit import AuditAsked, AuditDocument, AuditEntry
from obatchd.documents.burnin.report import BurninBrief, BurninHead, BurninReport, BurninSeries, BurninStatus, ListedRun
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEventEntry, Gpus, Identity, KernelLogState, Released
from obatchd.documents.history import GpuHistory, HostWork, WorkHistory
from obatchd.documents.hosts import (
    EnrolmentEntry,
    Finding,
    Forgotten,
    HostDoor,
    HostEntry,
    HostFindings,
    HostList,
    HostsExamined,
    NewLink,
)
from obatchd.documents.jobs import (
    Cause,
    Failure,
    JobAnswers,
    JobDetails,
    JobDocument,
    JobFailures,
    OwnerUsage,
    SettingsUsed,
    ShownAnswer,
)  # fmt: skip
from obatchd.documents.models import ModelEntry, PullProgress
from obatchd.documents.programs import HttpDoor, KeyEntry, NewKey
from obatchd.documents.status import (
    BlockedDrop,
    DiskState,
    InboxState,
    LoadedModel,
    ProbeState,
    Pull,
    QueueCounts,
    ServerEntry,
    ServerGpu,
    Status,
)
from obatchd.documents.web import EndedSessions
from obatchd.errors import ConfigError, ControlError, DropRefused, ModelError, NotFoundError
from obatchd.naming import EVERY_JOB, JobFilter
from obatchd.settings.job import parse_job_settings
from obatchd.settings.tables.people import AccessSettings

OBATCHCTL = Path(sys.executable).with_name("obatchctl")


def server(**changes: Any) -> ServerEntry:
    gpu = ServerGpu("GPU-1", 0, "NVIDIA L40S", 97, 30 * 1024**3, 48 * 1024**3, 61, 301.4)
    entry = ServerEntry(
        id="gpu0",
        kind="managed",
        state="ready",
        reason="",
        url="http://127.0.0.1:1",
        gpu=gpu,
        gpus=[gpu],
        loaded=LoadedModel("llama3", 8192),
        loading=None,
        in_flight=3,
        offered=3,
        slots=4,
        tokens_per_s=123.45,
        requests_done=77,
        restarts=1,
        watchdog={},
        pid=4711,
        worker_pid=4712,
    )
    return msgspec.structs.replace(entry, **changes)


def job(**changes: Any) -> JobDocument:
    document = JobDocument(
        job="20261122-101112-abcd",
        name="prompts.jsonl",
        owner=0,
        state="running",
        model="llama3",
        priority="normal",
        accepted_at="2026-11-22T10:11:12Z",
        finished_at=None,
        notes=[],
        retry_of=None,
        sample_of=None,
        paused=False,
        requests=10,
        indexed=10,
        succeeded=4,
        failed=1,
        cancelled=0,
        expired=0,
        in_flight=3,
        requests_per_s=2.5,
        tokens_per_s=120.0,
        eta_s=125.0,
        outbox="/nowhere",
    )
    return msgspec.structs.replace(document, **changes)


def gpu(uuid: str) -> GpuEntry:
    return GpuEntry(
        uuid=uuid, index=2, name="NVIDIA L40S", serial="", slot="1", health="ok", reason="", action="",
        quarantine=None, lent_until=None, servers=["gpu0"], shared_with="",
    )  # fmt: skip


class FakeGpuOperations:
    """Remembers what it was asked, too."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def all(self) -> Gpus:
        return Gpus("ok", "", None, KernelLogState(None, ""), [])

    async def one(self, name: str) -> GpuDetails:
        self.calls.append(("gpu", name))
        return GpuDetails(
            **msgspec.structs.asdict(gpu(name)), identity=Identity(name), reading=None, slow_reading=None,
            watched_since=None, increases={}, findings=[], accepted=[], events=[],
        )  # fmt: skip

    async def events(self, name: str | None, limit: int) -> list[GpuEventEntry]:
        self.calls.append(("events", name, limit))
        return []

    async def quarantine(self, caller: Caller, name: str, reason: str) -> GpuEntry:
        self.calls.append(("quarantine", name, reason))
        return gpu(name)

    async def release(self, caller: Caller, name: str) -> Released:
        self.calls.append(("release", name))
        return Released(name, False, [])

    async def lend(self, caller: Caller, name: str, for_s: float) -> GpuEntry:
        self.calls.append(("lend", name, for_s))
        return gpu(name)

    async def take_back(self, caller: Caller, name: str) -> GpuEntry:
        self.calls.append(("take_back", name))
        return gpu(name)

    async def share(self, caller: Caller, name: str, shared: bool) -> GpuEntry:
        self.calls.append(("share", name, shared))
        return gpu(name)


@dataclass
class FakeOperations:
    """Remembers what it was asked, and answers from its attributes."""

    state: str = "running"
    reasons: list[str] = field(default_factory=list)
    servers: list[ServerEntry] = field(default_factory=lambda: [server()])
    known: dict[str, JobDocument] = field(default_factory=lambda: {job().job: job()})
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    filters: list[JobFilter] = field(default_factory=list)  # what lists of jobs were chosen by
    submitted: list[tuple[Submission, dict[str, bytes]]] = field(default_factory=list)
    directory: Path = Path()
    finished_state: str = "done"
    gpus: FakeGpuOperations = field(default_factory=FakeGpuOperations)
    door: HttpDoor | None = None
    recorded: list[AuditEntry] = field(default_factory=list)
    looked: int = 0  # how often somebody asked for one job
    failures: Failures = field(default_factory=Failures)  # of the tasks of the sockets

    def __post_init__(self) -> None:
        parts = FakeJobs(self), FakeServers(self), FakeModels(self), self.gpus, FakeBurnin(), FakeHost(self)
        reads = Reads(FakeOverviews(self), FakeAnswers(self), FakeHistory(self))
        doors = FakeKeys(self), FakeDoor(self), FakeAudit(self), FakeMetrics()
        self.operations = Operations(*parts, *doors, reads=reads, web=FakeWeb(self), hosts=FakeHosts(self))


@dataclass
class FakeJobs:
    """Its part about jobs."""

    daemon: FakeOperations

    def all(
        self, caller: Caller, state: str | None, limit: int, *, mine: bool = False, only: JobFilter = EVERY_JOB
    ) -> list[JobDocument]:
        self.daemon.filters.append(only)
        return [one for one in self.daemon.known.values() if state in (None, one.state)][:limit]

    def one(self, caller: Caller, job_id: str) -> JobDocument:
        self.daemon.looked += 1
        for known, summary in self.daemon.known.items():
            if known.startswith(job_id):
                return summary
        raise NotFoundError(f"no job {job_id}")

    async def failures(self, caller: Caller, job_id: str) -> JobFailures:
        causes = [Cause("timeout", 1, 7, "no answer in 600 s", "ask for less")]
        return excerpt(JobFailures, self.one(caller, job_id), failures=causes)

    async def submit(self, submission: Submission) -> JobDocument:
        parse_job_settings(submission.settings, "settings")
        if submission.name == "refuse.json":
            raise DropRefused("not one of our formats")
        if submission.name == "crash.json":
            raise RuntimeError("unexpected")
        content = await asyncio.to_thread(read_all, submission)
        self.daemon.submitted.append((submission, content))
        job_id = f"job{len(self.daemon.submitted)}"
        outbox = self.daemon.directory / "outbox" / f"{submission.name}.{job_id}"
        (outbox / "responses").mkdir(parents=True, mode=0o700)
        (outbox / "responses" / "1.txt").write_text("answer")
        failed = 1 if submission.name.startswith("bad") else 0
        (outbox / "summary.json").write_text("{}")
        over = {"state": self.daemon.finished_state, "succeeded": 10 - failed, "failed": failed}
        if failed:
            failures = {"no_model": Failure(1, "no model is named", "name a model")}
            over["details"] = JobDetails(SettingsUsed(None, [], {}, None, "", "", [], "auto", None), failures)
        self.daemon.known[job_id] = job(job=job_id, name=submission.name, outbox=str(outbox), **over)
        return job(job=job_id, outbox=str(outbox), succeeded=0, failed=0, in_flight=0)

    async def cancel(self, caller: Caller, job_id: str) -> JobDocument:
        self.daemon.calls.append(("cancel", job_id))
        return self.one(caller, job_id)

    async def retry(
        self, caller: Caller, job_id: str, changes: dict[str, Any] | None = None, only: str = "failed"
    ) -> JobDocument:
        self.daemon.calls.append(("retry", job_id, *[one for one in (changes, only) if one and one != "failed"]))
        first = self.one(caller, job_id)
        over = {"state": self.daemon.finished_state, "succeeded": 1, "failed": 0}
        self.daemon.known["new"] = msgspec.structs.replace(first, job="new", retry_of=first.job, **over)
        return self.daemon.known["new"]

    async def usage(self, caller: Caller, month: str | None, *, mine: bool = False) -> list[OwnerUsage]:
        self.daemon.calls.append(("usage", month, mine))
        return [OwnerUsage(7, "ada", "2026-11", 3, 2, 1, 0, 0, 10, 20, 1.5, 7.2e6)]

    async def remove(self, caller: Caller, job_id: str) -> Removed:
        self.daemon.calls.append(("rm", job_id))
        return Removed(self.one(caller, job_id).job)

    async def remove_all(self, caller: Caller, job_ids: Sequence[str]) -> RemovedJobs:
        self.daemon.calls.append(("remove", ",".join(job_ids)))
        return RemovedJobs(list(job_ids), {})

    async def pause(self, caller: Caller, job_id: str) -> JobDocument:
        self.daemon.calls.append(("pause", job_id))
        return self.one(caller, job_id)

    async def resume(self, caller: Caller, job_id: str) -> JobDocument:
        self.daemon.calls.append(("resume", job_id))
        return self.one(caller, job_id)


@dataclass
class FakeServers:
    """Its part about servers."""

    daemon: FakeOperations

    def all(self) -> list[ServerEntry]:
        return self.daemon.servers

    async def act(self, caller: Caller, server_id: str, action: str) -> ServerEntry:
        self.daemon.calls.append((action, server_id))
        return server(id=server_id, state="draining")

    async def log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        for number in range(lines):
            yield f"{server_id} line {number}"
        while follow:
            await asyncio.sleep(0.05)
            yield "more"


@dataclass
class FakeModels:
    """Its part about models."""

    daemon: FakeOperations

    async def all(self) -> list[ModelEntry]:
        name = "llama3:8b"
        return [ModelEntry(name, "sha256:abcdef0123456789", "Q4_K_M", "8.0B", 0, [], 5 * 1024**3, "local", name)]

    async def pull(self, name: str) -> AsyncIterator[PullProgress]:
        for done in (1, 2):
            yield PullProgress(name, "gpu0", "pulling", done, 2)
        if name == "missing":
            raise ModelError("there is no model missing")

    async def remove(self, name: str) -> Removed:
        self.daemon.calls.append(("rm", name))
        return Removed(name)


@dataclass
class FakeHost:
    """Its part about the whole host."""

    daemon: FakeOperations

    def status(self, caller: Caller) -> Status:
        return Status(
            version="0.1.0",
            spool="/s",
            pid=os.getpid(),
            started_at="2026-11-22T10:00:00Z",
            state=self.daemon.state,
            reasons=self.daemon.reasons,
            servers=self.daemon.servers,
            gpus=ProbeState("ok", "", None),
            notices=["another Ollama runs here"],
            queue=QueueCounts(requests=5, jobs=1, finished=5, total=10, requests_per_s=2.5),
            inbox=InboxState(1, [BlockedDrop("a\x1b[31m", "EACCES")], refused=2, problem=""),
            disk=DiskState(5 * 1024**3, 10, low=False),
            pulls=[Pull("m", "pulling", 1, 2)],
            jobs=list(self.daemon.known.values()),
        )

    async def pause(self, caller: Caller) -> Paused:
        self.daemon.calls.append(("pause", None))
        return Paused(True)

    async def resume(self, caller: Caller) -> Paused:
        self.daemon.calls.append(("resume", None))
        return Paused(False)

    async def drain(self, caller: Caller) -> HostState:
        self.daemon.calls.append(("drain",))
        self.daemon.state = "draining"
        asyncio.get_running_loop().call_later(0.2, setattr, self.daemon, "state", "drained")
        return HostState("draining")

    async def undrain(self, caller: Caller) -> HostState:
        self.daemon.state = "running"
        return HostState("running")

    async def test_alarms(self) -> AlarmsTested:
        self.daemon.calls.append(("test alarms",))
        return AlarmsTested([WayTried("command mail", True, ""), WayTried("webhook at chat.lab", False, "no\x1b[31m")])

    async def reload(self) -> Reloaded:
        if self.daemon.state == "degraded":
            raise ConfigError("obatchd.toml: modle: no such setting")
        return Reloaded(["model", "inbox.settle_s"], ["model"], ["servers.slots"])


def read_all(submission: Submission) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    for name, descriptor in submission.files:
        if name in content:
            raise ControlError(f"{name} comes twice")
        with open(descriptor, "rb", closefd=False) as file:
            content[name] = file.read()
    return content


@dataclass
class FakeKeys:
    """Its keys of programs."""

    daemon: FakeOperations
    entries: list[KeyEntry] = field(default_factory=list)

    async def add(self, caller: Caller, asked: NewKeyAsked) -> NewKey:
        self.daemon.calls.append(("add key", asked))
        about = KeyEntry(
            id="key-0011", owner=caller.uid, label=asked.label, scopes=asked.scopes or ["batches"],
            administrator=asked.administrator, created_at="2026-11-22T10:11:12Z", expires_at=None, last_used_at=None,
        )  # fmt: skip
        self.entries.append(about)
        return NewKey(key="obk_secret", about=about)

    def all(self, caller: Caller) -> list[KeyEntry]:
        return self.entries

    async def remove(self, caller: Caller, key: str) -> Removed:
        self.entries = [entry for entry in self.entries if entry.id != key]
        return Removed(key)


@dataclass
class FakeAudit:
    """Its audit log."""

    daemon: FakeOperations

    async def entries(self, asked: AuditAsked) -> AuditDocument:
        self.daemon.calls.append(("audit", asked))
        return AuditDocument(self.daemon.recorded, 1, "the disk is full\x1b[31m")

    def recorded(
        self, caller: Caller, kind: str, target: str = "", detail: str = ""
    ) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()


@dataclass
class FakeHosts:
    """Its hosts that joined: node07, or none where nobody listens for them."""

    daemon: FakeOperations

    def door(self) -> HostDoor | None:
        return None

    def all(self) -> HostList:
        enrolment = EnrolmentEntry("enrol-1", "2026-11-29T10:00:00.000Z", "2026-12-06T10:00:00.000Z", ["node07"])
        return HostList(HostDoor("10.0.0.1:7700", "sha256:" + 64 * "a", ""), [host()], [enrolment])

    async def examine(self) -> HostsExamined:
        finding = Finding("bad", "ollama", "there is no program ollama", "ssh node07 'which ollama'")
        return HostsExamined([HostFindings("node07", [finding])])

    async def code(self, caller: Caller, head: str) -> NewLink:
        self.daemon.calls.append(("code", head))
        return NewLink("obatch://10.0.0.1:7700/#secret.pin", "2026-11-29T10:10:00.000Z", "")

    async def enrol(self, caller: Caller, valid_s: float, head: str) -> NewLink:
        self.daemon.calls.append(("enrol", valid_s, head))
        return NewLink("obatch://10.0.0.1:7700/#secret.pin", "2026-12-06T10:00:00.000Z", "enrol-1")

    async def drain(self, caller: Caller, name: str) -> HostEntry:
        self.daemon.calls.append(("drain_host", name))
        return host()

    async def resume(self, caller: Caller, name: str) -> HostEntry:
        self.daemon.calls.append(("resume_host", name))
        return host()

    async def forget(self, caller: Caller, name: str) -> Forgotten:
        self.daemon.calls.append(("forget_host", name))
        return Forgotten([name])

    async def revoke(self, caller: Caller, enrolment: str) -> Forgotten:
        self.daemon.calls.append(("revoke", enrolment))
        return Forgotten(["node07"])


def host() -> HostEntry:
    """A host that is away."""
    return HostEntry(
        name="node07", state="away", reason="the connection broke", since="2026-11-29T10:00:00.000Z", gpus=4, servers=4,
        ready=0, version="1.2.3", allocation="Slurm job 4711", drained="", enrolment="enrol-1",
        joined_at="2026-11-29T09:00:00.000Z", until=None, clock_ahead_s=86_400.0,
    )  # fmt: skip


@dataclass
class FakeDoor:
    """Its API over HTTP."""

    daemon: FakeOperations

    def state(self) -> HttpDoor | None:
        return self.daemon.door

    def page_url(self) -> str:
        if self.daemon.door is None:
            raise ControlError("it listens nowhere", code="no_http")
        return f"http://{self.daemon.door.address}/"


@dataclass
class FakeWeb:
    """Sessions of its page."""

    daemon: FakeOperations

    def code(self, caller: Caller) -> tuple[str, float]:
        self.daemon.calls.append(("code", caller.uid))
        return "secret", 60.0

    def end_all(self, caller: Caller) -> EndedSessions:
        self.daemon.calls.append(("logout", caller.uid))
        return EndedSessions(2)


class FakeMetrics:
    """Its numbers."""

    def text(self, *, process: bool = True) -> bytes:
        return b"# TYPE obatch_requests_queued gauge\nobatch_requests_queued 7.0\n"


class FakeBurnin:
    """Burn-in runs of a daemon that has none."""

    async def start(self, asked: dict[str, Any]) -> BurninStatus:
        raise ControlError("there is no GPU to test", code="no_gpu")

    def brief(self) -> BurninBrief | None:
        return None

    async def stop(self, who: str) -> BurninHead:
        raise ControlError("no burn-in is running", code="not_running")

    async def status(self) -> BurninStatus:
        raise NotFoundError("no burn-in has been run here")

    async def report(self, run: str) -> BurninReport:
        raise NotFoundError(f"no burn-in {run}")

    async def runs(self) -> list[ListedRun]:
        return []

    async def series(self, run: str, points: int) -> BurninSeries:
        raise NotFoundError(f"no burn-in {run}")


@dataclass
class FakeOverviews:
    """All at a glance."""

    daemon: FakeOperations

    def look(self, caller: Caller, jobs: int, *, mine: bool, fresh: bool) -> Look:
        self.daemon.calls.append(("look", jobs, mine, fresh))
        return Look(f"revision{len(self.daemon.known)}", b'{"schema":1}')


@dataclass
class FakeAnswers:
    """Its part about answers."""

    daemon: FakeOperations

    async def part(self, caller: Caller, job_id: str, asked: AnswersAsked) -> JobAnswers:
        self.daemon.calls.append(("part", job_id, asked))
        record = {"line": 1, "outcome": "succeeded", "response": "yes"}
        return JobAnswers(job_id, "running", [ShownAnswer(1, 1, "a", "succeeded", "really?", record)], 1)


@dataclass
class FakeHistory:
    """Its part about what was."""

    daemon: FakeOperations

    async def gpus(self, asked: SpanAsked, name: str | None) -> GpuHistory:
        self.daemon.calls.append(("gpu history", asked, name))
        return GpuHistory(60, [0], [], [], False)

    async def work(self, asked: SpanAsked) -> WorkHistory:
        self.daemon.calls.append(("work history", asked))
        return WorkHistory(60, [0], HostWork(*[[None]] * 6), [])


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, *, frame_timeout_s: float = 10.0) -> AsyncIterator[tuple[FakeOperations, Path]]:
    """The control sockets of stand-in operations, and their spool."""
    spool = tmp_path / "spool"
    spool.mkdir()
    daemon = FakeOperations(directory=tmp_path)
    directory = runtime.create(spool, uuid.uuid4().hex)
    access = Access(AccessSettings())
    control = ControlServer(daemon.operations, directory, access, daemon.failures)
    submit = SubmitServer(daemon.operations.jobs, directory, access, daemon.failures, frame_timeout_s=frame_timeout_s)
    await control.start()
    await submit.start()
    try:
        yield daemon, spool
    finally:
        await submit.stop()
        await control.stop()
        runtime.remove(spool, directory)


async def obatchctl(spool: Path, *arguments: str | Path, stderr: bool = False, **environ: str) -> tuple[int, str]:
    """Run the console script; returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        OBATCHCTL,
        *map(str, arguments),
        env={"PATH": os.environ["PATH"], "OBATCH_SPOOL": str(spool), "PYTHONWARNINGS": "error", **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    if "Traceback" in complaints.decode():
        raise AssertionError(complaints.decode())
    return process.returncode, (complaints if stderr else printed).decode()
