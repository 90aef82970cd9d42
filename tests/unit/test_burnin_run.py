"""A run with servers that live in memory: from taking them to giving them back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from burnin_bench import Bench
from burnin_support import uuid

from obatchd.burnin.journal.records import Canary
from obatchd.burnin.run import run
from obatchd.burnin.run.manager import Burnin
from obatchd.gpus.model import GpuProcess, XidEvent
from obatchd.servers.states import ServerState


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
