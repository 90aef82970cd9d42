"""Where GPUs and readings come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent


class GpuSource(Protocol):
    """Asked in the probe's own process; every call may block for ever."""

    def gpus(self) -> list[Gpu]:
        """Every GPU that can carry a server, in index order."""
        ...

    def readings(self) -> list[Reading]:
        """One reading per listed GPU."""
        ...

    def identities(self) -> Sequence[Identity]:
        """The identities of the cards; empty where nobody tells them."""
        return ()

    def slow_readings(self) -> Sequence[SlowReading]:
        """One slow reading per card."""
        return ()

    def xids(self) -> Sequence[XidEvent]:
        """Errors reported since the last call; never waits."""
        return ()

    def resting(self) -> bool:
        """Whether the driver is left alone now, so that idle GPUs can sleep: only ``readings`` says when that ends."""
        return False

    def host_trouble(self) -> tuple[str, str]:
        """Slug and words of what is wrong with the driver of the whole host, no GPU's fault; empty: nothing."""
        return "", ""


OpenSource = Callable[[], GpuSource]  # pickled for the probe's process, which calls it


def open_nvml() -> GpuSource:
    """The GPUs of this host. Raises GpuError where there is no driver, or it cannot be used."""
    from obatchd.gpus.nvml.driver import Nvml

    return Nvml()


def source_meant(use: str | list[str | int]) -> str:
    """Which source a daemon with this ``gpus.use`` asks, whether it answers or not: as ``source_of``."""
    return "simulated" if isinstance(use, str) and use.startswith("simulated:") else ""


def source_of(driver: str) -> str:
    """Which source a card comes from, by its driver's version: what follows a dash; empty for NVIDIA's own driver."""
    return driver.partition("-")[2]
