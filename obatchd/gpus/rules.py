"""Judges GPUs: pure functions from what was seen of a card to what is wrong with it.

A rule never knows what a burn-in or the fleet does with its finding. Every limit is a setting of ``[gpu_health]``;
docs/gpu-health.md says where each default comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from obatchd.gpus import rules_device, rules_heat, rules_memory
from obatchd.gpus.finding import Assessment, Finding, summarise
from obatchd.gpus.track import Track
from obatchd.settings_gpu_health import GpuHealthSettings

OwnRule = Callable[[Track, GpuHealthSettings], Iterator[Finding]]
SiblingRule = Callable[[Track, GpuHealthSettings, Sequence[Track]], Iterator[Finding]]

OWN_RULES: tuple[OwnRule, ...] = (
    rules_device.lost,
    rules_device.recovery,
    rules_memory.uncorrected,
    rules_memory.sram,
    rules_memory.corrected,
    rules_memory.remapping,
    rules_memory.retired,
    rules_heat.hardware_slowdown,
    rules_heat.thermal_slowdown,
    rules_heat.core_heat,
    rules_heat.memory_heat,
    rules_heat.margin,
    rules_heat.power,
    rules_device.pcie_link,
    rules_device.pcie_errors,
    rules_device.nvlink,
    rules_device.setup,
)
SIBLING_RULES: tuple[SiblingRule, ...] = (rules_device.xids, rules_device.crashes)
# Defects that stay when they are known: an administrator may decide to live with them.
LASTING = frozenset({"remap_failed", "memory_unrepairable", "remapped_rows", "retired_pages", "sram_uncorrected"})


def assess(track: Track, settings: GpuHealthSettings, siblings: Sequence[Track] = ()) -> Assessment:
    """Judge one card.

    Args:
        track: what was seen of it since its mark.
        settings: the limits.
        siblings: the other cards of the host; what they suffer too is no fault of this one.
    """
    findings = [finding for rule in OWN_RULES for finding in rule(track, settings)]
    findings += [finding for rule in SIBLING_RULES for finding in rule(track, settings, siblings)]
    return summarise(track.identity, [_accepted(track, finding) for finding in findings])


def _accepted(track: Track, finding: Finding) -> Finding:
    if finding.signal in track.accepted and finding.level == "quarantine":
        return msgspec.structs.replace(finding, level="warn", text=f"{finding.text} (accepted by an administrator)")
    return finding
