"""GPUs: identities, readings, health and events.

Cards and readings are documents as the probe reads them. ``None`` means "this GPU or driver does not tell", which is
never zero.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

# Errors of NVML that are verdicts about the GPU, not about one reading; the worst one is kept.
Trouble = Literal["", "lost", "reset_required", "inforom_corrupted", "irq", "unknown"]


class Identity(msgspec.Struct, frozen=True):
    """The identity of one card, and its own limits. Read once per run of the probe."""

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
    """The values of one GPU at one time, every second or two. ``errors`` has one entry per field that could not be read
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
    asleep: bool | UnsetType = UNSET  # it is not asked, so that it can sleep: these are no values of now
    energy_j: float | None = None  # since the driver was loaded, of a whole card from Volta on; null for a slice


class SlowReading(msgspec.Struct, frozen=True):
    """The values of one card at one time, every 30 to 60 s: counters, as the driver has them, and lasting flags.

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


class GpuFinding(msgspec.Struct):
    """One rule that does not call the GPU good; docs/gpu-health.md has the rules."""

    signal: str  # slug of the rule
    level: str  # ok, warn, quarantine: while work goes on
    burn_in: str  # ok, warn, fail: for the verdict of a burn-in
    text: str
    value: str | float | int | None  # seen
    limit: str | float | int | None  # allowed
    since: str | None


class QuarantineEntry(msgspec.Struct):
    """Why a GPU is out of use."""

    since: str | None
    by: str  # rules, administrator
    reason: str
    findings: list[GpuFinding]  # at its beginning


class GpuEntry(msgspec.Struct, kw_only=True):
    """One card and its latest reading."""

    uuid: str
    index: int | None
    name: str
    serial: str
    slot: str  # where the firmware names none, the bus address
    health: str  # ok, warn, quarantine, unknown
    reason: str
    action: str  # what to do, in words
    quarantine: QuarantineEntry | None
    lent_until: str | None
    servers: list[str]  # ids of those that compute on it
    shared_with: str  # processes of others on it, in words, where nothing is loaded beside them
    # models are loaded beside processes of others whose memory the driver does not tell
    shares_unknown: bool | UnsetType = UNSET
    utilisation_percent: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temp_c: int | None = None
    memory_temp_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: int | None = None  # of the multiprocessors
    slowed: bool | None = None  # by its hardware, or by the driver for heat
    asleep: bool | UnsetType = UNSET  # nobody uses it, and it is not asked, so that it can sleep
    host: str | UnsetType = UNSET  # the joined host that has it; absent: this machine


class GpuEvent(msgspec.Struct):
    """Something that happened to a card, kept by its serial number and slot."""

    at_s: float  # seconds since the epoch
    uuid: str
    serial: str
    slot: str
    kind: str  # finding, cleared, xid, quarantine, release, lend, return, share, crash
    level: str
    signal: str
    text: str


class GpuEventEntry(GpuEvent):
    """An event, and its time as text."""

    at: str | None
    host: str | UnsetType = UNSET  # the joined host that has the card; absent: this machine


class GpuEvents(msgspec.Struct):
    """``GET /v1/gpu-events``: oldest first."""

    events: list[GpuEventEntry]


class GpuDetails(GpuEntry, kw_only=True):
    """``GET /v1/gpus/GPU``."""

    identity: Identity
    reading: Reading | None
    slow_reading: SlowReading | None
    watched_since: str | None  # errors count from then on
    increases: dict[str, float]  # of counters since then
    findings: list[GpuFinding]  # now, the worst first
    accepted: list[str]  # signals of lasting defects that an administrator knows of; they only warn
    events: list[GpuEventEntry]  # the latest, oldest first


class HostTrouble(msgspec.Struct):
    """Trouble with the driver of the whole host, no GPU's fault."""

    code: str
    message: str


class KernelLogState(msgspec.Struct):
    """Whether XIDs are read from the kernel's log."""

    source: str | None  # where it is read
    problem: str  # why it cannot be read


class HostProbe(msgspec.Struct):
    """What a joined host tells of its GPUs as a whole."""

    name: str
    here: bool  # else what follows is what it told last
    reason: str  # why it is away; empty: it is here
    state: str  # of its probe, as of Gpus
    message: str
    host: HostTrouble | None
    kernel_log: KernelLogState


class Gpus(msgspec.Struct):
    """``GET /v1/gpus``: all cards, by index; those of joined hosts behind, by host."""

    state: str  # of the probe: ok, absent (no driver), unknown (it does not answer)
    message: str
    host: HostTrouble | None
    kernel_log: KernelLogState
    gpus: list[GpuEntry]
    hosts: list[HostProbe] | UnsetType = UNSET  # joined ones that have told of their GPUs; absent without any


class Released(msgspec.Struct):
    """``POST /v1/gpus/GPU/release``."""

    uuid: str
    forgotten: bool  # the card is not there any more
    accepted: list[str]  # signals of lasting defects that only warn from now on
    index: int | None = None
    host: str | UnsetType = UNSET  # the joined host that has the card; absent: this machine
