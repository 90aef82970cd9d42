"""A stand-in GPU under the loads of a stress process, in health and with each of its faults."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from task_support import Failures

from obatchd.burnin.stress.parent import Gone, StressProcess
from obatchd.burnin.stress.process import Stress
from obatchd.burnin.stress.protocol import Bandwidth, Begin, FromProcess, Work, Wrong
from obatchd.burnin.stress.telling import Teller
from obatchd.errors import DeviceError
from obatchd.gpus.model import ClockReason
from obatchd.simulator.cards import device
from obatchd.simulator.cards.load import Averages, Load, StressReporter, server_file, write
from obatchd.simulator.cards.stress import open_device
from obatchd.simulator.gpus import POWER_LIMIT_W, SimulatedGpus, simulated_uuid
from obatchd.simulator.timeline import GpuEvent, write_script

BEGIN = Begin(["links", "compute", "memory"], 97, [], 7)
T = TypeVar("T", bound=FromProcess)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a card is gone through in no time, and a step of products is short."""
    monkeypatch.setattr(device, "_MEMORY_BYTES_PER_S", 1e16)
    monkeypatch.setattr(device, "_STEP_S", 0.01)


def frames(
    directory: Path,
    until: Callable[[list[FromProcess]], bool],
    begin: Begin = BEGIN,
    peers: Sequence[str] = (),
) -> list[FromProcess]:
    """What the loads on stand-in GPU 0 tell, until there is enough."""
    told: list[FromProcess] = []
    stress = Stress(open_device(directory, 0, peers), Teller(told.append))
    stress.begin(begin)
    for _ in range(20_000):
        assert stress.step()
        if until(told):
            break
    else:
        raise AssertionError(f"not enough was told: {told[-3:]}")
    stress.end()
    stress.close()
    return told


def of(kind: type[T], told: list[FromProcess], load: str = "") -> list[T]:
    return [frame for frame in told if isinstance(frame, kind) and load in ("", getattr(frame, "load", ""))]


def worked(told: list[FromProcess]) -> bool:
    return sum(work.passes for work in of(Work, told, "memory")[-1:]) >= 1 and bool(of(Work, told, "compute"))


def test_a_healthy_one_is_covered_and_nothing_is_wrong(tmp_path: Path) -> None:
    told = frames(tmp_path, worked)
    assert not of(Wrong, told)
    memory, compute = of(Work, told, "memory"), of(Work, told, "compute")
    assert max(work.covered_bytes for work in memory) >= 0.93 * 80 * 2**30
    speeds = {work.precision: work.operations / work.operating_s for work in compute if work.operating_s}
    assert speeds["FP32"] == pytest.approx(50e12, rel=0.02)
    assert {(link.kind, link.peer) for link in of(Bandwidth, told)} == {("to_host", ""), ("from_host", "")}


def test_its_readings_follow_the_load(tmp_path: Path) -> None:
    reporter = StressReporter(tmp_path, simulated_uuid(0))
    reporter.tell(busy=True, power=1.19, memory_bytes=70 * 2**30)
    path = tmp_path / f"{simulated_uuid(0)}.stress.json"
    long_ago = Load(os.getpid(), 1, 1, 70 * 2**30, Averages(), 0.0, os.getpid(), 1.19)
    write(path, long_ago)
    loaded, idle = SimulatedGpus(tmp_path, 2).readings()
    assert loaded.utilisation_percent == 98 and idle.utilisation_percent == 0
    assert loaded.power_w is not None and 0.95 * POWER_LIMIT_W < loaded.power_w < POWER_LIMIT_W
    assert loaded.memory_used_bytes == 70 * 2**30 and [p.pid for p in loaded.processes] == [os.getpid()]
    assert loaded.temp_c is not None and 80 <= loaded.temp_c < 87
    write(server_file(tmp_path, simulated_uuid(0)), Load(os.getpid(), 4, 4, 2**30, Averages(), 0.0, os.getpid()))
    both = SimulatedGpus(tmp_path, 2).readings()[0]
    assert both.power_w == POWER_LIMIT_W and both.memory_used_bytes == 71 * 2**30
    assert both.clock_reasons == ClockReason.POWER_CAP


def test_the_memory_of_a_server_is_not_free(tmp_path: Path) -> None:
    opened = open_device(tmp_path, 0)
    before = opened.free_bytes()
    write(server_file(tmp_path, simulated_uuid(0)), Load(os.getpid(), 4, 0, 2**30, Averages(), 0.0, os.getpid()))
    assert opened.free_bytes() == before - 2**30


def test_one_that_may_take_little_power_is_slow(tmp_path: Path) -> None:
    write_script(tmp_path, {"0": [GpuEvent("power_cap", watts=200.0)]})
    told = frames(tmp_path, worked)
    speeds = [work.operations / work.operating_s for work in of(Work, told, "compute") if work.operating_s]
    assert speeds[0] == pytest.approx(30e12, rel=0.02)
    write(tmp_path / f"{simulated_uuid(0)}.stress.json", Load(os.getpid(), 1, 1, 0, Averages(), 0.0, 1, 1.19))
    capped, free = SimulatedGpus(tmp_path, 2).readings()
    assert capped.power_w == 200.0 and capped.clock_reasons == ClockReason.POWER_CAP
    assert (capped.clock_mhz or 0) < (free.clock_mhz or 0)


def test_a_wrong_tile_is_found_with_its_place(tmp_path: Path) -> None:
    write_script(tmp_path, {"0": [GpuEvent("wrong_tile", every=3, bit=20)]})
    wrong = of(Wrong, frames(tmp_path, lambda told: bool(of(Wrong, told))))[0]
    assert (wrong.load, wrong.place) == ("compute", "tile 21,39 of 64×64, FP32")
    assert int(wrong.expected, 16) ^ int(wrong.found, 16) == 1 << 20


def test_a_stuck_bit_is_found_with_its_address(tmp_path: Path) -> None:
    write_script(tmp_path, {"0": [GpuEvent("stuck_bit", bit=37, place_percent=30)]})
    told = frames(tmp_path, lambda told: bool(of(Wrong, told)) and worked(told))
    wrong = of(Wrong, told)
    assert {each.load for each in wrong} == {"memory"}
    [place] = {each.place for each in wrong}
    assert place.startswith("address 0x7f0") and place.endswith(", bit 37")
    again = of(Wrong, frames(tmp_path, lambda told: bool(of(Wrong, told)), Begin(["memory"], 97, [], 9)))
    assert again[0].place == place  # the same word, whatever ran before


@pytest.mark.parametrize("peer", [None, 1])
def test_a_slow_link_is_slow(tmp_path: Path, peer: int | None) -> None:
    write_script(tmp_path, {"0": [GpuEvent("slow_link", peer=peer, factor=2)]})
    uuids = [simulated_uuid(index) for index in range(3)]
    links = of(Bandwidth, frames(tmp_path, worked, peers=uuids[1:]))
    to_host = [link.bytes_per_s for link in links if link.kind == "to_host"]
    to_peers = {link.peer: link.bytes_per_s for link in links if link.kind == "to_peer"}
    assert to_host[0] == pytest.approx(12.5e9 if peer is None else 25e9, rel=0.02)
    assert to_peers[uuids[1]] == pytest.approx(300e9 if peer is None else 150e9, rel=0.02)
    assert to_peers[uuids[2]] == pytest.approx(300e9, rel=0.02)
    other = open_device(tmp_path, 1, [uuids[0]])
    back = other.copy_bytes_per_s("to_peer", 1, uuids[0])
    assert back == pytest.approx(300e9 if peer is None else 150e9, rel=0.02)


async def gone(directory: Path, memory_bytes: int) -> Gone:
    failures = Failures()
    stress = StressProcess(
        "stress0", partial(open_device, directory, 0), memory_bytes, failures, silent_s=3, grace_s=1, exit_s=1
    )
    stress.start()
    async for _ in stress.frames():
        if stress.send(BEGIN):
            break
    async for _ in stress.frames():
        pass
    assert stress.gone is not None
    return stress.gone


@pytest.mark.parametrize(
    ("event", "code", "words"),
    [
        (GpuEvent("hang_kernel"), "hung", "said nothing"),
        (GpuEvent("killed"), "died", "died of signal 9"),
        (GpuEvent("eats_memory"), "memory_limit", "more than 200"),
    ],
    ids=lambda event: getattr(event, "kind", ""),
)
async def test_its_process_hangs_is_killed_or_eats(tmp_path: Path, event: GpuEvent, code: str, words: str) -> None:
    write_script(tmp_path, {"0": [event]})
    found = await gone(tmp_path, 200 * 2**20)
    assert found.code == code and not found.left_behind
    assert words in found.words


def test_without_numpy_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obatchd.simulator.cards.device", None)
    with pytest.raises(DeviceError, match="pip install numpy"):
        open_device(tmp_path, 0)
