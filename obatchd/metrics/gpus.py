"""Reads the cards of the host. Cards and drivers do not tell everything: the rest is left out."""

from __future__ import annotations

from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpus.model import Identity, Reading, SlowReading
from obatchd.gpus.monitor import Monitor
from obatchd.gpus.track import Track
from obatchd.metrics.sheet import NONE, Labels, Sheet
from obatchd.metrics.sources import XidCounts

LEVELS = ("ok", "warn", "quarantine", "unknown")
_LIMITS = {"max": "temp_max_c", "slowdown": "temp_slowdown_c", "shutdown": "temp_shutdown_c"}
_AS_THEY_ARE = {
    "memory_used_bytes": "memory_used_bytes",
    "memory_total_bytes": "memory_total_bytes",
    "temperature_celsius": "temp_c",
    "memory_temperature_celsius": "memory_temp_c",
    "power_watts": "power_w",
    "power_limit_watts": "power_limit_w",
}
_SLOWDOWNS = {
    "hw_thermal": "hw_thermal_s",
    "hw_power_brake": "hw_power_brake_s",
    "sw_thermal": "sw_thermal_s",
    "sw_power_cap": "sw_power_cap_s",
}
_BY_TYPE = {
    "ecc_errors_total": {"corrected": "ecc_corrected", "uncorrected": "ecc_uncorrected"},
    "nvlink_errors_total": {"replay": "nvlink_replays", "recovery": "nvlink_recoveries", "crc": "nvlink_crc"},
    "remapped_rows": {"corrected": "remapped_corrected", "uncorrected": "remapped_uncorrected"},
}
_SLOW = {
    "pcie_replays_total": "pcie_replays",
    "remap_failed": "remap_failed",
    "remap_pending": "remap_pending",
    "pcie_link_width": "pcie_width",
    "pcie_link_generation": "pcie_gen",
}


def read_gpus(sheet: Sheet, policy: GpuPolicy, xids: XidCounts) -> None:
    monitor, probe = policy.monitor, policy.watch.probe
    if probe.state == "ok" or policy.watch.blind:  # else nobody misses a driver here
        sheet.put("obatch_probe_up", float(probe.state == "ok"))
    if monitor.tracks:
        sheet.put("obatch_kernel_log_up", float(bool(policy.watch.kernel_log.source)))
    for uuid, track in monitor.tracks.items():
        index = track.identity.index
        labels = of_card(uuid, index)
        _read_identity(sheet, track.identity, labels)
        _read_health(sheet, monitor, uuid, labels, blind=probe.state != "ok")
        sheet.counts("obatch_gpu_xids_total", xids.counts.get(uuid, {}), "xid", labels)
        if probe.state == "ok":
            _read_track(sheet, track, labels, asleep=uuid in monitor.asleep)


def of_card(uuid: str, index: int | None) -> Labels:
    return NONE.and_("gpu", "" if index is None else str(index)).and_("uuid", uuid)


def _read_identity(sheet: Sheet, card: Identity, labels: Labels) -> None:
    told = labels.and_("name", card.name).and_("serial", card.serial).and_("slot", card.slot or card.pci_bus_id)
    sheet.put("obatch_gpu_info", 1, told.and_("driver", card.driver))
    for limit, name in _LIMITS.items():
        if (limit_c := getattr(card, name)) is not None:
            sheet.put("obatch_gpu_temperature_limit_celsius", limit_c, labels.and_("limit", limit))


def _read_health(sheet: Sheet, monitor: Monitor, uuid: str, labels: Labels, *, blind: bool) -> None:
    record, found = monitor.records[uuid], monitor.assessments.get(uuid)
    level = "quarantine" if record.quarantine else "unknown" if blind or found is None else found.level
    sheet.one_of("obatch_gpu_health", level, LEVELS, "level", labels)
    sheet.put("obatch_gpu_lent", float(bool(record.lent_until_s)), labels)
    for finding in found.findings if found is not None else ():
        if finding.level != "ok":
            sheet.put("obatch_gpu_finding", 1, labels.and_("signal", finding.signal).and_("level", finding.level))


def _read_track(sheet: Sheet, track: Track, labels: Labels, *, asleep: bool) -> None:
    reading = track.latest
    sheet.put("obatch_gpu_asleep", float(asleep), labels)
    if reading is not None:
        sheet.put("obatch_gpu_up", float(reading.trouble != "lost"), labels)
        if not asleep:
            read_reading(sheet, reading, labels)
    if track.slow is not None:
        _read_slow(sheet, track.slow, labels)
    energy_j = reading.energy_j if reading is not None else None
    if energy_j is None and track.slow is not None:
        energy_j = track.slow.energy_j
    sheet.put("obatch_gpu_energy_joules_total", energy_j, labels)


def read_reading(sheet: Sheet, reading: Reading, labels: Labels) -> None:
    """The values of one moment."""
    for metric, name in _AS_THEY_ARE.items():
        sheet.put(f"obatch_gpu_{metric}", getattr(reading, name), labels)
    sheet.put("obatch_gpu_utilization_ratio", _share(reading.utilisation_percent), labels)
    sheet.put("obatch_gpu_fan_ratio", _share(reading.fan_percent), labels)
    if reading.clock_mhz is not None:
        sheet.put("obatch_gpu_clock_hertz", reading.clock_mhz * 1e6, labels)
    sheet.put("obatch_gpu_reading_timestamp_seconds", reading.at_s, labels)


def _read_slow(sheet: Sheet, slow: SlowReading, labels: Labels) -> None:
    for metric, name in _SLOW.items():
        sheet.put(f"obatch_gpu_{metric}", getattr(slow, name), labels)
    for metric, types in _BY_TYPE.items():
        for type_, name in types.items():
            if (value := getattr(slow, name)) is not None:
                sheet.put(f"obatch_gpu_{metric}", value, labels.and_("type", type_))
    for cause, name in _SLOWDOWNS.items():
        if (value := getattr(slow, name)) is not None:
            sheet.put("obatch_gpu_slowdown_seconds_total", value, labels.and_("cause", cause))


def _share(percent: int | None) -> float | None:
    return None if percent is None else percent / 100
