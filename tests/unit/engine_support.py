"""An engine on a real spool and store, with servers and workers that the test plays: no daemon, no server, no model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from dispatch_support import FakeWorker, FakeWorkers, Port
from msgspec import UNSET
from settings_support import in_force
from task_support import Failures

from obatchd.delivery import responses as responses_module
from obatchd.dispatch import protocol, records
from obatchd.dispatch.interactive.lease import Lease
from obatchd.dispatch.protocol import OfferItem, ResultItem
from obatchd.documents.alarms import Alarm
from obatchd.documents.jobs import ModelFacts
from obatchd.engine.engine import Engine
from obatchd.errors import ObatchError
from obatchd.intake.submitted import SubmittedSettings
from obatchd.jobs.formats.request import parse_request
from obatchd.jobs.store import JobRow, Store
from obatchd.live.job import LiveJob
from obatchd.live.models import EnergyReading
from obatchd.live.work import Work
from obatchd.ollama.client import Answer
from obatchd.ollama.faults import Fault
from obatchd.settings.job import JobSettings
from obatchd.spool import claim
from obatchd.spool.layout import Layout

_QUICK: dict[str, dict[str, Any]] = {
    "dispatch": {"commit_interval_ms": 1, "switch_after_s": 1e-9},
    "inbox": {"settle_s": 0.01, "folder_settle_s": 0.01, "rescan_s": 0.05},
    "disk": {"min_free_bytes": 0, "min_free_inodes": 0},
}


class NoProcess:
    """In place of the keeper of the process that writes response files: none is there, so the publisher writes them."""

    name = "response-writer"

    def __init__(self, *_: Any) -> None:
        self.tried = asyncio.Event()

    async def run(self) -> None:
        self.tried.set()
        await asyncio.Event().wait()


class Told(list[Alarm]):
    """The alarms that were raised. Implements :class:`obatchd.documents.alarms.Announcer`."""

    not_arrived: Sequence[str] = ()

    def announce(self, alarm: Alarm) -> None:
        self.append(alarm)

    def troubles(self) -> list[str]:
        return list(self.not_arrived)


class Models:
    """Knows every model but those in ``missing``. Implements :class:`obatchd.live.models.Models`."""

    def __init__(self) -> None:
        self.missing: dict[str, ObatchError] = {}
        self.forgotten: list[str] = []
        self.digests = {"small": "sha-small", "large": "sha-large"}
        self.meters: dict[str, EnergyReading] = {}  # by server
        self.differing: dict[str, str] = {}  # digests by server, of every model

    async def ensure(self, server_id: str, model: str) -> list[str]:
        if model in self.missing:
            raise self.missing[model]
        return []

    def forget(self, model: str) -> None:
        self.forgotten.append(model)

    def facts(self, model: str, servers: Sequence[str]) -> ModelFacts:
        return ModelFacts(digest=self.digests.get(model), digests=self.differing or UNSET)

    def server_version(self, server_id: str) -> str | None:
        return "0.12.1"

    def gpus_per_slot(self, server_id: str) -> float:
        return 0.25 if server_id.startswith("gpu") else 0.0

    def energy(self, server_id: str) -> EnergyReading | None:
        return self.meters.get(server_id)

    def why_no_energy(self, server_id: str) -> str:
        return "" if server_id in self.meters else "it computes on the CPU"

    async def digest(self, model: str) -> str | None:
        return self.digests.get(model)


class Street:
    """One run of an engine over the spool in a directory; a second one over the same is the next start."""

    def __init__(self, directory: Path, *ports: Port, **tables: Any) -> None:
        FakeWorker.made = []
        merged = {**_QUICK, "model": "small", **{name: _over(name, table) for name, table in tables.items()}}
        layout, settings = Layout.open(directory / "spool"), in_force(**merged)
        self.alarms, self.failures = Told(), Failures()
        self.work = Work(settings, layout, Store(layout.work, settings), self.failures, self.alarms)
        self.ports: Sequence[Any] = ports or (Port("gpu0"),)
        self.models = Models()
        self.engine = Engine(self.work, self.models)

    async def start(self) -> Street:
        await self.engine.dispatcher.start(self.ports, FakeWorkers())
        await self.engine.start()
        return self

    async def stop(self, drain_s: float = 0.0) -> None:
        await self.engine.stop(drain_s)
        self.work.store.close()
        assert self.failures == []
        running = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        assert not {name for name in running if not name.startswith("Task-")}, "a part goes on after its end"

    # Drops.

    def accept(self, content: bytes, *, name: str = "drop.jsonl", owner: int = 1000, **settings: Any) -> JobRow:
        """A submission that was accepted and is not read yet."""
        return self._accept(content, name, owner, **settings)

    def accept_folder(self, content: dict[str, bytes], *, name: str = "drop", owner: int = 1000) -> JobRow:
        """A folder of these files."""
        return self._accept(content, name, owner)

    def _accept(self, content: bytes | dict[str, bytes], name: str, owner: int, **settings: Any) -> JobRow:
        layout, state = self.work.layout, self.work.store.state
        kind = "folder" if isinstance(content, dict) else "file"
        incoming = claim.begin_submission(layout, self.engine.intake.ids, name.encode(), owner, kind)
        if isinstance(content, dict):
            for file, inside in content.items():
                (incoming.input / file).write_bytes(inside)
        else:
            incoming.input.write_bytes(content)
        SubmittedSettings(JobSettings(**settings)).write(incoming.directory)
        claim.commit_submission(incoming, layout, state)
        [row] = state.find([incoming.job])
        return row

    async def take(self, *requests: str | dict[str, Any], **more: Any) -> LiveJob:
        """A job of these requests, indexed; of those given as text they are the prompts."""
        row = self.accept(lines(*requests), **more)
        await self.engine.intake.begin([row])
        return self.work.jobs[row.key]

    def row(self, live: LiveJob | JobRow) -> JobRow:
        """As the index has it now."""
        key = live.row.job if isinstance(live, LiveJob) else live.job
        [row] = self.work.store.state.find([key])
        return row

    # Answers.

    def held(self) -> list[OfferItem]:
        """Requests at the workers."""
        return [item for worker in self._workers() for item in worker.held.values()]

    def worker(self, server: str) -> FakeWorker:
        """The latest worker of a server."""
        return next(worker for worker in self._workers() if worker.name == server)

    def _workers(self) -> list[FakeWorker]:
        latest = {worker.name: worker for worker in FakeWorker.made}
        return list(latest.values())

    async def begun(self, live: LiveJob, *only: int) -> None:
        """These requests of a job, or all at the workers, have a slot."""
        await until(lambda: any(item.job == live.key for item in self.held()))
        for worker in self._workers():
            worker.begin(*(key for key in worker.held if key[0] == live.key and (not only or key[1] in only)))

    async def answer(
        self, live: LiveJob, *only: int, text: str = "yes", fault: Fault | None = None, cut: bool = False
    ) -> None:
        """Answer requests of a job, all or those of these lines, as soon as the workers have them."""
        wanted = set(only) or self.left(live)
        while wanted:
            await until(lambda: any(item.job == live.key and item.line in wanted for item in self.held()))
            for worker in self._workers():
                for key in [key for key in worker.held if key[0] == live.key and key[1] in wanted]:
                    wanted.discard(key[1])
                    worker.begin(key) if key not in worker.started else None
                    worker.tell(protocol.Results([_result(worker, worker.held.pop(key), text, fault, cut)]))
        await self.engine.committer.settle(5)

    async def answer_lease(self, lease: Lease, text: str = "yes") -> None:
        """Answer an interactive request as soon as a worker has it."""
        key = (protocol.INTERACTIVE, lease.number)
        await until(lambda: any(key in worker.held for worker in self._workers()))
        worker = next(worker for worker in self._workers() if key in worker.held)
        worker.begin(key)
        worker.tell(protocol.Results([_result(worker, worker.held.pop(key), text, None, False)]))
        await until(lambda: lease.ended is not None)

    def left(self, live: LiveJob) -> set[int]:
        """The lines that have none."""
        segment = self.work.store.of(live.row)
        lanes = [lane.lane for lane in segment.lanes(live.key)]
        return {row.line for lane in lanes for row in segment.pending(live.key, lane, 0, 10_000)}

    def done(self, live: LiveJob) -> set[int]:
        """The lines that have a result."""
        return {line for line, *_ in self.work.store.results(live.row)}

    async def published(self, live: LiveJob | JobRow) -> dict[str, Any]:
        """The summary of a job, as soon as it is over."""
        row = live.row if isinstance(live, LiveJob) else live
        await until(lambda: row.key not in self.work.jobs)
        document: dict[str, Any] = json.loads((self.work.outbox_of(row) / "summary.json").read_bytes())
        return document

    async def run(self, *requests: str | dict[str, Any], **more: Any) -> JobRow:
        """A job that is answered and over."""
        live = await self.take(*requests, **more)
        await self.answer(live)
        await self.published(live)
        return self.row(live)


def _over(name: str, table: Any) -> Any:
    return {**_QUICK[name], **table} if name in _QUICK else table


def _result(worker: FakeWorker, item: OfferItem, text: str, fault: Fault | None, cut: bool) -> ResultItem:
    server = next(message for message in reversed(worker.sent) if isinstance(message, protocol.Configure))
    model = next(message.model for message in reversed(worker.sent) if isinstance(message, protocol.Offer))
    tokens = (3, 0 if fault else 5)
    answer = Answer("" if fault else text, "", "length" if cut else "stop", *tokens, 0.5, fault)
    record = records.attempt(server, model, item, parse_request(item.raw), (answer, {}), time.time(), 0.5)
    return ResultItem(item.job, item.line, item.attempt, fault is None, record, 0.5, *tokens, *(fault or ("", "", "")))


def lines(*requests: str | dict[str, Any]) -> bytes:
    """The content of a drop."""
    given = [request if isinstance(request, dict) else {"prompt": request} for request in requests]
    return b"".join(json.dumps(request).encode() + b"\n" for request in given)


async def until(found: Callable[[], Any]) -> None:
    """Wait for what is about to happen."""
    async with asyncio.timeout(10):
        while not found():
            await asyncio.sleep(0.001)


def records_of(outbox: Path) -> list[dict[str, Any]]:
    """The whole of a job's successes."""
    return [json.loads(line) for line in (outbox / "results.jsonl").read_bytes().splitlines()]


@contextlib.asynccontextmanager
async def street(
    monkeypatch: pytest.MonkeyPatch, directory: Path, *ports: Port, **tables: Any
) -> AsyncIterator[Street]:
    """A street that is open while the block runs."""
    monkeypatch.setattr(responses_module, "Keeper", NoProcess)
    FakeWorker.unstartable = 0
    made = await Street(directory, *ports, **tables).start()
    try:
        yield made
    finally:
        await made.stop()
