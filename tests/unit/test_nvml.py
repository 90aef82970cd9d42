"""The real NVML source against a pynvml whose functions are replaced: this machine needs no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from obatchd.errors import GpuError
from obatchd.gpus.nvml.driver import Nvml

GIB = 2**30


class Driver:
    """Two cards; card 1 may be sliced or lost, and calls may be told to fail."""

    def __init__(self) -> None:
        self.sliced = False
        self.lost_index: int | None = None
        self.failing: dict[tuple[str, str], int] = {}  # (function, handle) to NVML error

    def call(self, function: str, handle: str, result: Any) -> Any:
        if (code := self.failing.get((function, handle))) is not None:
            raise pynvml.NVMLError(code)
        return result

    def handle(self, index: int) -> str:
        if index == self.lost_index:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return f"card{index}"

    def slice(self, handle: str, position: int) -> str:
        if position == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"{handle}.slice{position}"

    def mig_mode(self, handle: str) -> list[int]:
        if handle == "card0":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(self.sliced), int(self.sliced)]

    def memory(self, handle: str, version: int | None = None) -> SimpleNamespace:
        if version is not None and handle == "card0":  # an old driver
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return self.call("memory", handle, SimpleNamespace(used=GIB, total=80 * GIB))

    def temperature_v(self, handle: str, sensor: int) -> int:
        if handle == "card0":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return self.call("temperature", handle, 55)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    replacements = {
        "nvmlInit": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: b"580.1",
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": driver.handle,
        "nvmlDeviceGetHandleByUUID": lambda uuid: driver.call("by_uuid", uuid, uuid.partition("-")[2]),
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetName": lambda handle: b"NVIDIA Test",
        "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(busId=b"00000000:01:00.0"),
        "nvmlDeviceGetMigMode": driver.mig_mode,
        "nvmlDeviceGetMaxMigDeviceCount": lambda handle: 3,
        "nvmlDeviceGetMigDeviceHandleByIndex": driver.slice,
        "nvmlDeviceGetMemoryInfo": driver.memory,
        "nvmlDeviceGetUtilizationRates": lambda h: driver.call("utilisation", h, SimpleNamespace(gpu=0, memory=0)),
        "nvmlDeviceGetTemperatureV": driver.temperature_v,
        "nvmlDeviceGetTemperature": lambda h, sensor: driver.call("temperature", h, 44),
        "nvmlDeviceGetPowerUsage": lambda h: driver.call("power", h, 61_500),
        "nvmlDeviceGetEnforcedPowerLimit": lambda h: driver.call("limit", h, 350_000),
        "nvmlDeviceGetComputeRunningProcesses": lambda h: driver.call(
            "processes", h, [SimpleNamespace(pid=7, usedGpuMemory=None)]
        ),
    }

    def old_driver(name: str) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", old_driver)
    for name, replacement in replacements.items():
        monkeypatch.setattr(pynvml, name, replacement)
    return driver


def test_listing(driver: Driver) -> None:
    gpus = Nvml().gpus()
    assert [(gpu.uuid, gpu.index, gpu.name) for gpu in gpus] == [
        ("GPU-card0", 0, "NVIDIA Test"),
        ("GPU-card1", 1, "NVIDIA Test"),
    ]
    assert gpus[0].driver == "580.1" and gpus[0].pci_bus_id == "00000000:01:00.0"
    assert gpus[0].memory_bytes == gpus[1].memory_bytes == 80 * GIB


def test_a_lost_gpu_does_not_hide_the_others(driver: Driver) -> None:
    driver.lost_index = 0
    source = Nvml()
    assert [gpu.index for gpu in source.gpus()] == [1]
    assert "GPU 0 cannot be used" in source.problems[0]


def test_slices_replace_their_card(driver: Driver) -> None:
    driver.sliced = True
    source = Nvml()
    gpus = source.gpus()
    assert [(gpu.index, gpu.slice_index, gpu.parent_uuid) for gpu in gpus] == [
        (0, None, None),
        (1, 1, "GPU-card1"),
        (1, 2, "GPU-card1"),
    ]
    driver.failing[("utilisation", "card1.slice1")] = pynvml.NVML_ERROR_NOT_SUPPORTED
    reading = source.readings()[1]
    assert reading.utilisation_percent is None and reading.temp_c == 55 and not reading.errors


def test_readings_have_units_and_tell_zero_from_absent(driver: Driver) -> None:
    driver.failing[("power", "card0")] = pynvml.NVML_ERROR_NOT_SUPPORTED
    source = Nvml()
    source.gpus()
    first, second = source.readings()
    assert (first.power_w, first.utilisation_percent, first.temp_c) == (None, 0, 44)
    assert (second.power_w, second.power_limit_w, second.temp_c) == (61.5, 350.0, 55)
    assert first.memory_used_bytes == GIB and first.memory_total_bytes == 80 * GIB
    assert first.processes[0].pid == 7 and first.processes[0].memory_bytes is None
    assert not first.errors


def test_errors_are_kept_per_field_and_the_handle_is_found_again_by_uuid(driver: Driver) -> None:
    source = Nvml()
    source.gpus()
    driver.failing[("temperature", "card0")] = pynvml.NVML_ERROR_GPU_IS_LOST
    driver.failing[("by_uuid", "GPU-card0")] = pynvml.NVML_ERROR_GPU_IS_LOST
    first = source.readings()[0]
    assert list(first.errors) == ["temp"] and first.power_w == 61.5
    second, other = source.readings()
    assert list(second.errors) == ["handle"] and second.temp_c is None
    assert not other.errors
    driver.failing.clear()
    assert not source.readings()[0].errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no_driver"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "no_driver"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "driver_mismatch"),
        (pynvml.NVML_ERROR_UNKNOWN, "nvml"),
    ],
)
def test_a_driver_that_is_not_usable(monkeypatch: pytest.MonkeyPatch, error: int, code: str) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    with pytest.raises(GpuError) as caught:
        Nvml()
    assert caught.value.code == code
