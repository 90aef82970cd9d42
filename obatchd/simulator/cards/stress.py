"""The device of a stress process on a stand-in GPU, to be opened in that process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from obatchd.burnin.stress.device import Device
from obatchd.errors import DeviceError


def open_device(directory: Path, index: int, peers: Sequence[str] = ()) -> Device:
    """Stand-in GPU ``index``, whose timeline and load are in ``directory``; raises DeviceError without numpy.

    ``peers``: UUIDs of the stand-ins that it can reach without the host.
    """
    try:
        from obatchd.simulator.cards.device import SimulatedDevice
    except ImportError as error:
        words = f"Stand-in GPUs need numpy for this load ({error}): pip install numpy"
        raise DeviceError(words, code="no_library") from None
    return SimulatedDevice(directory, index, peers)
