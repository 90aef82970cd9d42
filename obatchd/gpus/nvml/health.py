"""NVML's values about the health of a card: identity, slow readings, errors as they happen. For the probe only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from ctypes import byref
from functools import partial
from pathlib import Path
from typing import Any

import pynvml

import obatchd.log
from obatchd.gpus.model import Gpu, Identity, SlowReading, XidEvent
from obatchd.gpus.nvml.calls import Asking, field_values, text

log = obatchd.log.get(__name__)

_SLOTS = Path("/sys/bus/pci/slots")
_PAUSE_S = 60.0  # after an error of the event set, which may repeat at once and for ever
_MOST_EVENTS = 100  # taken at a time
_NS = 1e9
_UNCORRECTED, _CORRECTED = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED
_VOLATILE, _AGGREGATE = pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC
_SRAM = pynvml.NVML_MEMORY_LOCATION_SRAM
_FIELDS = {  # of SlowReading, with the unit of the field
    "sw_thermal_s": (pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, 1 / _NS),
    "hw_thermal_s": (pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, 1 / _NS),
    "hw_power_brake_s": (pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, 1 / _NS),
    "sw_power_cap_s": (pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP, 1 / _NS),
    "pcie_replays": (pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER, 1),
    "pcie_correctable": (pynvml.NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS, 1),
    "pcie_non_fatal": (pynvml.NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR, 1),
    "pcie_fatal": (pynvml.NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR, 1),
    "nvlink_replays": (pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, 1),
    "nvlink_recoveries": (pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL, 1),
    "nvlink_crc": (pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, 1),
    "energy_j": (pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 1e-3),
    "recovery_action": (pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 1),
}


def identity(handle: Any, card: Gpu) -> Identity:
    """The identity of a card, and its own limits; unknown fields stay empty."""
    ask = partial(Asking().field, "identity")

    def words(read: Any) -> str:
        return text(ask(read, handle) or "")

    def limit_c(kind: int) -> int | None:
        return ask(pynvml.nvmlDeviceGetTemperatureThreshold, handle, kind) or None  # some cards answer 0 for "none"

    ecc, ecc_pending = map(_flag, ask(pynvml.nvmlDeviceGetEccMode, handle) or (None, None))
    mig, _ = map(_flag, ask(pynvml.nvmlDeviceGetMigMode, handle) or (None, None))
    power_mw = ask(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    cuda = ask(pynvml.nvmlSystemGetCudaDriverVersion)
    return Identity(
        uuid=card.uuid,
        name=words(pynvml.nvmlDeviceGetName),
        index=card.index,
        pci_bus_id=card.pci_bus_id,
        slot=physical_slot(card.pci_bus_id),
        serial=words(pynvml.nvmlDeviceGetSerial),
        board_part_number=words(pynvml.nvmlDeviceGetBoardPartNumber),
        vbios=words(pynvml.nvmlDeviceGetVbiosVersion),
        inforom=words(pynvml.nvmlDeviceGetInforomImageVersion),
        driver=card.driver,
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        gsp_firmware=words(pynvml.nvmlDeviceGetGspFirmwareVersion),
        memory_bytes=memory.total if memory else None,
        ecc=ecc,
        ecc_pending=ecc_pending,
        mig=mig,
        persistence=_flag(ask(pynvml.nvmlDeviceGetPersistenceMode, handle)),
        power_default_w=power_mw / 1000 if power_mw else None,
        temp_max_c=limit_c(pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX),
        temp_slowdown_c=limit_c(pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        temp_shutdown_c=limit_c(pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),
        memory_temp_max_c=limit_c(pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX),
        clock_max_mhz=ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        pcie_gen_max=ask(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        pcie_width_max=ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
    )


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def physical_slot(bus_id: str, slots: Path = _SLOTS) -> str:
    """The slot's name as the firmware gives it, empty where it does not; ``slots`` is sysfs."""
    address = bus_id.lower()[-12:].partition(".")[0]  # 00000000:41:00.0 → 0000:41:00
    try:
        return next((slot.name for slot in slots.iterdir() if (slot / "address").read_text().strip() == address), "")
    except OSError:
        return ""


def slow_reading(handle: Any, uuid: str, inforom_valid: bool | None) -> SlowReading:
    """Counters and lasting flags of one card."""
    ask = Asking()

    def ecc(kind: int, counter: int) -> int | None:
        return ask.field("ecc", pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, counter)

    def sram(counter: int) -> int | None:
        return ask.field("sram", pynvml.nvmlDeviceGetMemoryErrorCounter, handle, _UNCORRECTED, counter, _SRAM)

    def retired(cause: int) -> int | None:
        pages = ask.field("pages", pynvml.nvmlDeviceGetRetiredPages, handle, cause)
        return None if pages is None else len(pages)

    rows = ask.field("rows", pynvml.nvmlDeviceGetRemappedRows, handle) or (None, None, None, None)
    histogram = ask.field("row_histogram", pynvml.nvmlDeviceGetRowRemapperHistogram, handle)
    repair = ask.field("repair", pynvml.nvmlDeviceGetRepairStatus, handle)
    fields: dict[str, Any] = _by_field(handle, ask)
    if "pcie_replays" not in fields:
        fields["pcie_replays"] = ask.field("replays", pynvml.nvmlDeviceGetPcieReplayCounter, handle)
    if "energy_j" not in fields:
        fields["energy_j"] = ask.field("energy", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
    if "sw_thermal_s" not in fields:  # older drivers count all slowing for heat together
        fields["sw_thermal_s"] = ask.field("thermal", _thermal_s, handle)
    return SlowReading(
        uuid=uuid,
        at_s=time.time(),
        ecc_corrected=ecc(_CORRECTED, _VOLATILE),
        ecc_uncorrected=ecc(_UNCORRECTED, _VOLATILE),
        ecc_corrected_aggregate=ecc(_CORRECTED, _AGGREGATE),
        ecc_uncorrected_aggregate=ecc(_UNCORRECTED, _AGGREGATE),
        sram_uncorrected=sram(_VOLATILE),
        sram_uncorrected_aggregate=sram(_AGGREGATE),
        sram_threshold_exceeded=ask.field("sram_threshold", _sram_threshold, handle),
        remapped_corrected=rows[0],
        remapped_uncorrected=rows[1],
        remap_pending=_flag(rows[2]),
        remap_failed=_flag(rows[3]),
        banks_without_spares=histogram.none if histogram else None,
        retired_single_bit=retired(pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS),
        retired_double_bit=retired(pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR),
        retired_pending=_flag(ask.field("pages_pending", pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)),
        repair_pending=any(repair) if repair else None,
        memory_unrepairable=_flag(ask.field("unrepairable", pynvml.nvmlDeviceGetUnrepairableMemoryFlag_v1, handle)),
        pcie_gen=ask.field("pcie_gen", pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        pcie_width=ask.field("pcie_width", pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        inforom_valid=inforom_valid,
        errors=ask.errors,
        trouble=ask.trouble,
        **fields,
    )


def _by_field(handle: Any, ask: Asking) -> dict[str, Any]:
    values = field_values(handle, [number for number, _ in _FIELDS.values()], ask, "fields")
    found = {name: values[number] * unit for name, (number, unit) in _FIELDS.items() if number in values}
    return {name: value if name.endswith(("_s", "_j")) else int(value) for name, value in found.items()}


def _thermal_s(handle: Any) -> float:
    return float(pynvml.nvmlDeviceGetViolationStatus(handle, pynvml.NVML_PERF_POLICY_THERMAL).violationTime) / _NS


def _sram_threshold(handle: Any) -> bool:
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    pynvml.nvmlDeviceGetSramEccErrorStatus(handle, byref(status))
    return bool(status.bThresholdExceeded)


def inforom_valid(handle: Any) -> bool | None:
    """Whether the card's InfoROM is whole; slow, so once per run. None where nobody can tell."""
    try:
        pynvml.nvmlDeviceValidateInforom(handle)
    except pynvml.NVMLError as error:
        return False if error.value == pynvml.NVML_ERROR_CORRUPTED_INFOROM else None
    return True


class Events:
    """XIDs as NVML reports them. Not every XID comes this way, so the kernel log is read too."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        """``handles``: of the cards, by UUID."""
        self._paused_until_s = 0.0
        self._set = None
        try:
            self._set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            log.info("gpu_events_absent", reason=str(error))
            return
        for uuid, handle in handles.items():
            try:
                kinds = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & pynvml.nvmlEventTypeXidCriticalError
                if kinds:
                    pynvml.nvmlDeviceRegisterEvents(handle, kinds, self._set)
            except pynvml.NVMLError as error:
                log.info("gpu_events_absent", gpu=uuid, reason=str(error))

    def take(self) -> list[XidEvent]:
        """Events since the last call; never waits."""
        found: list[XidEvent] = []
        while self._set is not None and time.monotonic() >= self._paused_until_s and len(found) < _MOST_EVENTS:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, 0)
                uuid = text(pynvml.nvmlDeviceGetUUID(event.device))
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    self._paused_until_s = time.monotonic() + _PAUSE_S
                    log.warning("gpu_events_failed", reason=str(error), pause_s=_PAUSE_S)
                break
            if event.eventType & pynvml.nvmlEventTypeXidCriticalError:
                found.append(XidEvent(int(event.eventData), time.time(), uuid, source="nvml"))
        return found
