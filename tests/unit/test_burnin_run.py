"""A run with servers that live in memory: from taking them to giving them back."""

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
from obatchd.burnin.journal.records import Begun, Canary, Record, Tracks, Unit
from obatchd.burnin.report import report
from obatchd.burnin.run import load, preparing, run
from obatchd.burnin.run.manager import Burnin
from obatchd.burnin.run.ports import BatchLoad, Model
from obatchd.documents.burnin import BurninReport, Host, Limits, Phase, Plan
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

    async def generate(
        self, model: str, prompt: str, options: dict[str, Any], timeout_s: float, *, logprobs: bool = False
    ) -> Generated:
        await asyncio.sleep(0.005)
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
    """Three GPUs, their servers, and what they answer to the output check."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.servers = {f"gpu{n}": MemoryServer(n, lambda server: self.says(server)) for n in range(3)}
        self.gpus = {f"gpu{n}": (Gpu(uuid(n), "H100", n, f"00000000:{n:02X}:00.0", 80 * 2**30, "1"),) for n in range(3)}
        self.temp_c = 60
        self.says: Callable[[str], str] = lambda server: "the same"
        self.released: list[str] = []
        self.quarantined: list[tuple[str, str]] = []
        self.trouble = ""
        self.xids: list[XidEvent] = []
        self.batch_away: list[bool] = []
        self.task: asyncio.Task[None] | None = None  # that carries the run out
        self.missing: dict[str, str] = {}
        self.cards = {uuid(n): stress_support.Card(uuid(n)) for n in range(3)}
        self.directory = directory
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
        return Settings(model="llama3.3", burnin=BurninSettings(canary_runs=4))

    async def ensure_model(self, server: str, model: str) -> None: ...

    def model(self, name: str) -> Model:
        return Model("sha256:1", 8192)

    def batch_load(self, server: str) -> BatchLoad:
        return BatchLoad(0, 0, 0, 0)

    def keep_batch_away(self, away: bool) -> None:
        self.batch_away.append(away)

    def finished(self, run: str, verdict: str) -> None: ...

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


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


async def test_a_clean_run_gives_everything_back(bench: Bench) -> None:
    document = await bench.carry_out(exclusive=True, duration_s=1.5)
    assert bench.batch_away == [True, False]
    assert all(gpu.verdict.startswith("PASS") for gpu in document.gpus), document.gpus
    for gpu in document.gpus:
        assert gpu.stress.slots_busy_percent > 80  # most of these short slots is making prompts
        assert gpu.canary.checks >= 2
    assert all(server.holds == {} for server in bench.servers.values())
    assert bench.released == bench.quarantined == []


async def test_a_defect_in_the_load_ends_the_run_and_gives_everything_back(bench: Bench) -> None:
    async def break_load(this: run.Run) -> None:
        bench.servers["gpu1"].defect = True

    with pytest.raises(KeyError, match="a defect"):
        await bench.carry_out(break_load, duration_s=60.0, exclusive=True)
    assert bench.batch_away == [True, False]
    assert all(server.holds == {} for server in bench.servers.values())


async def test_a_defect_in_the_verdict_keeps_no_server_from_its_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.report, "build", lambda records: {}["a defect"])
    with pytest.raises(KeyError):
        await bench.carry_out(exclusive=True)
    assert bench.batch_away == [True, False]
    assert not any(server.holds for server in bench.servers.values())


async def test_a_run_that_a_defect_ends_is_recorded_as_failed(bench: Bench, tmp_path: Path) -> None:
    runs = Burnin(tmp_path / "runs", bench)
    await runs.start({"duration": "10m", "canary": False})
    async with asyncio.timeout(30):
        while runs.active is not None and not runs.active.loading:
            await asyncio.sleep(0.01)
        bench.servers["gpu1"].defect = True
        while runs.active is not None:
            await asyncio.sleep(0.01)
    [row] = await runs.runs()
    assert row.state == "failed" and row.end == "a defect of obatchd: KeyError: 'a defect'"


async def test_a_driver_updated_underneath_is_blamed_on_no_gpu_and_strangers_are_told(bench: Bench) -> None:
    async def update(this: run.Run) -> None:
        bench.trouble = "The driver was updated: reboot the host."

    bench.servers["gpu1"].foreign = [GpuProcess(7, 2**30)]
    document = await bench.carry_out(update)
    for gpu in document.gpus:
        assert gpu.verdict == "INCONCLUSIVE" and "Reboot the host" in gpu.action
    assert [event.signal for event in document.events] == ["host_trouble"]
    stray = [[r.consequence for r in gpu.reasons if r.signal == "stray_processes"] for gpu in document.gpus]
    assert stray == [[], ["warn"], []]
    assert bench.quarantined == []


async def test_the_end_of_a_server_that_we_ended_is_no_finding(bench: Bench) -> None:
    now_s = time.time()
    bench.servers["gpu0"].ended = [now_s - 3, now_s]
    bench.xids = [XidEvent(45, now_s, uuid(number)) for number in (0, 1)]
    document = await bench.carry_out()
    told = [{reason.signal for reason in gpu.reasons} & {"xid_45"} for gpu in document.gpus]
    assert told == [set(), {"xid_45"}, set()]
    assert [event.signal for event in document.gpus[0].events] == ["xid_45"]  # verbatim all the same


async def test_a_gpu_that_begins_to_compute_wrong_is_found_by_its_siblings(bench: Bench) -> None:
    async def turn_bad(this: run.Run) -> None:
        bench.says = lambda server: "something else" if server == "gpu1" else "the same"
        async with asyncio.timeout(30):
            while not any(isinstance(record, Canary) and record.step == "confirmed" for record in this.records):
                await asyncio.sleep(0.05)
        this.stop("it is confirmed")

    document = await bench.carry_out(turn_bad, duration_s=60.0)
    assert [gpu.verdict == "FAIL" for gpu in document.gpus] == [False, True, False]
    assert document.gpus[1].reasons[0].signal == "silent_corruption"
    assert [gpu.canary.mismatches for gpu in document.gpus] == [0, 1, 0]
    [(gpu, reason)] = bench.quarantined
    assert gpu == uuid(1) and "wrong output, confirmed" in reason


async def test_a_gpu_that_always_computes_wrong_is_found_by_its_reference(bench: Bench) -> None:
    bench.says = lambda server: "always wrong" if server == "gpu2" else "the same"
    document = await bench.carry_out()
    assert [gpu.verdict == "FAIL" for gpu in document.gpus] == [False, False, True]


async def test_an_environment_that_does_not_repeat_itself_switches_the_check_off(bench: Bench) -> None:
    count = iter(range(1_000_000))
    bench.says = lambda server: str(next(count))
    document = await bench.carry_out()
    for gpu in document.gpus:
        assert gpu.verdict.startswith("PASS")
        assert gpu.canary.state == "off" and "does not get the same answer" in gpu.canary.text


async def test_a_passed_retest_of_half_an_hour_ends_a_quarantine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RETEST_S", 1.0)
    bench.servers["gpu0"].state = ServerState.QUARANTINED
    await bench.carry_out(retest=[uuid(0)])
    assert bench.released == [uuid(0)]
    assert bench.servers["gpu0"].released


async def test_a_retest_that_was_stopped_ends_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RETEST_S", 1.0)
    bench.servers["gpu0"].state = ServerState.QUARANTINED

    async def stop(this: run.Run) -> None:
        this.stop("stopped by an administrator")

    document = await bench.carry_out(stop, duration_s=60.0, retest=[uuid(0)])
    assert (document.state, document.verdict) == ("stopped", "INCONCLUSIVE")
    assert bench.released == []
    assert bench.servers["gpu0"].state is ServerState.QUARANTINED


async def test_a_gpu_near_its_shutdown_loses_its_load(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def heat(this: run.Run) -> None:
        bench.temp_c = 91
        this._recording._judge_s = 0.05

    document = await bench.carry_out(heat, duration_s=2.0)
    assert {gpu.verdict for gpu in document.gpus} == {"FAIL"}
    for gpu in document.gpus:
        assert "near_shutdown" in {reason.signal for reason in gpu.reasons}
        assert gpu.stress.loaded_s < 1.5
