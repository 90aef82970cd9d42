"""The judgement about a GPU as types, and the next action in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from obatchd.gpus.model import Identity

Level = Literal["ok", "warn", "quarantine"]
Consequence = Literal["ok", "warn", "fail"]  # for the verdict of a burn-in
Value = str | float | int | None
_LEVELS: tuple[Level, ...] = ("ok", "warn", "quarantine")
_CONSEQUENCES: tuple[Consequence, ...] = ("ok", "warn", "fail")

Remedy = Literal[
    "watch", "application", "settings", "cooling", "power", "seating", "reset", "reboot", "diagnose", "rma"
]
_EVIDENCE = "Collect evidence first, while the driver is still loaded: `sudo nvidia-bug-report.sh`."
# In the order in which they are done; {uuid}, {slot} and {serial} are filled in.
_STEPS: dict[Remedy, str] = {
    "watch": "Go on and watch whether it grows.",
    "application": "Look at the server's log and the model: this is usually software; a hardware fault would stay with "
    "this GPU whatever model it runs.",
    "settings": "Mend the setting that is named.",
    "cooling": "Check air flow, fans, dust and the temperature of the room.",
    "power": "Check the power cables and connectors of the card and the power supply; on a consumer card also try "
    "lower clocks (`sudo nvidia-smi -i {uuid} -lgc 0,1800`).",
    "seating": "Seat the card{slot} again, or swap it with another: see whether the error follows the card or stays "
    "with the slot.",
    "reset": "Stop everything that uses the GPU and reset it: `sudo nvidia-smi --gpu-reset -i {uuid}`.",
    "reboot": "Reboot the host, with the power taken away if the GPU does not come back.",
    "diagnose": "Run the vendor's field diagnostic: `dcgmi diag -r 3 -j`, or the one the vendor asks for.",
    "rma": "If it comes again after that, have the card replaced (RMA); its serial number is {serial}.",
}
_NEEDS_EVIDENCE = frozenset({"power", "seating", "reset", "reboot", "diagnose", "rma"})


class Finding(msgspec.Struct, frozen=True):
    """One rule that does not call the GPU good."""

    signal: str  # slug of the rule, e.g. ecc_uncorrected
    level: Level  # while work goes on
    burn_in: Consequence
    text: str
    value: Value = None  # seen
    limit: Value = None  # allowed
    since_s: float = 0.0  # epoch seconds
    remedies: tuple[Remedy, ...] = ()
    urgent: bool = False  # answers in flight cannot be trusted, cannot come, or hurt the hardware


class Signal(NamedTuple):
    """The usual consequences of a rule's finding."""

    level: Level
    burn_in: Consequence
    remedies: tuple[Remedy, ...]
    urgent: bool = False


_REPLACE: tuple[Remedy, ...] = ("reset", "diagnose", "rma")
SIGNALS = {  # the rules of docs/gpu-health.md
    "lost": Signal("quarantine", "fail", ("power", "seating", "reboot", "diagnose", "rma"), urgent=True),
    "reset_required": Signal("quarantine", "fail", ("reset", "diagnose"), urgent=True),
    "recovery_action": Signal("quarantine", "fail", ("reboot",), urgent=True),
    "irq": Signal("warn", "warn", ("reboot",)),
    "inforom": Signal("warn", "warn", ("diagnose", "rma")),
    "xid of class fatal": Signal("quarantine", "fail", _REPLACE, urgent=True),
    "xid of class reset": Signal("quarantine", "fail", ("reset", "reboot", "diagnose"), urgent=True),
    "xid of class memory": Signal("warn", "fail", _REPLACE),
    "xid of class application": Signal("warn", "warn", ("application",)),
    "xid of class warn": Signal("warn", "warn", ("watch", "diagnose")),
    "xid_repeats": Signal("quarantine", "fail", _REPLACE),
    "server_crashes": Signal("warn", "warn", ("application", "diagnose")),
    "ecc_uncorrected": Signal("quarantine", "fail", _REPLACE, urgent=True),
    "ecc_uncorrected_before": Signal("warn", "ok", ("reset", "diagnose")),
    "sram_uncorrected": Signal("warn", "warn", ("diagnose", "rma")),
    "ecc_corrected": Signal("warn", "warn", ("watch", "diagnose")),
    "ecc_corrected_rising": Signal("warn", "warn", ("watch", "diagnose")),
    "ecc_corrected_rate": Signal("quarantine", "fail", _REPLACE),
    "ecc_corrected_total": Signal("ok", "fail", ("diagnose", "rma")),
    **dict.fromkeys(("remap_failed", "memory_unrepairable"), Signal("quarantine", "fail", _REPLACE)),
    **dict.fromkeys(("remap_pending", "retired_pending", "repair_pending"), Signal("warn", "fail", ("reset",))),
    **dict.fromkeys(("remapped_rows", "retired_pages"), Signal("warn", "fail", ("diagnose", "rma"))),
    "banks_without_spares": Signal("warn", "warn", ("watch", "diagnose")),
    "hw_slowdown": Signal("warn", "warn", ("cooling",)),
    "hw_slowdown_time": Signal("ok", "fail", ("cooling", "power", "diagnose")),
    "sw_thermal": Signal("warn", "warn", ("cooling",)),
    "temp": Signal("warn", "fail", ("cooling",)),
    "near_shutdown": Signal("quarantine", "fail", ("cooling", "diagnose"), urgent=True),
    "memory_temp": Signal("warn", "fail", ("cooling",)),
    "temp_margin": Signal("warn", "warn", ("cooling",)),
    "pcie_width": Signal("warn", "fail", ("seating",)),
    "pcie_gen": Signal("warn", "warn", ("seating",)),
    "pcie_replays": Signal("warn", "warn", ("seating", "diagnose")),
    "pcie_fatal": Signal("warn", "fail", ("seating", "diagnose")),
    "pcie_non_fatal": Signal("warn", "warn", ("seating", "diagnose")),
    "nvlink": Signal("warn", "warn", ("seating", "diagnose")),
    "power_unreadable": Signal("warn", "warn", ("reset", "diagnose")),
    **dict.fromkeys(("power_limit", "persistence", "ecc_off", "ecc_pending"), Signal("warn", "warn", ("settings",))),
}


def finding(signal: str, text: str, value: Value, limit: Value, since_s: float, **this_time: Any) -> Finding:
    """A finding with the consequences of its signal, but for those that are others ``this_time``."""
    level, burn_in, remedies, urgent = SIGNALS[signal]
    usual = Finding(signal, level, burn_in, text, value, limit, since_s, remedies, urgent)
    return msgspec.structs.replace(usual, **this_time)


class Assessment(msgspec.Struct, frozen=True):
    """All findings about one card, worst first."""

    uuid: str
    level: Level
    burn_in: Consequence
    findings: tuple[Finding, ...]
    action: str  # the next action in words; empty when there is nothing to do

    @property
    def urgent(self) -> bool:
        """Whether answers in flight are not waited for."""
        return any(finding.urgent for finding in self.findings)

    @property
    def reason(self) -> str:
        """The worst finding in words."""
        return self.findings[0].text if self.findings else ""


def summarise(identity: Identity, findings: Iterable[Finding]) -> Assessment:
    """Sort findings and say what to do next."""
    found = sorted(findings, key=lambda f: (-_LEVELS.index(f.level), -_CONSEQUENCES.index(f.burn_in), f.since_s))
    level: Level = found[0].level if found else "ok"
    burn_in: Consequence = max((f.burn_in for f in found), key=_CONSEQUENCES.index, default="ok")
    serious = [f for f in found if f.level == "quarantine" or f.burn_in == "fail"] or found
    remedies = {remedy for finding in serious for remedy in finding.remedies}
    return Assessment(identity.uuid, level, burn_in, tuple(found), next_action(identity, remedies))


def next_action(identity: Identity, remedies: Iterable[Remedy]) -> str:
    """What to do, in the order in which it is done; evidence before anything that would destroy it."""
    wanted = set(remedies)
    steps = [text for remedy, text in _STEPS.items() if remedy in wanted]
    if wanted & _NEEDS_EVIDENCE:
        steps.insert(0, _EVIDENCE)
    return " ".join(steps).format(
        uuid=identity.uuid,
        slot=f" in slot {identity.slot}" if identity.slot else f" at {identity.pci_bus_id}",
        serial=identity.serial or "on its label",
    )
