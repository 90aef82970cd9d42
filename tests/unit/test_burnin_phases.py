"""A run in phases, with stress processes that live in memory and some that are real."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from burnin_bench import Bench
from burnin_support import uuid
from stress_devices import Flips, Hangs, Killed, device_with

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Bucket, PhaseBegun, StressEnded, StressOpened
from obatchd.burnin.report import report
from obatchd.burnin.run import run
from obatchd.burnin.run.manager import Burnin
from obatchd.burnin.stress.parent import Gone, StressProcess
from obatchd.burnin.stress.protocol import Trouble, Wrong
from obatchd.documents.burnin.plan import Phase
from obatchd.documents.burnin.report import BurninReport
from obatchd.errors import ConfigError
from obatchd.tasks import TaskOwner

QUICK = [Phase(["model"], 0.5), Phase(["compute", "memory"], 0.5)]
PURE = [Phase(["compute"], 0.5), Phase(["memory"], 0.5)]
TOGETHER = [Phase(["model"], 0.4), Phase(["memory"], 0.3), Phase(["model", "compute", "memory"], 0.3)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def records(bench: Bench, kind: type[Any]) -> list[Any]:
    return [record for record in journal.read(bench.directory / "r.jsonl") if isinstance(record, kind)]


async def until_phase(this: run.Run, number: int) -> None:
    async with asyncio.timeout(30):
        while not any(isinstance(record, PhaseBegun) and record.number == number for record in this.records):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)


def signals(document: BurninReport, number: int) -> set[str]:
    return {reason.signal for reason in document.gpus[number].reasons if reason.consequence != "note"}


async def test_products_and_patterns_have_the_gpu_for_themselves(bench: Bench) -> None:
    document = await bench.carry_out(phases=QUICK, duration_s=2.0, canary_s=0.3)
    assert all(gpu.verdict.startswith("PASS") for gpu in document.gpus), document.gpus
    assert [(begun.number, begun.loads) for begun in document.phases] == [(0, ["model"]), (1, ["compute", "memory"])]
    for server in bench.servers.values():
        assert server.loads[-1] == "nothing" and server.loads[-2] == "llama3.3"
    for number in range(3):
        card = bench.cards[uuid(number)]
        assert card.begun == [("links",), ("compute", "memory"), ("links",)]
        assert all(process.gone is not None for process in card.processes)
    gpu = document.gpus[0]
    assert [phase.loads for phase in gpu.phases] == [["model"], ["compute", "memory"]]
    assert gpu.stress_loads.memory is not None and gpu.stress_loads.memory.covered_percent == 96.0
    links = [(link.kind, link.peer) for link in gpu.stress_loads.links]
    assert links == [("to_host", ""), ("from_host", ""), ("to_peer", uuid(1)), ("to_peer", uuid(2))]
    assert {record.gpu for record in records(bench, StressOpened)} == {uuid(n) for n in range(3)}
    assert any(bucket.between for bucket in records(bench, Bucket))


async def test_a_model_is_loaded_again_before_the_rest_of_the_memory_is_taken(bench: Bench) -> None:
    document = await bench.carry_out(phases=TOGETHER, duration_s=2.0, canary_s=0.0)
    loads = bench.servers["gpu0"].loads
    assert loads[-2:] == ["nothing", "llama3.3"]
    assert bench.cards[uuid(0)].begun == [("links",), ("memory",), ("links",), ("compute", "memory")]
    assert all(gpu.work.tokens > 0 for gpu in document.gpus)


async def test_a_run_without_a_model_takes_it_from_the_gpu(bench: Bench) -> None:
    document = await bench.carry_out(phases=PURE, duration_s=1.5, canary_s=0.0, model="")
    assert [server.loads for server in bench.servers.values()] == [["nothing", "nothing"]] * 3
    assert all(gpu.verdict.startswith("PASS") for gpu in document.gpus), document.gpus[0].reasons
    assert all(server.holds == {} for server in bench.servers.values())


@pytest.mark.parametrize(
    ("gone", "signal", "words"),
    [
        (Gone("hung", "said nothing for 30 s and was killed", left_behind=True), "stress_hung", "was left behind"),
        (Gone("died", "died of signal 9"), "stress_died", "died of signal 9"),
        (Gone("memory_limit", "took 5.0 GiB of the host's memory"), "stress_memory_limit", "took 5.0 GiB"),
    ],
)
async def test_a_process_that_ends_ends_the_loads_of_its_gpu_alone(
    bench: Bench, gone: Gone, signal: str, words: str
) -> None:
    bench.cards[uuid(1)].gone = gone
    document = await bench.carry_out(phases=QUICK, duration_s=2.0, canary_s=0.0)
    assert document.state == "completed"
    assert [gpu.verdict.startswith("PASS") for gpu in document.gpus] == [True, False, True]
    assert document.gpus[1].verdict == "INCONCLUSIVE" and signal in signals(document, 1)
    assert words in document.gpus[1].stress_loads.ended
    assert [record.gpu for record in records(bench, StressEnded)] == [uuid(1)]
    assert bench.quarantined == []


@pytest.mark.parametrize(
    ("wrong", "signal"),
    [
        (Wrong(1.0, "memory", "address 0x7f0000000040, bit 5", "walking ones", "0x1", "0x21"), "wrong_memory"),
        (Wrong(1.0, "compute", "tile 1,2 of 64×64, FP16", "differs from the first", "0x1", "0x21"), "wrong_result"),
    ],
)
async def test_wrong_results_fail_the_gpu_and_take_it_out_of_use(bench: Bench, wrong: Wrong, signal: str) -> None:
    bench.cards[uuid(2)].wrong = wrong
    document = await bench.carry_out(phases=QUICK, duration_s=2.0, canary_s=0.0)
    assert [gpu.verdict == "FAIL" for gpu in document.gpus] == [False, False, True]
    assert document.gpus[2].stress_loads.wrong[0].place == wrong.place
    [(gpu, reason)] = bench.quarantined
    assert gpu == uuid(2) and wrong.place in reason and signal in signals(document, 2)


async def test_a_gpu_near_its_shutdown_loses_these_loads_at_once(bench: Bench) -> None:
    async def heat(this: run.Run) -> None:
        await until_phase(this, 0)
        this._recording._judge_s = 0.05
        bench.temp_c = 91

    document = await bench.carry_out(heat, phases=PURE, duration_s=2.0, canary_s=0.0, model="")
    assert {gpu.verdict for gpu in document.gpus} == {"FAIL"}
    assert {record.code for record in records(bench, StressEnded)} == {"stopped"}
    for number in range(3):
        assert bench.cards[uuid(number)].begun[-1] == ("compute",)  # never the memory
        assert document.gpus[number].stress.loaded_s < 1.5


async def test_a_gpu_that_is_lent_is_not_loaded_meanwhile(bench: Bench) -> None:
    async def lend(this: run.Run) -> None:
        await until_phase(this, 0)
        card, server = bench.cards[uuid(0)], bench.servers["gpu0"]
        server.holds["lent"] = "lent to somebody"
        async with asyncio.timeout(10):
            while card.processes[0]._working is not None:
                await asyncio.sleep(0.01)
        before = len(card.begun)
        del server.holds["lent"]
        async with asyncio.timeout(10):
            while len(card.begun) == before:
                await asyncio.sleep(0.01)
        assert card.begun[-1] == ("compute",)
        this.stop("seen")

    document = await bench.carry_out(lend, phases=PURE, duration_s=60.0, canary_s=0.0, model="")
    assert document.state == "stopped"


async def test_no_room_beside_the_model_is_no_fault(bench: Bench) -> None:
    bench.cards[uuid(0)].trouble = Trouble("out_of_memory", "The GPU has no 2.0 MiB of memory free.")
    phases = [Phase(["model", "memory"], 1.0)]
    document = await bench.carry_out(phases=phases, duration_s=1.0, canary_s=0.0)
    assert document.gpus[0].verdict == "PASS_LOW_STRESS" and records(bench, StressEnded) == []
    assert "stress_no_room" in {event.signal for event in document.gpus[0].events}


async def test_a_later_daemon_goes_on_with_the_phase_and_not_with_loads_that_ended(bench: Bench) -> None:
    bench.cards[uuid(1)].gone = Gone("died", "died of signal 9")

    async def leave(this: run.Run) -> None:
        await until_phase(this, 1)
        this.leaving = True
        assert bench.task is not None
        bench.task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await bench.carry_out(leave, phases=QUICK, duration_s=4.0, canary_s=0.0)
    found = journal.read(bench.directory / "r.jsonl")
    assert journal.ended(found) is None and any(isinstance(record, StressEnded) for record in found)
    for card in bench.cards.values():
        card.begun.clear()
    file = journal.Journal(bench.directory / "r.jsonl")
    document = await bench.go_on(found, file)
    assert [begun.number for begun in document.phases] == [0, 1, 1]
    assert document.elapsed_s == pytest.approx(4.0, abs=0.5)
    assert bench.cards[uuid(0)].begun == [("links",), ("compute", "memory"), ("links",)]
    assert bench.cards[uuid(1)].begun == []
    assert document.gpus[1].verdict == "INCONCLUSIVE"


async def test_a_run_of_an_earlier_version_goes_on_as_it_was(bench: Bench) -> None:
    document = await bench.carry_out(phases=[], duration_s=1.0)
    assert {gpu.verdict for gpu in document.gpus} <= {"PASS", "PASS_LOW_STRESS"}
    assert document.phases == [] and document.gpus[0].canary.checks >= 1 and document.gpus[0].work.tokens > 0
    assert all(card.begun == [] for card in bench.cards.values())


async def test_a_load_that_cannot_be_had_is_refused_or_left_out(bench: Bench, tmp_path: Path) -> None:
    bench.missing = dict.fromkeys(("compute", "memory"), "install it with pip install 'obatchd[stress]'")
    runs = Burnin(tmp_path / "runs", bench)
    with pytest.raises(ConfigError, match="pip install") as refused:
        await runs.start({"load": ["memory"]})
    assert refused.value.code == "not_installed"
    await runs.start({"duration": "10m"})
    assert runs.active is not None and runs.active.plan.left_out == bench.missing
    await runs.close()


# --- real processes ---------------------------------------------------------------------------------------------------


class RealBench(Bench):
    """With a real process for each GPU; ``disturbances`` by UUID."""

    disturbances: dict[str, type[Any]] = {}  # noqa: RUF012 - each test sets its own

    def stress(self, gpu: str, owner: TaskOwner, peers: Sequence[str] = ()) -> Any:
        opening = partial(device_with, None if peers else self.disturbances.get(gpu))
        return StressProcess(f"stress-{gpu[-1]}", opening, 2**31, owner, silent_s=12.0, grace_s=2.0, exit_s=1.0)


async def until_all_is_seen(this: run.Run) -> None:
    """The loads of two GPUs are over, and all memory of the third was read back, however busy the machine is."""
    async with asyncio.timeout(90):
        while True:
            await asyncio.sleep(0.1)
            over = {record.gpu for record in this.records if isinstance(record, StressEnded)}
            memory = report.build(this.records).gpus[2].stress_loads.memory
            if over == {uuid(0), uuid(1)} and memory is not None and (memory.covered_percent or 0) >= 94.5:
                break
    this.stop("all was seen")


async def test_real_processes_of_which_one_is_killed_one_hangs_and_one_finds_a_stuck_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = RealBench(tmp_path, monkeypatch)
    bench.disturbances = {uuid(0): Killed, uuid(1): Hangs, uuid(2): Flips}
    phases = [Phase(["compute"], 0.01), Phase(["memory"], 0.99)]
    document = await bench.carry_out(until_all_is_seen, phases=phases, duration_s=500.0, canary_s=0.0, model="")
    assert document.state == "stopped"
    killed, hung, stuck = document.gpus
    assert killed.verdict == "INCONCLUSIVE" and "died of signal 9" in killed.stress_loads.ended
    assert hung.verdict == "INCONCLUSIVE" and "said nothing for 12 s and was killed" in hung.stress_loads.ended
    assert stuck.verdict == "FAIL" and stuck.reasons[0].signal == "wrong_memory"
    assert "bit 5" in stuck.stress_loads.wrong[0].place
    assert all(gpu.stress_loads.products[0].operations > 0 for gpu in document.gpus)
    assert stuck.stress_loads.memory is not None and stuck.stress_loads.memory.covered_percent >= 94.5
    assert {link.kind for gpu in document.gpus for link in gpu.stress_loads.links} == {"to_host", "from_host"}
    assert [gpu for gpu, _ in bench.quarantined] == [uuid(2)]
