"""The real binding against a shared library that answers as the driver's would, from the stand-ins' timeline."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nvml_support import COMPILER, build_library, lines

from obatchd.gpus.model import Gpu, GpuProcess, Identity, Reading, SlowReading, XidEvent
from obatchd.simulator.gpus import SimulatedGpus
from obatchd.simulator.timeline import GpuEvent, write_script

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
# In a process of its own, because a binding loads one library for life.
REPORT = """
import msgspec, sys
from obatchd.errors import GpuError
from obatchd.gpus.nvml.driver import Nvml
try:
    source = Nvml()
    gpus = source.gpus()
    report = {"gpus": gpus, "problems": source.problems, "identities": source.identities(),
              "readings": source.readings(), "slow": source.slow_readings(), "xids": source.xids() + source.xids()}
except GpuError as error:
    report = {"error": error.code}
sys.stdout.buffer.write(msgspec.json.encode(report))
"""


class Report(msgspec.Struct):
    gpus: list[Gpu] = []
    problems: list[str] = []
    identities: list[Identity] = []
    readings: list[Reading] = []
    slow: list[SlowReading] = []
    xids: list[XidEvent] = []
    error: str = ""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("nvml")
    build_library(directory)
    return directory


@pytest.fixture
def ask(library: Path, tmp_path: Path) -> Callable[..., Report]:
    def run(told: dict[str, str], **changes: str) -> Report:
        path = tmp_path / "told"
        changed = told | {name.replace("__", "."): value for name, value in changes.items()}
        path.write_text("".join(f"{key} {value}\n" for key, value in changed.items() if value))
        environment = os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_STAND_IN": str(path)}
        command = [sys.executable, "-c", REPORT]
        done = subprocess.run(command, env=environment, check=True, timeout=60, stdout=subprocess.PIPE)
        return msgspec.json.decode(done.stdout, type=Report)

    return run


def told_by(source: SimulatedGpus) -> tuple[dict[str, str], Identity, Reading, SlowReading]:
    return lines(source), source.identities()[0], source.readings()[0], source.slow_readings()[0]


def plain(struct: Any) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(struct).items() if name != "at_s"}


def test_every_reading_goes_through_the_binding(ask: Callable[..., Report], tmp_path: Path) -> None:
    events = [
        GpuEvent("heat", temp_c=88),
        GpuEvent("throttle", reasons=0x48, for_s=0.0),
        GpuEvent("set", values={"ecc_corrected": 7, "ecc_uncorrected_aggregate": 2, "sram_uncorrected": 1}),
        GpuEvent("set", values={"remapped_uncorrected": 3, "remap_pending": True, "pcie_width": 8, "pcie_replays": 9}),
        GpuEvent("set", values={"hw_thermal_s": 12.5, "pcie_fatal": 1, "recovery_action": 4, "fan_percent": 60}),
        GpuEvent("set", values={"memory_clock_mhz": 0, "banks_without_spares": 1, "utilisation_percent": 97}),
        GpuEvent("set", values={"gsp_firmware": "", "slot": "", "energy_j": None}),
    ]
    write_script(tmp_path, {"0": events})
    told, card, fast, slow = told_by(SimulatedGpus(tmp_path, 2))
    found = ask(
        told, **{"0__xid": "79", "xid": "79", "0__event_types": "8", "0__process": "4711", "0__process_bytes": "99"}
    )
    driver = {"driver": "580.1"}
    assert plain(found.identities[0]) == plain(card) | driver
    assert plain(found.readings[0]) == plain(fast) | {"processes": [GpuProcess(4711, 99)]}
    told_slow = plain(slow) | {"sram_threshold_exceeded": None}
    assert plain(found.slow[0]) == told_slow
    assert [(event.xid, event.uuid, event.source) for event in found.xids] == [(79, card.uuid, "nvml")]


def test_a_geforce_tells_less_and_nothing_is_zero(ask: Callable[..., Report], tmp_path: Path) -> None:
    write_script(tmp_path, {"0": [GpuEvent("no_data_centre"), GpuEvent("old_driver")]})
    found = ask(lines(SimulatedGpus(tmp_path, 1)))
    slow, fast = found.slow[0], found.readings[0]
    assert (slow.ecc_corrected, slow.remap_failed, slow.hw_thermal_s, slow.recovery_action) == (None, None, None, None)
    assert (fast.memory_temp_c, fast.margin_c, fast.utilisation_percent) == (None, None, 0)
    assert found.identities[0].ecc is None
    assert not slow.errors and not fast.errors


def test_a_lost_card_hides_no_other(ask: Callable[..., Report], tmp_path: Path) -> None:
    told = lines(SimulatedGpus(tmp_path, 4))
    found = ask(told, **{"2__all": "error 15"})
    assert [gpu.index for gpu in found.gpus] == [0, 1, 3]
    assert "GPU 2 cannot be used" in found.problems[0]
    assert all(reading.temp_c is not None and not reading.trouble for reading in found.readings)


@pytest.mark.parametrize(
    ("code", "trouble"), [(15, "lost"), (16, "reset_required"), (11, "irq"), (14, "inforom_corrupted"), (999, "")]
)
def test_errors_of_one_field_are_kept_and_say_what_they_mean(
    ask: Callable[..., Report], tmp_path: Path, code: int, trouble: str
) -> None:
    found = ask(lines(SimulatedGpus(tmp_path, 1)), **{"0__power_mw": f"error {code}"}).readings[0]
    assert (found.power_w, found.trouble, list(found.errors)) == (None, trouble, ["power"])
    assert found.temp_c is not None


@pytest.mark.parametrize(("code", "slug"), [(9, "no_driver"), (18, "driver_mismatch"), (999, "nvml")])
def test_a_library_that_does_not_start(ask: Callable[..., Report], code: int, slug: str) -> None:
    assert ask({}, init=f"error {code}").error == slug
