"""GPUs as the NVIDIA driver shows them, through NVML. For the probe process only: every call may block for ever.

Facts this module is built on: the Python binding is ``nvidia-ml-py``; NVML's index follows the PCI bus, CUDA's need
not, so handles are found by UUID; one lost GPU raises for its own index only; an older driver lacks newer symbols,
which is the same as "not supported"; ``NVMLError`` must be compared by ``value``, never with ``==``; and the process
lists raise ``NVMLLibraryMismatchError``, which is no ``NVMLError``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import pynvml

from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu, GpuProcess, Reading

_T = TypeVar("_T")
_NO_DRIVER = frozenset({pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
_ABSENT = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_ERRORS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)


class GpuSource(Protocol):
    """Where GPUs and readings come from: NVML, or the stand-in of :mod:`obatchd.simulator.gpus`."""

    def gpus(self) -> list[Gpu]:
        """Every GPU that can carry a server, in index order."""

    def readings(self) -> list[Reading]:
        """One reading per listed GPU."""


class Nvml:
    """The real source.

    Raises:
        GpuError: ``no_driver`` without a usable driver, ``driver_mismatch`` after a driver update without reboot,
            ``nvml`` for anything else that keeps the library from starting.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []  # of the latest listing: GPUs that cannot be used, in plain words
        self._gpus: dict[str, Gpu] = {}
        self._handles: dict[str, Any] = {}
        try:
            pynvml.nvmlInit()
            self._driver = _text(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            raise _explained(error) from error

    def gpus(self) -> list[Gpu]:
        self.problems = []
        found: list[Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found += self._list(index)
            except _ERRORS as error:
                self.problems.append(f"GPU {index} cannot be used: {_words(error)}")
        self._gpus = {gpu.uuid: gpu for gpu in found}
        return found

    def _list(self, index: int) -> list[Gpu]:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        parent = self._describe(handle, index)
        mode = _or_none(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0])
        if mode != pynvml.NVML_DEVICE_MIG_ENABLE:
            return [parent]
        slices: list[Gpu] = []
        for position in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, position)
            except pynvml.NVMLError as error:
                if error.value not in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT):
                    self.problems.append(f"GPU {index} slice {position} cannot be used: {_words(error)}")
                continue
            slices.append(self._describe(part, index, parent, position))
        if not slices:
            self.problems.append(f"GPU {index} has MIG on but no slice: make one with nvidia-smi mig, or turn MIG off")
        return slices

    def _describe(self, handle: Any, index: int, parent: Gpu | None = None, position: int | None = None) -> Gpu:
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
        self._handles[uuid] = handle
        memory = _or_none(lambda: _memory(handle))
        return Gpu(
            uuid=uuid,
            name=_or_none(lambda: _text(pynvml.nvmlDeviceGetName(handle))) or (parent.name if parent else "unknown"),
            index=index,
            pci_bus_id=parent.pci_bus_id if parent else _text(pynvml.nvmlDeviceGetPciInfo(handle).busId),
            memory_bytes=memory[1] if memory else None,
            driver=self._driver,
            parent_uuid=parent.uuid if parent else None,
            slice_index=position,
        )

    def readings(self) -> list[Reading]:
        return [self._read(gpu) for gpu in self._gpus.values()]

    def _read(self, gpu: Gpu) -> Reading:
        errors: dict[str, str] = {}
        handle = self._handle(gpu.uuid, errors)
        # A slice has memory and processes of its own; heat and power belong to the whole card.
        card = self._handle(gpu.parent_uuid, errors) if gpu.parent_uuid else handle
        if handle is None or card is None:
            return Reading(uuid=gpu.uuid, at_s=time.time(), errors=errors)

        def field(name: str, read: Callable[[], _T]) -> _T | None:
            try:
                return read()
            except _ERRORS as error:
                if getattr(error, "value", None) not in _ABSENT:
                    errors[name] = _words(error)
                    self._handles.pop(gpu.uuid, None)  # found again by UUID next time: the driver may have reset it
                return None

        memory = field("memory", lambda: _memory(handle))
        return Reading(
            uuid=gpu.uuid,
            at_s=time.time(),
            utilisation_percent=field("utilisation", lambda: int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            memory_used_bytes=memory[0] if memory else None,
            memory_total_bytes=memory[1] if memory else None,
            temp_c=field("temp", lambda: _temperature(card)),
            power_w=field("power", lambda: pynvml.nvmlDeviceGetPowerUsage(card) / 1000),
            power_limit_w=field("power_limit", lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000),
            processes=field("processes", lambda: _processes(handle)) or [],
            errors=errors,
        )

    def _handle(self, uuid: str, errors: dict[str, str]) -> Any:
        if uuid not in self._handles:
            try:
                self._handles[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except pynvml.NVMLError as error:
                errors["handle"] = _words(error)
        return self._handles.get(uuid)


def _memory(handle: Any) -> tuple[int, int]:
    """Used and total bytes. Version 1 of the call counts memory reserved by the driver as used."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        if error.value not in (*_ABSENT, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
            raise
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return int(memory.used), int(memory.total)


def _temperature(handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError as error:
        if error.value not in (*_ABSENT, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
            raise
    return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


def _processes(handle: Any) -> list[GpuProcess]:
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return [GpuProcess(int(entry.pid), entry.usedGpuMemory) for entry in found]


def _or_none(read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except pynvml.NVMLError as error:
        if error.value not in _ABSENT:
            raise
        return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _explained(error: Any) -> GpuError:
    if error.value in _NO_DRIVER:
        return GpuError("No NVIDIA driver on this host (nvidia-smi would say the same).", code="no_driver")
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return GpuError(
            "The NVIDIA driver was updated under the running kernel module: reboot the host.", code="driver_mismatch"
        )
    return GpuError(f"NVML does not start: {_words(error)}. Look at nvidia-smi and dmesg.", code="nvml")
