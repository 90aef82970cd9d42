from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from obatchd.errors import GpuError
from obatchd.gpus.kernel_log import Parser, normal_address
from obatchd.simulator.cards.load import Averages
from obatchd.simulator.gpus import KERNEL_LOG, SimulatedGpus
from obatchd.simulator.timeline import GpuEvent, Script, write_script


def gpus(tmp_path: Path, script: Script, age_s: float = 0) -> SimulatedGpus:
    """Two GPUs, ``age_s`` into their timeline."""
    write_script(tmp_path, script)
    path = tmp_path / "gpus.json"
    began_s = path.stat().st_mtime - age_s
    os.utime(path, (began_s, began_s))
    return SimulatedGpus(tmp_path, 2)


def test_heat_comes_by_and_by(tmp_path: Path) -> None:
    script: Script = {"1": [GpuEvent("heat", at_s=10, temp_c=95, ramp_s=20, for_s=100)]}
    assert [r.temp_c for r in gpus(tmp_path, script, 5).readings()] == [35, 35]
    assert [r.temp_c for r in gpus(tmp_path, script, 20).readings()] == [35, 65]
    assert [r.temp_c for r in gpus(tmp_path, script, 60).readings()] == [35, 95]
    assert [r.temp_c for r in gpus(tmp_path, script, 200).readings()] == [35, 35]


def test_counters_grow_and_throttling_counts_its_time(tmp_path: Path) -> None:
    script: Script = {"0": [GpuEvent("grow", at_s=10, per_s={"ecc_corrected": 2.0}), GpuEvent("throttle", for_s=30)]}
    slow = gpus(tmp_path, script, 60).slow_readings()[0]
    assert slow.ecc_corrected in (100, 101) and slow.hw_thermal_s == pytest.approx(30)
    assert gpus(tmp_path, script, 20).readings()[0].clock_reasons == 0x48


def test_the_energy_counter_is_the_integral_of_the_power(tmp_path: Path) -> None:
    """Slots that are busy, half busy and idle again: stepwise sums of the power against the counter."""
    averages, sum_j, step_s = Averages(), 0.0, 0.01
    for share, seconds in ((1.0, 5.0), (0.5, 3.0), (0.0, 4.0)):
        for _ in range(round(seconds / step_s)):
            sum_j += averages.power * step_s
            averages.advance(share, step_s)
    assert averages.powered_s == pytest.approx(sum_j, rel=0.005)
    whole = Averages()
    for share, seconds in ((1.0, 5.0), (0.5, 3.0), (0.0, 4.0)):
        whole.advance(share, seconds)
    assert whole.powered_s == pytest.approx(averages.powered_s)
    first = [r.energy_j for r in gpus(tmp_path, {}).readings()]
    second = [r.energy_j for r in gpus(tmp_path, {}).readings()]
    assert all(a is not None and b is not None and a <= b for a, b in zip(first, second, strict=True))


def test_a_gpu_that_wastes_power_counts_it(tmp_path: Path) -> None:
    script: Script = {"1": [GpuEvent("waste", watts=100, at_s=10, for_s=50)]}
    normal, wasteful = gpus(tmp_path, script, 30).readings()
    assert normal.power_w == 60.0 and wasteful.power_w == 160.0
    assert normal.energy_j is not None and wasteful.energy_j is not None
    assert wasteful.energy_j - normal.energy_j == pytest.approx(2000, abs=20)
    over, _ = gpus(tmp_path, script, 100).readings()[::-1]
    slow = gpus(tmp_path, script, 100).slow_readings()[1]
    assert over.power_w == 60.0 and over.energy_j is not None and slow.energy_j == pytest.approx(over.energy_j, abs=20)


def test_an_xid_is_told_once_and_stands_in_the_kernel_log(tmp_path: Path) -> None:
    source = gpus(tmp_path, {"0": [GpuEvent("xid", xid=79, at_s=0.5), GpuEvent("xid", xid=48, at_s=0.5)]}, 1)
    assert [event.xid for event in source.xids()] == [79]  # even ones only by the log
    assert source.xids() == []
    parser = Parser()
    messages = [line.partition(";")[2] for line in (tmp_path / KERNEL_LOG).read_text().splitlines()]
    logged = [event for message in messages if (event := parser.event(message, 0.0))]
    assert [event.xid for event in logged] == [79, 48]
    assert logged[0].pci_bus_id == normal_address(source.gpus()[0].pci_bus_id)
    assert gpus(tmp_path, {"0": [GpuEvent("xid", xid=79)]}, 60).xids() == []  # told by a process before this one


def test_a_lost_gpu_is_not_listed_and_reads_as_lost(tmp_path: Path) -> None:
    source = gpus(tmp_path, {"1": [GpuEvent("lost", for_s=60)]}, 5)
    assert [reading.trouble for reading in source.readings()] == ["", "lost"]
    assert [reading.trouble for reading in source.slow_readings()] == ["", "lost"]
    assert [gpu.index for gpu in source.gpus()] == [0]
    assert [reading.trouble for reading in source.readings()] == [""]  # a process that never saw it knows nothing of it
    assert len(gpus(tmp_path, {"1": [GpuEvent("lost", for_s=60)]}, 70).gpus()) == 2


def test_foreign_processes_hold_memory_while_they_live(tmp_path: Path) -> None:
    reading = gpus(tmp_path, {"0": [GpuEvent("foreign", pid=os.getpid())]}).readings()[0]
    assert [process.pid for process in reading.processes] == [os.getpid()]
    assert reading.memory_used_bytes == 4 * 1024**3
    assert gpus(tmp_path, {"0": [GpuEvent("foreign", pid=2**22 + 1)]}).readings()[0].processes == []


def test_a_geforce_and_an_old_driver_tell_less(tmp_path: Path) -> None:
    source = gpus(tmp_path, {"0": [GpuEvent("no_data_centre")], "1": [GpuEvent("old_driver")]})
    geforce, old = source.slow_readings()
    assert (geforce.ecc_corrected, geforce.remap_failed, geforce.hw_thermal_s) == (None, None, None)
    assert (old.ecc_corrected, old.hw_thermal_s, old.recovery_action) == (0, None, None)
    assert [reading.margin_c is None for reading in source.readings()] == [False, True]


def test_a_driver_that_was_updated(tmp_path: Path) -> None:
    source = gpus(tmp_path, {"0": [GpuEvent("mismatch", at_s=5)]})
    assert source.host_trouble() == ("", "")
    with pytest.raises(GpuError, match="updated"):
        gpus(tmp_path, {"0": [GpuEvent("mismatch")]}, 1)


def test_the_timeline_comes_from_the_environment_and_goes_on_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = {"gpus": {"1": [{"kind": "set", "values": {"serial": "S1", "temp_c": 50}}]}}
    monkeypatch.setenv("OBATCHD_SIMULATOR", json.dumps(events))
    assert SimulatedGpus(tmp_path, 2).identities()[1].serial == "S1"
    stamp = (tmp_path / "gpus.json").stat().st_mtime_ns
    assert SimulatedGpus(tmp_path, 2).readings()[1].temp_c == 50
    assert (tmp_path / "gpus.json").stat().st_mtime_ns == stamp
