"""GPUs and their readings as types. ``None`` means "this GPU or driver does not tell", which is never zero."""

from __future__ import annotations

import msgspec


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


class GpuProcess(msgspec.Struct, frozen=True):
    """A process that holds memory on a GPU."""

    pid: int  # in the host's numbering
    memory_bytes: int | None


class Reading(msgspec.Struct, frozen=True):
    """What one GPU told at one time. ``errors`` has one entry per field that could not be read for another reason
    than "not supported": field name to NVML's words."""

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
