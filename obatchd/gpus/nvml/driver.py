"""GPUs as the NVIDIA driver shows them, through NVML. For the probe process only: every call may block for ever.

Facts this module is built on: the Python binding is ``nvidia-ml-py``; NVML's index follows the PCI bus, CUDA's need
not, so handles are found by UUID; one lost GPU raises for its own index only; an older driver lacks newer symbols,
which is the same as "not supported"; ``NVMLError`` must be compared by ``value``, never with ``==``; and the process
lists raise ``NVMLLibraryMismatchError``, which is no ``NVMLError``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pynvml

from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu, GpuProcess, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.nvml import health
from obatchd.gpus.nvml.calls import ERRORS, Asking, field_values, newest, or_none, text, words
from obatchd.gpus.source import GpuSource

_NO_DRIVER = frozenset({pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
_UPDATED = "The NVIDIA driver was updated under the running kernel module: reboot the host."
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_MAPPED = Path("/proc/self/maps")


class Nvml(GpuSource):
    """The real source.

    Raises:
        GpuError: ``no_driver`` without a usable driver, ``driver_mismatch`` after a driver update without reboot,
            ``nvml`` for anything else that keeps the library from starting.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []  # of the latest listing: GPUs that cannot be used, in plain words
        self._gpus: dict[str, Gpu] = {}
        self._handles: dict[str, Any] = {}
        self._cards: dict[str, tuple[int, str]] = {}  # UUID to index and bus id; slices share their card
        self._inforom: dict[str, bool | None] = {}
        self._events: health.Events | None = None
        try:
            pynvml.nvmlInit()
            self._driver = text(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            raise _explained(error) from error

    def gpus(self) -> list[Gpu]:
        self.problems = []
        found: list[Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found += self._list(index)
            except ERRORS as error:
                self.problems.append(f"GPU {index} cannot be used: {words(error)}")
        self._gpus = {gpu.uuid: gpu for gpu in found}
        return found

    def _list(self, index: int) -> list[Gpu]:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        parent = self._describe(handle, index)
        mode = or_none(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0])
        if mode != pynvml.NVML_DEVICE_MIG_ENABLE:
            return [parent]
        slices: list[Gpu] = []
        for position in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, position)
            except pynvml.NVMLError as error:
                if error.value not in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT):
                    self.problems.append(f"GPU {index} slice {position} cannot be used: {words(error)}")
                continue
            slices.append(self._describe(part, index, parent, position))
        if not slices:
            self.problems.append(f"GPU {index} has MIG on but no slice: make one with nvidia-smi mig, or turn MIG off")
        return slices

    def _describe(self, handle: Any, index: int, parent: Gpu | None = None, position: int | None = None) -> Gpu:
        uuid = text(pynvml.nvmlDeviceGetUUID(handle))
        self._handles[uuid] = handle
        bus_id = parent.pci_bus_id if parent else text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
        if parent is None:
            self._cards[uuid] = (index, bus_id)
        memory = or_none(lambda: _memory(handle))
        return Gpu(
            uuid=uuid,
            name=or_none(lambda: text(pynvml.nvmlDeviceGetName(handle))) or (parent.name if parent else "unknown"),
            index=index,
            pci_bus_id=bus_id,
            memory_bytes=memory[1] if memory else None,
            driver=self._driver,
            parent_uuid=parent.uuid if parent else None,
            slice_index=position,
        )

    def readings(self) -> list[Reading]:
        return [self._read(gpu) for gpu in self._gpus.values()]

    def _read(self, gpu: Gpu) -> Reading:
        ask = Asking()
        handle = self._handle(gpu.uuid, ask)
        # A slice has memory and processes of its own; heat and power belong to the whole card.
        card = self._handle(gpu.parent_uuid, ask) if gpu.parent_uuid else handle
        if handle is None or card is None:
            return Reading(uuid=gpu.uuid, at_s=time.time(), errors=ask.errors, trouble=ask.trouble)
        memory = ask.field("memory", lambda: _memory(handle))
        utilisation = ask.field("utilisation", lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        values = {
            "temp_c": ask.field("temp", lambda: _temperature(card)),
            "power_w": ask.field("power", lambda: pynvml.nvmlDeviceGetPowerUsage(card) / 1000),
            "power_limit_w": ask.field("power_limit", lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000),
            "margin_c": ask.field("margin", lambda: int(pynvml.nvmlDeviceGetMarginTemperature(card))),
            "clock_mhz": ask.field("clock", lambda: _clock(card, pynvml.NVML_CLOCK_SM)),
            "memory_clock_mhz": ask.field("memory_clock", lambda: _clock(card, pynvml.NVML_CLOCK_MEM)),
            "clock_reasons": ask.field("clock_reasons", lambda: _clock_reasons(card)),
            "performance_state": ask.field("performance_state", lambda: _performance_state(card)),
            "fan_percent": ask.field("fan", lambda: int(pynvml.nvmlDeviceGetFanSpeed(card))),
            "memory_temp_c": _memory_temp(card, ask),
        }
        processes = ask.field("processes", lambda: _processes(handle)) or []
        if ask.errors:  # found again by UUID next time: the driver may have reset it
            self._handles.pop(gpu.uuid, None)
        if not ask.answers and not ask.trouble:
            ask.trouble = "unknown"
        return Reading(
            uuid=gpu.uuid,
            at_s=time.time(),
            utilisation_percent=int(utilisation.gpu) if utilisation else None,
            memory_utilisation_percent=int(utilisation.memory) if utilisation else None,
            memory_used_bytes=memory[0] if memory else None,
            memory_total_bytes=memory[1] if memory else None,
            processes=processes,
            errors=ask.errors,
            trouble=ask.trouble,
            **values,
        )

    def _handle(self, uuid: str, ask: Asking) -> Any:
        if uuid not in self._handles:
            try:
                self._handles[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except pynvml.NVMLError as error:
                ask.gone(error)
        return self._handles.get(uuid)

    def identities(self) -> list[Identity]:
        found = []
        for uuid, (index, bus_id) in self._cards.items():
            if (handle := self._handle(uuid, Asking())) is not None:
                if uuid not in self._inforom:
                    self._inforom[uuid] = health.inforom_valid(handle)
                found.append(health.identity(handle, uuid, index, self._driver, bus_id))
        return found

    def slow_readings(self) -> list[SlowReading]:
        found = []
        for uuid in self._cards:
            ask = Asking()
            if (handle := self._handle(uuid, ask)) is None:
                found.append(SlowReading(uuid, time.time(), errors=ask.errors, trouble=ask.trouble))
            else:
                found.append(health.slow_reading(handle, uuid, self._inforom.get(uuid)))
        return found

    def xids(self) -> list[XidEvent]:
        if self._events is None:
            cards = {uuid: self._handle(uuid, Asking()) for uuid in self._cards}
            self._events = health.Events({uuid: handle for uuid, handle in cards.items() if handle is not None})
        return self._events.take()

    def host_trouble(self) -> tuple[str, str]:
        """A library that was replaced on disk goes on here, but no new process gets along with the kernel module."""
        module = _read(_KERNEL_MODULE)
        replaced = any("libnvidia-ml" in line and "(deleted)" in line for line in _read(_MAPPED).splitlines())
        if replaced or (module and self._driver not in module):
            return "driver_mismatch", f"{_UPDATED} Servers that are started before find no GPU."
        return "", ""


def _memory(handle: Any) -> tuple[int, int]:
    """Used and total bytes. Version 1 of the call counts memory reserved by the driver as used."""
    memory = newest(
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2),
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle),
    )
    return int(memory.used), int(memory.total)


def _temperature(handle: Any) -> int:
    sensor = pynvml.NVML_TEMPERATURE_GPU
    value = newest(
        lambda: pynvml.nvmlDeviceGetTemperatureV(handle, sensor),
        lambda: pynvml.nvmlDeviceGetTemperature(handle, sensor),
    )
    return int(value)


def _memory_temp(handle: Any, ask: Asking) -> int | None:
    """Of HBM; the others have no such field, or answer 0."""
    number = pynvml.NVML_FI_DEV_MEMORY_TEMP
    value = field_values(handle, [number], ask, "memory_temp").get(number)
    return int(value) if value else None


def _clock(handle: Any, kind: int) -> int:
    return int(pynvml.nvmlDeviceGetClockInfo(handle, kind))


def _clock_reasons(handle: Any) -> int:
    bits = newest(
        lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    return int(bits)


def _performance_state(handle: Any) -> int | None:
    state = int(pynvml.nvmlDeviceGetPerformanceState(handle))
    return state if state <= pynvml.NVML_PSTATE_15 else None


def _processes(handle: Any) -> list[GpuProcess]:
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return [GpuProcess(int(entry.pid), entry.usedGpuMemory) for entry in found]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _explained(error: Any) -> GpuError:
    if error.value in _NO_DRIVER:
        return GpuError("No NVIDIA driver on this host (nvidia-smi would say the same).", code="no_driver")
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return GpuError(_UPDATED, code="driver_mismatch")
    return GpuError(f"NVML does not start: {words(error)}. Look at nvidia-smi and dmesg.", code="nvml")
