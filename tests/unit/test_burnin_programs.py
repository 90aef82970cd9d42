"""Programs of other people as loads of a run: what they find counts as far as it can be believed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from burnin_bench import Bench
from burnin_support import uuid
from test_burnin_phases import records, until_phase

from obatchd.burnin.journal.records import OutsideEnded
from obatchd.burnin.run import programs, run
from obatchd.burnin.stress.outside.outcome import Code, Outcome
from obatchd.documents.burnin.plan import Phase


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


class Program:
    """Stands for gpu-burn and dcgmi: what they find about each GPU, after some time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, Outcome] = {}
        self.takes_s = 0.2
        self.asked: list[tuple[str, tuple[str, ...], float]] = []
        self.broken_off = 0
        monkeypatch.setattr(programs.gpu_burn, "burn", self._burn)
        monkeypatch.setattr(programs.dcgm, "diagnose", self._diagnose)

    async def _burn(self, path: str, gpu: str, seconds: float) -> Outcome:
        self.asked.append(("gpu-burn", (gpu,), seconds))
        await self._work()
        return self.found.get(gpu, Outcome("passed", "computed 9 products without a wrong one"))

    async def _diagnose(self, path: str, gpus: Sequence[str]) -> dict[str, Outcome]:
        self.asked.append(("dcgm", tuple(gpus), 0.0))
        await self._work()
        return {gpu: self.found.get(gpu, Outcome("passed", "passed 5 tests")) for gpu in gpus}

    async def _work(self) -> None:
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.broken_off += 1
            raise


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(monkeypatch)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [("wrong_results", "FAIL"), ("failed", "FAIL"), ("not_done", "INCONCLUSIVE"), ("partly", "PASS_LOW_STRESS")],
)
async def test_what_a_program_finds_is_of_its_gpu_alone(
    bench: Bench, program: Program, code: Code, verdict: str
) -> None:
    program.found = {uuid(1): Outcome(code, "did that")}
    phases = [Phase(["dcgm"], 0.5), Phase(["gpu-burn"], 0.5)]
    document = await bench.carry_out(phases=phases, duration_s=1.0, canary_s=0.0, model="")
    assert document.gpus[1].verdict == verdict
    assert {document.gpus[0].verdict, document.gpus[2].verdict} == {"PASS_LOW_STRESS"}  # memory was not covered
    assert program.asked[0] == ("dcgm", (uuid(0), uuid(1), uuid(2)), 0.0)
    assert {asked for asked in program.asked if asked[0] == "gpu-burn"} == {
        ("gpu-burn", (uuid(number),), 0.5) for number in range(3)
    }
    told = [(each.program, each.outcome, each.text) for each in document.gpus[1].stress_loads.outside]
    assert told == [("dcgm", code, "did that"), ("gpu-burn", code, "did that")]
    again = [record for record in records(bench, OutsideEnded) if record.gpu == uuid(0)]
    assert len(again) >= 3  # while there is time


async def test_a_program_that_takes_longer_than_its_phase_is_waited_for(bench: Bench, program: Program) -> None:
    program.takes_s = 1.5
    document = await bench.carry_out(phases=[Phase(["dcgm"], 1.0)], duration_s=0.5, canary_s=0.0, model="")
    assert [record.outcome for record in records(bench, OutsideEnded)] == ["passed"] * 3
    assert document.elapsed_s < 1.2 and program.broken_off == 0


async def test_a_stop_ends_the_program(bench: Bench, program: Program) -> None:
    program.takes_s = 60.0

    async def stop(this: run.Run) -> None:
        await until_phase(this, 0)
        this.stop("stopped by an administrator")

    document = await bench.carry_out(stop, phases=[Phase(["gpu-burn"], 1.0)], duration_s=60.0, canary_s=0.0, model="")
    assert document.state == "stopped" and program.broken_off == 3
    assert records(bench, OutsideEnded) == []


async def test_a_program_on_a_gpu_in_danger_or_lent_is_ended_at_once(bench: Bench, program: Program) -> None:
    program.takes_s = 60.0

    async def lend(this: run.Run) -> None:
        await until_phase(this, 0)
        bench.servers["gpu0"].holds["lent"] = "lent to somebody"
        async with asyncio.timeout(10):
            while program.broken_off < 1:
                await asyncio.sleep(0.01)
        assert program.broken_off == 1
        this._recording._judge_s = 0.05
        bench.temp_c = 91
        async with asyncio.timeout(10):
            while program.broken_off < 3:
                await asyncio.sleep(0.01)
        this.stop("seen")

    await bench.carry_out(lend, phases=[Phase(["gpu-burn"], 1.0)], duration_s=60.0, canary_s=0.0, model="")
    ended = records(bench, OutsideEnded)
    assert {record.outcome for record in ended} == {"not_done"} and len(ended) == 3
    assert "was ended early" in ended[0].text
