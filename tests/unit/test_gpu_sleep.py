"""A GPU that may sleep is neither woken nor kept awake: the real source, a scripted pynvml, and the files of sysfs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from test_gpu_monitor import Bench
from test_nvml import Driver, driver

from obatchd.gpus.model import Reading
from obatchd.gpus.nvml import sleep
from obatchd.gpus.nvml.driver import Nvml

__all__ = ["driver"]  # a fixture
IDLE: list[SimpleNamespace] = []
BUSY = [SimpleNamespace(pid=7, usedGpuMemory=None)]


class Laptop:
    """A laptop's GPUs: how they are, who uses them, and each call that would wake them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.pci, self.driver = 1000.0, directory / "pci", directory / "driver"
        self.open = 0
        self.asked: list[str] = []  # handles
        self.processes: dict[str, list[SimpleNamespace]] = {"card0": IDLE, "card1": IDLE}
        monkeypatch.setattr(sleep, "_PCI", self.pci)
        monkeypatch.setattr(sleep, "_DRIVER", self.driver)
        monkeypatch.setattr(sleep, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: self._opened(1))
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: self._opened(-1))
        monkeypatch.setattr(
            pynvml,
            "nvmlDeviceGetPciInfo",
            lambda handle: SimpleNamespace(busId=f"00000000:0{handle[-1]}:00.0".encode()),
        )
        monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", self._processes)
        monkeypatch.setattr(pynvml, "nvmlEventSetCreate", lambda: self._fails(pynvml.NVML_ERROR_NOT_SUPPORTED))
        for number in (0, 1):
            self.put(number, control="auto", d3="Enabled (fine-grained)", status="active")

    def _opened(self, by: int) -> None:
        self.open += by

    def _fails(self, error: int) -> None:
        raise pynvml.NVMLError(error)

    def _processes(self, handle: str) -> list[SimpleNamespace]:
        assert self.open, "the library is closed"
        self.asked.append(handle)
        return self.processes[handle]

    def put(self, number: int, **told: str) -> None:
        place, of_driver = self.pci / f"0000:0{number}:00.0/power", self.driver / f"0000:0{number}:00.0"
        place.mkdir(parents=True, exist_ok=True)
        of_driver.mkdir(parents=True, exist_ok=True)
        for name, path in (
            ("control", place / "control"), ("status", place / "runtime_status"), ("usage", place / "runtime_usage"),
        ):  # fmt: skip
            if name in told:
                path.write_text(f"{told[name]}\n")
        if "d3" in told:
            (of_driver / "power").write_text(f"Runtime D3 status:          {told['d3']}\nVideo Memory:   Active\n")

    def both(self, status: str) -> None:
        self.put(0, status=status)
        self.put(1, status=status)

    def asked_by(self, look: Callable[[], object]) -> list[str]:
        self.asked.clear()
        look()
        return sorted(self.asked)


@pytest.fixture
def laptop(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    return Laptop(tmp_path, monkeypatch)


def source() -> Nvml:
    made = Nvml()
    made.gpus()
    return made


def look(made: Nvml) -> list[bool]:
    """As the probe's process does, every two seconds; whether each GPU was left alone."""
    readings = made.readings()
    made.xids()
    if not made.resting():
        made.identities()
        made.slow_readings()
    return [bool(reading.asleep) for reading in readings]


def test_idle_gpus_are_read_once_and_then_let_fall_asleep(laptop: Laptop) -> None:
    made = source()
    assert (look(made), laptop.open) == ([False, False], 1)
    for _ in range(20):  # while they fall asleep
        laptop.now_s += 2
        assert laptop.asked_by(lambda: look(made)) == [] and laptop.open == 0
    laptop.both("suspended")
    for _ in range(1000):
        laptop.now_s += 2
        assert laptop.asked_by(lambda: look(made)) == [] and laptop.open == 0
    assert look(made) == [True, True]


def test_a_container_that_does_not_see_the_drivers_files_asks_sysfs(laptop: Laptop) -> None:
    for file in laptop.driver.glob("*/power"):
        file.unlink()
    made = source()
    look(made)
    assert look(made) == [True, True] and laptop.open == 0


def test_a_gpu_that_somebody_wakes_is_read_at_once_and_while_it_is_used(laptop: Laptop) -> None:
    made = source()
    look(made)
    look(made)
    laptop.both("suspended")
    look(made)
    laptop.put(1, status="active")
    laptop.processes["card1"] = BUSY
    for _ in range(3):
        assert laptop.asked_by(lambda: look(made)) == ["card1"]  # the other one sleeps on
    assert look(made) == [True, False] and laptop.open == 1
    laptop.processes["card1"] = IDLE
    look(made)
    assert look(made) == [True, True] and laptop.open == 0


def test_a_gpu_that_is_used_again_before_it_falls_asleep_is_read_at_once(laptop: Laptop) -> None:
    made = source()
    look(made)
    laptop.put(0, usage="0")
    laptop.put(1, usage="0")
    assert look(made) == [True, True]
    laptop.put(1, usage="1")
    laptop.processes["card1"] = BUSY
    assert look(made) == [False, False]


def test_idle_gpus_that_do_not_fall_asleep_are_read_once_a_minute(laptop: Laptop) -> None:
    made, asked = source(), 0
    for _ in range(300):  # ten minutes
        asked += len(laptop.asked_by(lambda: look(made)))
        laptop.now_s += 2
    assert 2 * 9 <= asked <= 2 * 11


@pytest.mark.parametrize("status", ["suspended", "suspending"])
def test_one_that_sleeps_beside_one_at_work_is_not_asked(laptop: Laptop, status: str) -> None:
    laptop.processes["card0"] = BUSY
    made = source()
    look(made)
    laptop.put(1, status=status)
    assert laptop.asked_by(lambda: look(made)) == ["card0"]
    assert [reading.uuid for reading in made.slow_readings()] == ["GPU-card0"]
    assert [card.uuid for card in made.identities()] == ["GPU-card0", "GPU-card1"]  # known from before


@pytest.mark.parametrize(
    "told", [{"control": "on"}, {"d3": "Not supported"}, {"d3": "Disabled by default"}, {"control": "", "d3": ""}]
)
def test_gpus_of_a_server_which_cannot_sleep_are_always_read(laptop: Laptop, told: dict[str, str]) -> None:
    laptop.put(1, **told)
    made = source()
    for _ in range(5):
        assert laptop.asked_by(lambda: look(made)) == ["card0", "card1"]
    assert laptop.open == 1


def test_a_gpu_that_fails_is_not_taken_for_an_idle_one(laptop: Laptop, driver: Driver) -> None:
    made = source()
    driver.failing[("temperature", "card1")] = pynvml.NVML_ERROR_GPU_IS_LOST
    for _ in range(3):
        assert look(made) == [False, False]


def test_a_sleeping_card_is_neither_lost_nor_without_power() -> None:
    bench = Bench(count=2)
    bench.read(gpu0={"power_w": 20.0})
    gone = [Reading(gpu.uuid, bench.now_s, asleep=True) for gpu in bench.gpus]
    for _ in range(10):
        bench.monitor.readings(gone)
    assert {assessment.level for assessment in bench.monitor.assessments.values()} == {"ok"}
    assert bench.monitor.asleep == {"GPU-0", "GPU-1"}
    bench.read()
    assert bench.monitor.asleep == set()


def test_a_card_that_slept_from_the_beginning_is_no_defect() -> None:
    bench = Bench(count=1)
    bench.monitor.readings([Reading("GPU-0", bench.now_s, asleep=True)])
    assert bench.monitor.assessments["GPU-0"].level == "ok"
