"""GPUs that sleep while nobody uses them, as a laptop's do: runtime power management, D3.

A call of NVML wakes such a GPU, and a process that has NVML open keeps an idle one awake: D-Brox's system monitor,
issue 38, saw it fall asleep 6 s after the library was closed. Reading these files does neither (nvtop #267). NVIDIA's
README, "PCI-Express Runtime D3 (RTD3) Power Management", has the files and what has to be on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import attrs

from obatchd.gpus.model import Reading

_PCI = Path("/sys/bus/pci/devices")
_DRIVER = Path("/proc/driver/nvidia/gpus")
_LEFT_ALONE_S = 60.0  # after a look at idle GPUs, so that they can fall asleep


@attrs.define(eq=False)
class Sleep:
    """Says when the driver is left alone. ``cards``: PCI addresses as NVML writes them, by UUID."""

    _cards: Mapping[str, str]
    _used: Set[str] = attrs.field(factory=frozenset, init=False)  # UUIDs, at the latest look
    _looked_s: float = attrs.field(default=0.0, init=False)  # monotonic time of the latest reading

    def asleep(self) -> set[str]:
        """UUIDs of the cards that sleep now, or are about to."""
        return {uuid for uuid, bus_id in self._cards.items() if _status(bus_id).startswith("suspend")}

    def read(self, asleep: Set[str]) -> None:
        """All cards but those ``asleep`` are read now."""
        self._used, self._looked_s = self._cards.keys() - asleep, time.monotonic()

    def leaves_alone(self, readings: Sequence[Reading]) -> bool:
        """Whether nobody uses any of the GPUs, by these readings of all, and each can fall asleep if it is let."""
        idle = all(r.asleep or not (r.processes or r.utilisation_percent or r.errors) for r in readings)
        return idle and bool(readings) and all(map(_can_sleep, self._cards.values()))

    def is_over(self) -> bool:
        """Whether a card that is left alone has to be read again: somebody uses it now, or it did not fall asleep."""
        awake = self._cards.keys() - self.asleep()
        before, self._used = self._used, {uuid for uuid in awake if _is_used(self._cards[uuid])}
        return bool(self._used - before) or (bool(awake) and time.monotonic() - self._looked_s >= _LEFT_ALONE_S)


def _status(bus_id: str) -> str:
    return _text(_PCI / _address(bus_id) / "power/runtime_status")


def _is_used(bus_id: str) -> bool:
    """Whether a process holds the card awake, where the kernel counts them; else it may be so."""
    return _text(_PCI / _address(bus_id) / "power/runtime_usage") != "0"


def _can_sleep(bus_id: str) -> bool:
    """Whether power management is on, and the driver knows nothing against it; in a container it may tell nothing."""
    control, driver = _text(_PCI / _address(bus_id) / "power/control"), _text(_DRIVER / _address(bus_id) / "power")
    return control == "auto" and (not driver or "Enabled" in driver.partition("\n")[0])


def _address(bus_id: str) -> str:
    return bus_id.lower()[-12:]  # 00000000:01:00.0 → 0000:01:00.0


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
