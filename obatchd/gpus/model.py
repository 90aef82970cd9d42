"""GPUs and their readings as types. ``None`` means "this GPU or driver does not tell", which is never zero."""

from __future__ import annotations

from typing import Literal

import msgspec

# Errors of NVML that are verdicts about the GPU, not about one reading; the worst one is kept.
Trouble = Literal["", "lost", "reset_required", "inforom_corrupted", "irq", "unknown"]


class Gpu(msgspec.Struct, frozen=True):
    """One GPU, or one MIG slice of a GPU.

    ``index`` is NVML's, in PCI bus order; a slice has its parent's index and its own ``slice_index``.
    """

    uuid: str  # "GPU-…" or "MIG-…"
    name: str
    index: int
    pci_bus_id: str
    memory_bytes: int | None
    driver: str
    parent_uuid: str | None = None  # only for a MIG slice
    slice_index: int | None = None  # only for a MIG slice

    @property
    def card(self) -> str:
        """UUID of the card: health belongs to it, not to a slice."""
        return self.parent_uuid or self.uuid


class Identity(msgspec.Struct, frozen=True):
    """What one card is, and its own limits. It is read once per run of the probe."""

    uuid: str
    name: str = ""
    index: int | None = None
    pci_bus_id: str = ""  # as NVML writes it: 00000000:41:00.0
    slot: str = ""  # physical slot, where the firmware names it
    serial: str = ""
    board_part_number: str = ""
    vbios: str = ""
    inforom: str = ""
    driver: str = ""
    cuda: str = ""
    gsp_firmware: str = ""
    memory_bytes: int | None = None
    ecc: bool | None = None
    ecc_pending: bool | None = None  # after the next reset
    mig: bool | None = None
    persistence: bool | None = None
    power_default_w: float | None = None
    temp_max_c: int | None = None  # highest for long operation (GPU_MAX)
    temp_slowdown_c: int | None = None
    temp_shutdown_c: int | None = None
    memory_temp_max_c: int | None = None
    clock_max_mhz: int | None = None  # SM
    pcie_gen_max: int | None = None
    pcie_width_max: int | None = None


class GpuProcess(msgspec.Struct, frozen=True):
    """A process that holds memory on a GPU."""

    pid: int  # in the host's numbering
    memory_bytes: int | None


class Reading(msgspec.Struct, frozen=True):
    """What one GPU told at one time, every second or two. ``errors`` has one entry per field that could not be read
    for another reason than "not supported": field name to NVML's words."""

    uuid: str
    at_s: float  # seconds since the epoch
    utilisation_percent: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temp_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    processes: list[GpuProcess] = []
    errors: dict[str, str] = {}
    memory_utilisation_percent: int | None = None
    memory_temp_c: int | None = None
    margin_c: int | None = None  # to the nearest slowdown; zero and less are no news on some H100
    clock_mhz: int | None = None  # SM
    memory_clock_mhz: int | None = None
    clock_reasons: int | None = None  # the raw bits, see ClockReason
    performance_state: int | None = None
    fan_percent: int | None = None
    trouble: Trouble = ""


class SlowReading(msgspec.Struct, frozen=True):
    """What one card told at one time, every 30 to 60 s: counters, as the driver has them, and lasting flags.

    *Volatile* counters begin at zero when the driver is loaded, *aggregate* ones never; those of throttling, PCIe,
    NVLink and energy are volatile.
    """

    uuid: str
    at_s: float  # seconds since the epoch
    # ECC errors
    ecc_corrected: int | None = None  # volatile
    ecc_uncorrected: int | None = None  # volatile
    ecc_corrected_aggregate: int | None = None
    ecc_uncorrected_aggregate: int | None = None
    sram_uncorrected: int | None = None  # volatile
    sram_uncorrected_aggregate: int | None = None
    sram_threshold_exceeded: bool | None = None
    # Ampere and later: rows replaced by spare ones
    remapped_corrected: int | None = None
    remapped_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    banks_without_spares: int | None = None
    # before Ampere: pages taken out of use
    retired_single_bit: int | None = None
    retired_double_bit: int | None = None
    retired_pending: bool | None = None
    # Blackwell and later
    repair_pending: bool | None = None
    memory_unrepairable: bool | None = None
    # seconds of slowdown, by cause
    hw_thermal_s: float | None = None
    hw_power_brake_s: float | None = None
    sw_thermal_s: float | None = None
    sw_power_cap_s: float | None = None
    # links
    pcie_gen: int | None = None
    pcie_width: int | None = None
    pcie_replays: int | None = None
    pcie_correctable: int | None = None
    pcie_non_fatal: int | None = None
    pcie_fatal: int | None = None
    nvlink_replays: int | None = None  # of all links
    nvlink_recoveries: int | None = None
    nvlink_crc: int | None = None
    # others
    energy_j: float | None = None
    recovery_action: int | None = None  # the driver's own verdict, see RECOVERY_ACTIONS
    fabric_state: int | None = None
    inforom_valid: bool | None = None  # read once per run of the probe
    errors: dict[str, str] = {}
    trouble: Trouble = ""


class XidEvent(msgspec.Struct, frozen=True):
    """One error that the driver reported for a GPU.

    ``uuid`` is empty while the PCI address could not be matched with a known card.
    """

    xid: int
    at_s: float  # seconds since the epoch
    uuid: str = ""
    pci_bus_id: str = ""  # dddd:bb:dd as the kernel log has it
    source: Literal["nvml", "kernel_log"] = "kernel_log"
    line: str = ""  # verbatim, of the kernel log
    pid: int | None = None
    process: str = ""


class ClockReason:
    """Bits of ``Reading.clock_reasons`` (nvml.h, ``nvmlClocksEventReason…``). All others are harmless or unknown."""

    POWER_CAP = 0x4  # runs at its power limit: what a busy GPU does
    HW_SLOWDOWN = 0x8  # umbrella of the two below
    SW_THERMAL = 0x20
    HW_THERMAL = 0x40
    HW_POWER_BRAKE = 0x80
    HARDWARE = HW_SLOWDOWN | HW_THERMAL | HW_POWER_BRAKE


# nvml.h, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION (field 230)
RECOVERY_ACTIONS = {
    1: "reset the GPU",
    2: "reboot the host",
    3: "drain peer-to-peer work",
    4: "drain and reset the GPU",
    5: "recover the IMEX domain",
    6: "reset the bus",
    7: "reboot the system",
}
