"""GPUs as the NVIDIA driver shows them, through NVML. For the probe process only: every call may block for ever.

Facts this module is built on: the Python binding is ``nvidia-ml-py``; NVML's index follows the PCI bus, CUDA's need
not, so handles are found by UUID; one lost GPU raises for its own index only; an older driver lacks newer symbols,
which is the same as "not supported"; ``NVMLError`` must be compared by ``value``, never with ``==``; and the process
lists raise ``NVMLLibraryMismatchError``, which is no ``NVMLError``.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pynvml

from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu, GpuProcess, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.nvml import health
from obatchd.gpus.nvml.calls import ERRORS, Asking, field_values, newest, or_none, text, words
from obatchd.gpus.nvml.sleep import Sleep
from obatchd.gpus.source import GpuSource

_NO_DRIVER = frozenset({pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
_UPDATED = "The NVIDIA driver was updated under the running kernel module: reboot the host."
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_MAPPED = Path("/proc/self/maps")
_MEMORY_TEMP = pynvml.NVML_FI_DEV_MEMORY_TEMP


class Nvml(GpuSource):
    """The real source.

    Raises GpuError: ``no_driver`` without a usable driver, ``driver_mismatch`` after a driver update without reboot,
    ``nvml`` for anything else that keeps the library from starting.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []  # of the listing: GPUs that cannot be used, in plain words
        self._gpus: list[Gpu] = []
        self._handles: dict[str, Any] = {}
        self._cards: dict[str, Gpu] = {}  # by UUID; slices share their card
        self._inforom: dict[str, bool | None] = {}
        self._identities: dict[str, Identity] = {}
        self._readings: list[Reading] = []  # the latest
        self._events: health.Events | None = None
        self._sleep = Sleep({})
        self._open()

    def _open(self) -> None:
        try:
            pynvml.nvmlInit()
            self._driver = text(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            raise _explained(error) from error
        self._closed = False

    def _close(self) -> None:
        self._events = None
        self._handles.clear()
        pynvml.nvmlShutdown()
        self._closed = True

    def gpus(self) -> list[Gpu]:
        self.problems, self._gpus = [], []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                self._gpus += self._list(index)
            except ERRORS as error:
                self.problems.append(f"GPU {index} cannot be used: {words(error)}")
        self._sleep = Sleep({uuid: card.pci_bus_id for uuid, card in self._cards.items()})
        return list(self._gpus)

    def _list(self, index: int) -> list[Gpu]:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        parent = self._describe(handle, index)
        mode = or_none(pynvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
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
        memory = or_none(_memory, handle)
        gpu = Gpu(
            uuid=uuid,
            name=text(or_none(pynvml.nvmlDeviceGetName, handle) or (parent.name if parent else "unknown")),
            index=index,
            pci_bus_id=parent.pci_bus_id if parent else text(pynvml.nvmlDeviceGetPciInfo(handle).busId),
            memory_bytes=memory.total if memory else None,
            driver=self._driver,
            parent_uuid=parent.uuid if parent else None,
            slice_index=position,
        )
        if parent is None:
            self._cards[uuid] = gpu
        return gpu

    def readings(self) -> list[Reading]:
        """A GPU that sleeps is not asked; while all are idle, none is, and the library is closed."""
        if not self._closed and self._sleep.leaves_alone(self._readings):
            self._close()
        if self._closed and not self._sleep.is_over():
            self._readings = [self._unasked(gpu) for gpu in self._gpus]
            return self._readings
        if self._closed:
            self._open()
        asleep = self._sleep.asleep()
        self._sleep.read(asleep)
        self._readings = [self._unasked(gpu) if gpu.card in asleep else self._read(gpu) for gpu in self._gpus]
        return self._readings

    def _unasked(self, gpu: Gpu) -> Reading:
        """What stays true while it sleeps."""
        last = next((r for r in self._readings if r.uuid == gpu.uuid), Reading(gpu.uuid, time.time()))
        total_bytes, processes = gpu.memory_bytes, last.processes
        return Reading(gpu.uuid, last.at_s, memory_total_bytes=total_bytes, processes=processes, asleep=True)

    def resting(self) -> bool:
        return self._closed

    def _read(self, gpu: Gpu) -> Reading:
        ask = Asking()
        handle = self._handle(gpu.uuid, ask)
        # A slice has memory and processes of its own; heat and power belong to the whole card.
        card = self._handle(gpu.parent_uuid, ask) if gpu.parent_uuid else handle
        if handle is None or card is None:
            return Reading(uuid=gpu.uuid, at_s=time.time(), errors=ask.errors, trouble=ask.trouble)
        memory = ask.field("memory", _memory, handle)
        utilisation = ask.field("utilisation", pynvml.nvmlDeviceGetUtilizationRates, handle)
        power_mw = ask.field("power", pynvml.nvmlDeviceGetPowerUsage, card)
        power_limit_mw = ask.field("power_limit", pynvml.nvmlDeviceGetEnforcedPowerLimit, card)
        # Of the card alone: no call tells the part of a slice.
        energy_mj = None if gpu.parent_uuid else ask.field("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption, card)
        state = ask.field("performance_state", pynvml.nvmlDeviceGetPerformanceState, card)
        processes = ask.field("processes", pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        reading = Reading(
            uuid=gpu.uuid,
            at_s=time.time(),
            utilisation_percent=utilisation.gpu if utilisation else None,
            memory_utilisation_percent=utilisation.memory if utilisation else None,
            memory_used_bytes=memory.used if memory else None,
            memory_total_bytes=memory.total if memory else None,
            temp_c=ask.field("temp", _temperature, card),
            power_w=None if power_mw is None else power_mw / 1000,
            power_limit_w=None if power_limit_mw is None else power_limit_mw / 1000,
            margin_c=ask.field("margin", pynvml.nvmlDeviceGetMarginTemperature, card),
            clock_mhz=ask.field("clock", pynvml.nvmlDeviceGetClockInfo, card, pynvml.NVML_CLOCK_SM),
            memory_clock_mhz=ask.field("memory_clock", pynvml.nvmlDeviceGetClockInfo, card, pynvml.NVML_CLOCK_MEM),
            clock_reasons=ask.field("clock_reasons", _clock_reasons, card),
            performance_state=None if state == pynvml.NVML_PSTATE_UNKNOWN else state,
            fan_percent=ask.field("fan", pynvml.nvmlDeviceGetFanSpeed, card),
            # Of HBM; other cards have no such field, or answer 0.
            memory_temp_c=field_values(card, [_MEMORY_TEMP], ask, "memory_temp").get(_MEMORY_TEMP) or None,
            processes=[GpuProcess(entry.pid, entry.usedGpuMemory) for entry in processes or ()],
            energy_j=None if energy_mj is None else energy_mj / 1000,
            errors=ask.errors,
            trouble=ask.trouble or ("" if ask.answers else "unknown"),  # asked for last
        )
        if ask.errors:  # found again by UUID next time: the driver may have reset it
            self._handles.pop(gpu.uuid, None)
        return reading

    def _handle(self, uuid: str, ask: Asking) -> Any:
        if uuid not in self._handles:
            try:
                self._handles[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except pynvml.NVMLError as error:
                ask.gone(error)
        return self._handles.get(uuid)

    def identities(self) -> list[Identity]:
        for uuid in self._cards.keys() - self._sleep.asleep():
            if (handle := self._handle(uuid, Asking())) is not None:
                if uuid not in self._inforom:
                    self._inforom[uuid] = health.inforom_valid(handle)
                self._identities[uuid] = health.identity(handle, self._cards[uuid])
        return [self._identities[uuid] for uuid in self._cards if uuid in self._identities]

    def slow_readings(self) -> list[SlowReading]:
        found = []
        asleep = self._sleep.asleep()
        for uuid in (uuid for uuid in self._cards if uuid not in asleep):
            ask = Asking()
            if (handle := self._handle(uuid, ask)) is None:
                found.append(SlowReading(uuid, time.time(), errors=ask.errors, trouble=ask.trouble))
            else:
                found.append(health.slow_reading(handle, uuid, self._inforom.get(uuid)))
        return found

    def xids(self) -> list[XidEvent]:
        if self._closed:
            return []  # the kernel log tells them too
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


def _memory(handle: Any) -> Any:
    """``used`` and ``total`` bytes. Version 1 of the call counts memory reserved by the driver as used."""
    version_2 = partial(pynvml.nvmlDeviceGetMemoryInfo, version=pynvml.nvmlMemory_v2)
    return newest(version_2, pynvml.nvmlDeviceGetMemoryInfo, handle)


def _temperature(handle: Any) -> Any:
    calls = pynvml.nvmlDeviceGetTemperatureV, pynvml.nvmlDeviceGetTemperature
    return newest(*calls, handle, pynvml.NVML_TEMPERATURE_GPU)


def _clock_reasons(handle: Any) -> Any:
    calls = pynvml.nvmlDeviceGetCurrentClocksEventReasons, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons
    return newest(*calls, handle)


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
