"""Every value that the probe reads, beside the same value of ``nvidia-smi -q -x``.

Names of elements: nvsmi_device_v12.dtd and outputs of drivers 550 to 580; a value has had several, the newest one comes
first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree

MIB = 2**20
REASONS = {  # bits of nvml.h
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clocks_setting": 0x100,
}
_ACTIONS = {"none": 0, "reset": 1, "reboot": 2, "drain p2p": 3, "drain and reset": 4}
_NOTHING = {"", "n/a", "none", "unknown error", "requested functionality has been deprecated", "[not supported]"}
Parse = Callable[[str], Any]


def number(text: str) -> float:
    """The number in front of a unit."""
    found = re.match(r"-?\d+(\.\d+)?", text)
    if not found:
        raise ValueError(text)
    return float(found[0])


def mebibytes(text: str) -> float:
    return number(text) * MIB


def microseconds(text: str) -> float:
    return number(text) / 1e6


def flag(text: str) -> bool:
    return text.lower() in ("yes", "enabled", "active")


def action(text: str) -> float:
    return _ACTIONS.get(text.lower(), -1)


class Row(NamedTuple):
    """A value of ours, where nvidia-smi has it, and how far apart they may be: they are not read at one moment."""

    name: str
    paths: tuple[str, ...]
    parse: Parse = str
    apart: float = 0.0
    apart_share: float = 0.0  # of the greater one


_POWER, _TEMP, _ECC, _PAGES, _ROWS = (
    "gpu_power_readings/",
    "temperature/",
    "ecc_errors/",
    "retired_pages/",
    "remapped_rows/",
)
_LINK, _EVENTS = "pci/pci_gpu_link_info/", "clocks_event_reasons_counters/clocks_event_reasons_counters_"
IDENTITY = (
    Row("uuid", ("uuid",)),
    Row("name", ("product_name",)),
    Row("pci_bus_id", ("pci/pci_bus_id",)),
    Row("serial", ("serial",)),
    Row("board_part_number", ("board_part_number",)),
    Row("vbios", ("vbios_version",)),
    Row("inforom", ("inforom_version/img_version",)),
    Row("gsp_firmware", ("gsp_firmware_version",)),
    Row("memory_bytes", ("fb_memory_usage/total",), mebibytes, MIB),
    Row("ecc", ("ecc_mode/current_ecc",), flag),
    Row("ecc_pending", ("ecc_mode/pending_ecc",), flag),
    Row("mig", ("mig_mode/current_mig",), flag),
    Row("persistence", ("persistence_mode",), flag),
    Row("power_default_w", (_POWER + "default_power_limit",), number, 0.01),
    Row("temp_max_c", (_TEMP + "gpu_temp_max_gpu_threshold",), number),
    Row("temp_slowdown_c", (_TEMP + "gpu_temp_slow_threshold",), number),
    Row("temp_shutdown_c", (_TEMP + "gpu_temp_max_threshold",), number),
    Row("memory_temp_max_c", (_TEMP + "gpu_temp_max_mem_threshold",), number),
    Row("clock_max_mhz", ("max_clocks/sm_clock",), number),
    Row("pcie_gen_max", (_LINK + "pcie_gen/max_link_gen",), number),
    Row("pcie_width_max", (_LINK + "link_widths/max_link_width",), number),
)
READING = (
    Row("utilisation_percent", ("utilization/gpu_util",), number, 15),
    Row("memory_utilisation_percent", ("utilization/memory_util",), number, 15),
    Row("memory_used_bytes", ("fb_memory_usage/used",), mebibytes, 64 * MIB),
    Row("memory_total_bytes", ("fb_memory_usage/total",), mebibytes, MIB),
    Row("temp_c", (_TEMP + "gpu_temp",), number, 3),
    Row("memory_temp_c", (_TEMP + "memory_temp",), number, 3),
    Row("margin_c", (_TEMP + "gpu_temp_tlimit",), number, 3),
    Row(
        "power_w",
        (_POWER + "average_power_draw", _POWER + "power_draw", _POWER + "instant_power_draw"),
        number,
        10,
        0.1,
    ),
    Row("power_limit_w", (_POWER + "current_power_limit",), number, 0.01),
    Row("clock_mhz", ("clocks/sm_clock",), number, 60, 0.5),
    Row("memory_clock_mhz", ("clocks/mem_clock",), number, 10, 0.5),
    Row("performance_state", ("performance_state",), lambda text: number(text.removeprefix("P")), 2),
    Row("fan_percent", ("fan_speed",), number, 5),
)
SLOW = (
    Row("sram_uncorrected_aggregate", (), number),  # a sum, see below
    Row("sram_threshold_exceeded", (_ECC + "aggregate/sram_threshold_exceeded",), flag),
    Row("remapped_corrected", (_ROWS + "remapped_row_corr",), number),
    Row("remapped_uncorrected", (_ROWS + "remapped_row_unc",), number),
    Row("remap_pending", (_ROWS + "remapped_row_pending",), flag),
    Row("remap_failed", (_ROWS + "remapped_row_failure",), flag),
    Row("banks_without_spares", (_ROWS + "row_remapper_histogram/row_remapper_histogram_none",), number),
    Row("retired_single_bit", (_PAGES + "multiple_single_bit_retirement/retired_count",), number),
    Row("retired_double_bit", (_PAGES + "double_bit_retirement/retired_count",), number),
    Row("retired_pending", (_PAGES + "pending_retirement", _PAGES + "pending_blacklist"), flag),
    Row("sw_power_cap_s", (_EVENTS + "sw_power_cap",), microseconds, 2, 0.01),
    Row("sw_thermal_s", (_EVENTS + "sw_therm_slowdown",), microseconds, 2, 0.01),
    Row("hw_thermal_s", (_EVENTS + "hw_therm_slowdown",), microseconds, 2, 0.01),
    Row("hw_power_brake_s", (_EVENTS + "hw_power_brake",), microseconds, 2, 0.01),
    Row("pcie_gen", (_LINK + "pcie_gen/current_link_gen",), number, 4),
    Row("pcie_width", (_LINK + "link_widths/current_link_width",), number),
    Row("pcie_replays", ("pci/replay_counter",), number),
    Row("recovery_action", ("gpu_recovery_action",), action),
)
SUMS = {  # of elements, in ``ecc_errors/volatile`` and ``…/aggregate``; a card has those of its generation
    "ecc_corrected": ("sram_correctable", "dram_correctable"),
    "ecc_uncorrected": (
        "sram_uncorrectable", "sram_uncorrectable_parity", "sram_uncorrectable_secded", "dram_uncorrectable",
    ),
    "sram_uncorrected": ("sram_uncorrectable", "sram_uncorrectable_parity", "sram_uncorrectable_secded"),
}  # fmt: skip


class Compared(NamedTuple):
    """One value: ours, theirs (None: not told), and whether they agree; None where only one of them tells it."""

    name: str
    ours: Any
    theirs: Any
    agrees: bool | None


def cards(xml: str) -> dict[str, ElementTree.Element]:
    """The cards of an output, by UUID."""
    root = ElementTree.fromstring(xml)
    return {(gpu.findtext("uuid") or "").strip(): gpu for gpu in root.iter("gpu")}


def told(gpu: ElementTree.Element, row: Row) -> Any:
    """What nvidia-smi says; None where it says nothing."""
    for path in row.paths:
        text = (gpu.findtext(path) or "").strip()
        if row.name == "recovery_action" and text.lower() == "none":
            return 0.0
        if text.lower() not in _NOTHING:
            try:
                return row.parse(text)
            except ValueError:
                return text
    return None


def reasons(gpu: ElementTree.Element) -> int | None:
    """The clock reasons as bits, of the newer or the older element."""
    for kind in ("clocks_event_reason", "clocks_throttle_reason"):
        if (found := gpu.find(f"{kind}s")) is not None:
            texts = {name: (found.findtext(f"{kind}_{name}") or "").strip() for name in REASONS}
            return sum(REASONS[name] for name, text in texts.items() if flag(text))
    return None


def _sum(gpu: ElementTree.Element, kind: str, names: tuple[str, ...]) -> float | None:
    texts = [(gpu.findtext(f"{_ECC}{kind}/{name}") or "").strip() for name in names]
    numbers = [number(text) for text in texts if text.lower() not in _NOTHING]
    return sum(numbers) if numbers else None


def compare(ours: Mapping[str, Any], gpu: ElementTree.Element) -> list[Compared]:
    """All values of one card; ``ours`` by the names of Identity, Reading and SlowReading."""
    rows = [(row, told(gpu, row)) for row in (*IDENTITY, *READING, *SLOW) if row.paths]
    for name, names in SUMS.items():
        rows.append((Row(name, ()), _sum(gpu, "volatile", names)))
        rows.append((Row(f"{name}_aggregate", ()), _sum(gpu, "aggregate", names)))
    rows.append((Row("clock_reasons", ()), reasons(gpu)))
    return [
        Compared(row.name, ours.get(row.name), theirs, _agree(ours.get(row.name), theirs, row)) for row, theirs in rows
    ]


def _agree(ours: Any, theirs: Any, row: Row) -> bool | None:
    if ours in (None, "") and theirs is None:
        return True
    if ours in (None, "") or theirs is None:
        return None
    if row.name == "clock_reasons":  # idle and the power cap come and go
        return (int(ours) ^ int(theirs)) & ~0x5 == 0
    if isinstance(ours, (bool, str)) or isinstance(theirs, str):
        return ours == theirs
    return abs(ours - theirs) <= max(row.apart, row.apart_share * max(abs(ours), abs(theirs)))
