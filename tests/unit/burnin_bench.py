"""A burn-in's host with servers that live in memory: implements :class:`obatchd.burnin.run.ports.RunHost`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import stress_support
from burnin_support import Card, identity, make_plan, uuid
from stress_support import MemoryStress

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Begun, Record, Tracks, Unit
from obatchd.burnin.report import report
from obatchd.burnin.run import load, preparing, run
from obatchd.burnin.run.ports import BatchLoad, Model
from obatchd.documents.burnin.plan import Host, Limits, Phase, Plan
from obatchd.documents.burnin.report import BurninReport
from obatchd.gpus.model import Gpu, GpuProcess, Identity, Reading, SlowReading, XidEvent
from obatchd.jobs.model import Profile
from obatchd.ollama.api import Generated, OllamaApi
from obatchd.servers.states import ServerState
from obatchd.settings.settings import Settings
from obatchd.settings.tables.gpu_health import BurninSettings
from obatchd.tasks import TaskOwner


class MemoryApi(OllamaApi):
    """Answers at once; ``says`` tells the text for a server's output check."""

    def __init__(self, says: Callable[[str], str]) -> None:
        super().__init__("http://127.0.0.1:1")
        self._says = says
        self.pause_s = 0.005  # before each answer

    async def generate(
        self, model: str, prompt: str, options: dict[str, Any], timeout_s: float, *, logprobs: bool = False
    ) -> Generated:
        await asyncio.sleep(self.pause_s)
        text = self._says(options["server"]) if options["temperature"] == 0 and options["num_predict"] > 1 else "x"
        return Generated(text, True, 100, 20, 1_000_000, 4_000_000)


class MemoryServer:
    """A server that is always up."""

    version, reason = "0.24.0", "answers"
    slots = 2

    def __init__(self, number: int, says: Callable[[str], str]) -> None:
        self.api = MemoryApi(says)
        self.id = f"gpu{number}"
        self.state = ServerState.READY
        self.loaded: Profile | None = None
        self.restarts = 0
        self.ended: list[float] = []
        self.idle = asyncio.Event()
        self.idle.set()
        self.holds: dict[str, str] = {}
        self.foreign: list[GpuProcess] = []
        self.released = False
        self.defect = False
        self.loads: list[str] = []  # what it was given, in order

    async def load(self, profile: Profile) -> None:
        self.loaded = profile
        self.loads.append(profile.model)

    async def unload(self) -> None:
        self.loaded = None
        self.loads.append("nothing")

    def load_options(self, profile: Profile) -> dict[str, Any]:
        if self.defect:
            raise KeyError("a defect")
        return {"num_ctx": profile.context_length, "server": self.id}

    @property
    def in_words(self) -> str:
        return f"{self.id} is {self.state}: {self.reason}"

    @property
    def ready(self) -> bool:
        return self.state is ServerState.READY

    @property
    def out_of_use(self) -> bool:
        return self.state is ServerState.QUARANTINED

    @property
    def ready_for_test(self) -> bool:
        return self.ready and not self.holds.keys() - {"burn-in"}

    def begin_test(self, reason: str) -> None:
        self.holds["burn-in"] = reason

    def end_test(self) -> None:
        self.holds.pop("burn-in", None)

    async def quarantine(self, reason: str) -> None:
        self.state, self.reason = ServerState.QUARANTINED, reason

    def release(self) -> None:
        self.state, self.released = ServerState.READY, True

    def progress(self) -> None: ...
    def fault(self, reason: str) -> None: ...


class Bench:
    """Some GPUs, their servers, and what they answer to the output check."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> None:
        numbers = range(count)
        self.servers = {f"gpu{n}": MemoryServer(n, lambda server: self.says(server)) for n in numbers}
        self.gpus = {f"gpu{n}": (Gpu(uuid(n), "H100", n, f"00000000:{n:02X}:00.0", 80 * 2**30, "1"),) for n in numbers}
        self.temp_c = 60
        self.says: Callable[[str], str] = lambda server: "the same"
        self.released: list[str] = []
        self.finished_runs: list[str] = []
        self.quarantined: list[tuple[str, str]] = []
        self.trouble = ""
        self.xids: list[XidEvent] = []
        self.batch_away: list[bool] = []
        self.task: asyncio.Task[None] | None = None  # that carries the run out
        self.missing: dict[str, str] = {}
        self.cards = {uuid(n): stress_support.Card(uuid(n)) for n in numbers}
        self.directory = directory
        self.burnin = BurninSettings(canary_runs=4)
        monkeypatch.setattr(run, "LOOK_S", 0.02)
        monkeypatch.setattr(load, "LOOK_S", 0.02)
        monkeypatch.setattr(preparing, "LOOK_S", 0.02)
        monkeypatch.setattr(preparing, "SETTLE_S", 0.02)  # a reading is of the moment it is asked for

    # The daemon as a run sees it: implements RunHost.

    @property
    def gpus_of(self) -> dict[str, tuple[Gpu, ...]]:
        return self.gpus

    def reading(self, gpu: str) -> Reading:
        return Reading(
            gpu, time.time(), utilisation_percent=97, memory_used_bytes=72 * 2**30, memory_total_bytes=80 * 2**30,
            temp_c=self.temp_c, power_w=600.0, power_limit_w=700.0,
        )  # fmt: skip

    def slow_reading(self, card: str) -> SlowReading:
        return SlowReading(card, time.time())

    def identity(self, gpu: Gpu) -> Identity:
        return identity(gpu.index, Card())

    def new_xids(self) -> list[XidEvent]:
        xids, self.xids = self.xids, []
        return xids

    def monitoring_trouble(self) -> str:
        return ""

    def host_trouble(self) -> str:
        return self.trouble

    def settings(self) -> Settings:
        return Settings(model="llama3.3", burnin=self.burnin)

    async def ensure_model(self, server: str, model: str) -> None: ...

    def model(self, name: str) -> Model:
        return Model("sha256:1", 8192)

    def batch_load(self, server: str) -> BatchLoad:
        return BatchLoad(0, 0, 0, 0)

    def keep_batch_away(self, away: bool) -> None:
        self.batch_away.append(away)

    def finished(self, run: str, verdict: str) -> None:
        self.finished_runs.append(run)

    def missing_loads(self) -> dict[str, str]:
        return self.missing

    def stress(self, gpu: str, owner: TaskOwner, peers: Sequence[str] = ()) -> MemoryStress:
        return MemoryStress(self.cards[gpu], peers)

    def quarantine_reason(self, gpu: Gpu) -> str:
        return ""

    def quarantine(self, gpu: Gpu, reason: str, action: str) -> None:
        self.quarantined.append((gpu.uuid, reason))

    def release(self, gpu: Gpu) -> None:
        self.released.append(gpu.uuid)

    async def carry_out(
        self, during: Callable[[run.Run], Awaitable[None]] | None = None, **changes: Any
    ) -> BurninReport:
        # Speeds are judged elsewhere: a busy machine serves these servers unequally.
        limits = Limits(slower_warn_percent=95, slower_fail_percent=99)
        changed = {"limits": limits, "duration_s": 1.0, "bucket_s": 0.1, "canary_s": 0.15, "canary_runs": 4}
        changed |= {"phases": [Phase(["model"], 1.0)], **changes}
        plan: Plan = msgspec.structs.replace(make_plan(3, 1.0), **changed)
        units = [Unit(uuid(n), "H100", n, f"gpu{n}") for n in range(3)]
        records: list[Record] = [Begun(time.time(), plan, units, Host("here"), "0.1.0")]
        file = journal.Journal(self.directory / "r.jsonl")
        file.append(records)
        return await self.go_on(records, file, during)

    async def go_on(
        self,
        records: list[Record],
        file: journal.Journal,
        during: Callable[[run.Run], Awaitable[None]] | None = None,
    ) -> BurninReport:
        resumed = any(isinstance(record, Tracks) for record in records)
        this = run.Run(records, file, self)
        self.task = task = asyncio.create_task(this.carry_out())
        if during is not None:
            while not this.loading:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            await during(this)
        async with asyncio.timeout(60):
            await task
        file.close()
        written = journal.read(self.directory / "r.jsonl")
        assert [type(record) for record in written] == [type(record) for record in this.records]
        if not resumed:  # a run that goes on with tracks changes them
            assert msgspec.to_builtins(written) == msgspec.to_builtins(this.records)
        return report.build(this.records)
