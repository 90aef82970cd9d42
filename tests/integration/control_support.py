"""A stand-in engine behind the real control sockets, for tests of the API and the commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from task_support import Failures

from obatchd.client import runtime
from obatchd.control.api import ControlServer
from obatchd.control.auth import Access, Caller
from obatchd.control.operations import Submission
from obatchd.control.submit import SubmitServer
from obatchd.errors import ConfigError, ControlError, DropRefused, ModelError, NotFoundError
from obatchd.settings.job_file import parse_job_settings
from obatchd.settings.tables.access import AccessSettings

OBATCHCTL = Path(sys.executable).with_name("obatchctl")


def server(**changes: Any) -> dict[str, Any]:
    gpu = {
        "uuid": "GPU-1",
        "index": 0,
        "name": "NVIDIA L40S",
        "utilisation_percent": 97,
        "memory_used_bytes": 30 * 1024**3,
        "memory_total_bytes": 48 * 1024**3,
        "temp_c": 61,
        "power_w": 301.4,
    }
    return {
        "id": "gpu0",
        "kind": "managed",
        "state": "ready",
        "reason": "",
        "url": "http://127.0.0.1:1",
        "gpu": gpu,
        "gpus": [gpu],
        "loaded": {"model": "llama3", "context_length": 8192},
        "loading": None,
        "in_flight": 3,
        "slots": 4,
        "tokens_per_s": 123.45,
        "requests_done": 77,
        "restarts": 1,
        "pid": 4711,
        **changes,
    }


def job(**changes: Any) -> dict[str, Any]:
    return {
        "job": "20261122-101112-abcd",
        "name": "prompts.jsonl",
        "owner": 0,
        "state": "running",
        "paused": False,
        "model": "llama3",
        "priority": "normal",
        "accepted_at": "2026-11-22T10:11:12Z",
        "finished_at": None,
        "requests": 10,
        "indexed": 10,
        "succeeded": 4,
        "failed": 1,
        "cancelled": 0,
        "expired": 0,
        "in_flight": 3,
        "requests_per_s": 2.5,
        "tokens_per_s": 120.0,
        "sample_of": None,
        "eta_s": 125.0,
        "outbox": "/nowhere",
        "notes": [],
        **changes,
    }


class FakeGpuDesk:
    """Remembers what it was asked, too."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def gpus(self) -> dict[str, Any]:
        return {"state": "ok", "message": "", "host": None, "kernel_log": {}, "gpus": []}

    async def gpu(self, name: str) -> dict[str, Any]:
        self.calls.append(("gpu", name))
        return {"uuid": name}

    async def events(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        self.calls.append(("events", name, limit))
        return []

    async def quarantine(self, name: str, reason: str) -> dict[str, Any]:
        self.calls.append(("quarantine", name, reason))
        return {"uuid": name}

    async def release(self, name: str) -> dict[str, Any]:
        self.calls.append(("release", name))
        return {"uuid": name}

    async def lend(self, name: str, for_s: float) -> dict[str, Any]:
        self.calls.append(("lend", name, for_s))
        return {"uuid": name}

    async def take_back(self, name: str) -> dict[str, Any]:
        self.calls.append(("take_back", name))
        return {"uuid": name}


@dataclass
class FakeEngine:
    """Remembers what it was asked, and answers from its attributes."""

    state: str = "running"
    reasons: list[str] = field(default_factory=list)
    servers: list[dict[str, Any]] = field(default_factory=lambda: [server()])
    known: dict[str, dict[str, Any]] = field(default_factory=lambda: {job()["job"]: job()})
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    submitted: list[tuple[Submission, dict[str, bytes]]] = field(default_factory=list)
    directory: Path = Path()
    finished_state: str = "done"
    gpu_desk: FakeGpuDesk = field(default_factory=FakeGpuDesk)
    looked: int = 0  # how often somebody asked for one job
    failures: Failures = field(default_factory=Failures)  # of the tasks of the sockets

    def status(self, caller: Caller) -> dict[str, Any]:
        return {
            "schema": 1,
            "version": "0.1.0",
            "spool": "/s",
            "pid": os.getpid(),
            "started_at": "2026-11-22T10:00:00Z",
            "state": self.state,
            "reasons": self.reasons,
            "servers": self.servers,
            "gpus": {"state": "ok", "message": ""},
            "notices": ["another Ollama runs here"],
            "queue": {"requests": 5, "jobs": 1},
            "inbox": {
                "settling": 1,
                "blocked": [{"name": "a\x1b[31m", "reason": "EACCES"}],
                "refused": 2,
                "problem": "",
            },
            "disk": {"free_bytes": 5 * 1024**3, "free_inodes": 10, "low": False},
            "pulls": [{"model": "m", "completed_bytes": 1, "total_bytes": 2, "status": "pulling"}],
            "jobs": list(self.known.values()),
        }

    def jobs(self, caller: Caller, state: str | None, limit: int, *, mine: bool = False) -> list[dict[str, Any]]:
        return [one for one in self.known.values() if state in (None, one["state"])][:limit]

    def job(self, caller: Caller, job_id: str) -> dict[str, Any]:
        self.looked += 1
        for known, summary in self.known.items():
            if known.startswith(job_id):
                return summary
        raise NotFoundError(f"no job {job_id}")

    async def submit(self, submission: Submission) -> dict[str, Any]:
        parse_job_settings(submission.settings, "settings")
        if submission.name == "refuse.json":
            raise DropRefused("not one of our formats")
        if submission.name == "crash.json":
            raise RuntimeError("unexpected")
        content = await asyncio.to_thread(read_all, submission)
        self.submitted.append((submission, content))
        job_id = f"job{len(self.submitted)}"
        outbox = self.directory / "outbox" / f"{submission.name}.{job_id}"
        (outbox / "responses").mkdir(parents=True, mode=0o700)
        (outbox / "responses" / "1.txt").write_text("answer")
        failed = 1 if submission.name.startswith("bad") else 0
        failures = {"no_model": {"requests": 1, "example": "no model is named", "advice": "name a model"}}
        (outbox / "summary.json").write_text(json.dumps({"failures": failures} if failed else {}))
        over = {"state": self.finished_state, "succeeded": 10 - failed, "failed": failed}
        self.known[job_id] = job(job=job_id, name=submission.name, outbox=str(outbox), **over)
        return {"job": job_id, "outbox": str(outbox)}

    async def cancel(self, caller: Caller, job_id: str) -> dict[str, Any]:
        self.calls.append(("cancel", job_id))
        return self.job(caller, job_id)

    async def retry(self, caller: Caller, job_id: str) -> dict[str, Any]:
        self.calls.append(("retry", job_id))
        return {**self.job(caller, job_id), "job": "new"}

    async def remove_job(self, caller: Caller, job_id: str) -> dict[str, Any]:
        self.calls.append(("rm", job_id))
        return {"removed": self.job(caller, job_id)["job"]}

    async def pause(self, caller: Caller, job_id: str | None) -> dict[str, Any]:
        self.calls.append(("pause", job_id))
        return {"paused": True}

    async def resume(self, caller: Caller, job_id: str | None) -> dict[str, Any]:
        self.calls.append(("resume", job_id))
        return {"paused": False}

    async def server_action(self, server_id: str, action: str) -> dict[str, Any]:
        self.calls.append((action, server_id))
        return server(id=server_id, state="draining")

    async def server_log(self, server_id: str, lines: int, follow: bool) -> AsyncGenerator[str, None]:
        for number in range(lines):
            yield f"{server_id} line {number}"
        while follow:
            await asyncio.sleep(0.05)
            yield "more"

    async def drain(self) -> dict[str, Any]:
        self.calls.append(("drain",))
        self.state = "draining"
        asyncio.get_running_loop().call_later(0.2, setattr, self, "state", "drained")
        return {"state": "draining"}

    async def undrain(self) -> dict[str, Any]:
        self.state = "running"
        return {"state": "running"}

    async def models(self) -> list[dict[str, Any]]:
        found = {"size_bytes": 5 * 1024**3, "digest": "sha256:abcdef0123456789", "parameter_size": "8.0B"}
        return [{"model": "llama3:8b", **found}]

    async def pull_model(self, name: str) -> AsyncIterator[dict[str, Any]]:
        for done in (1, 2):
            yield {"model": name, "completed_bytes": done, "total_bytes": 2, "status": "pulling"}
        if name == "missing":
            raise ModelError("there is no model missing")

    async def remove_model(self, name: str) -> dict[str, Any]:
        self.calls.append(("rm", name))
        return {"model": name}

    async def reload(self) -> dict[str, Any]:
        if self.state == "degraded":
            raise ConfigError("obatchd.toml: modle: no such setting")
        return {"changed": ["model", "inbox.settle_s"], "next_job": ["model"], "needs_restart": ["servers.slots"]}


def read_all(submission: Submission) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    for name, descriptor in submission.files:
        if name in content:
            raise ControlError(f"{name} comes twice")
        with open(descriptor, "rb", closefd=False) as file:
            content[name] = file.read()
    return content


class FakeBurnin:
    """Burn-in runs of a daemon that has none."""

    async def start(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"run": "20261124-180000", "asked": asked}

    def brief(self) -> dict[str, Any] | None:
        return None

    async def stop(self, who: str) -> dict[str, Any]:
        raise ControlError("no burn-in is running", code="not_running")

    async def status(self) -> dict[str, Any]:
        raise NotFoundError("no burn-in has been run here")

    async def report(self, run: str) -> dict[str, Any]:
        return {"run": run}

    async def runs(self) -> list[dict[str, Any]]:
        return []


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, *, frame_timeout_s: float = 10.0) -> AsyncIterator[tuple[FakeEngine, Path]]:
    """The control sockets of a stand-in engine, and its spool."""
    spool = tmp_path / "spool"
    spool.mkdir()
    engine = FakeEngine(directory=tmp_path)
    directory = runtime.create(spool, uuid.uuid4().hex)
    access = Access(AccessSettings())
    control = ControlServer(engine, directory, access, FakeBurnin(), engine.failures)
    submit = SubmitServer(engine, directory, access, engine.failures, frame_timeout_s=frame_timeout_s)
    await control.start()
    await submit.start()
    try:
        yield engine, spool
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
