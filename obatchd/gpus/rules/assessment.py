"""Judges GPUs: pure functions from the track of a card to its faults.

A rule never knows what a burn-in or the fleet does with its finding. Every limit is a setting of ``[gpu_health]``;
docs/gpu-health.md says where each default comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from obatchd.gpus.finding import Assessment, Finding, summarise
from obatchd.gpus.rules import device, heat, memory
from obatchd.gpus.track import Track
from obatchd.settings.tables.gpu_health import GpuHealthSettings

OwnRule = Callable[[Track, GpuHealthSettings], Iterator[Finding]]
SiblingRule = Callable[[Track, GpuHealthSettings, Sequence[Track]], Iterator[Finding]]

OWN_RULES: tuple[OwnRule, ...] = (
    device.lost,
    device.recovery,
    memory.uncorrected,
    memory.sram,
    memory.corrected,
    memory.remapping,
    memory.retired,
    heat.hardware_slowdown,
    heat.thermal_slowdown,
    heat.core_heat,
    heat.memory_heat,
    heat.margin,
    heat.power,
    device.pcie_link,
    device.pcie_errors,
    device.nvlink,
    device.setup,
)
SIBLING_RULES: tuple[SiblingRule, ...] = (device.xids, device.crashes)
# Defects that stay when they are known: an administrator may decide to live with them.
LASTING = frozenset({"remap_failed", "memory_unrepairable", "remapped_rows", "retired_pages", "sram_uncorrected"})


def assess(track: Track, settings: GpuHealthSettings, siblings: Sequence[Track] = ()) -> Assessment:
    """Judge one card. Trouble that its ``siblings``, other cards of the host, have, too, is no fault of this one."""
    findings = [finding for rule in OWN_RULES for finding in rule(track, settings)]
    findings += [finding for rule in SIBLING_RULES for finding in rule(track, settings, siblings)]
    return summarise(track.identity, [_accepted(track, finding) for finding in findings])


def _accepted(track: Track, finding: Finding) -> Finding:
    if finding.signal in track.accepted and finding.level == "quarantine":
        return msgspec.structs.replace(finding, level="warn", text=f"{finding.text} (accepted by an administrator)")
    return finding
