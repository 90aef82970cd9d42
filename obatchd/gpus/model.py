"""GPUs and their readings as types. ``None`` means "this GPU or driver does not tell", which is never zero."""

from __future__ import annotations

from typing import Literal

import msgspec

from obatchd.documents.gpus import GpuProcess, Identity, Reading, SlowReading, Trouble

__all__ = [
    "RECOVERY_ACTIONS", "ClockReason", "Gpu", "GpuProcess", "Identity", "Reading", "SlowReading", "Trouble", "XidEvent",
]  # fmt: skip


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

    def as_card(self) -> Identity:
        """The part of the card's identity that is known before the probe tells it."""
        card = Identity(self.card, self.name, self.index, self.pci_bus_id, driver=self.driver)
        return card if self.parent_uuid else msgspec.structs.replace(card, memory_bytes=self.memory_bytes)


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

    POWER_CAP = 0x4  # runs at its power limit, as a busy GPU does
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
