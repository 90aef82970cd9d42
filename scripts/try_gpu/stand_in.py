"""Without a GPU: a C library that answers as NVIDIA's does, told by a stand-in GPU all the time, and ``nvidia-smi``."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
from nvml_support import COMPILER, build_library, lines
from readings import IDENTITY, MIB, READING, REASONS, SLOW, SUMS, action, flag, mebibytes, microseconds

from obatchd.simulator.gpus import DRIVER, SimulatedGpus

_LIMITS = {"temp_max_c", "temp_slowdown_c", "temp_shutdown_c"}  # a Hopper tells margins instead
CAN_BE_MADE = COMPILER is not None


class StandInLibrary:
    """The library, and a thread that tells it the readings of one stand-in GPU.

    Args:
        directory: for the library.
        gpus: of the stand-in GPU and its servers: ``work/simulator`` of a spool.
    """

    def __init__(self, directory: Path, gpus: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        build_library(directory)
        self._told = directory / "told"
        self._gpus = gpus
        self._source = SimulatedGpus(gpus, 1)
        self._over = threading.Event()
        self.environment = {"LD_LIBRARY_PATH": str(directory), "NVML_STAND_IN": str(self._told)}

    def __enter__(self) -> StandInLibrary:
        self._tell()
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(0.3):
            with contextlib.suppress(OSError, ValueError):  # a file that is just being written
                self._tell()

    def _tell(self) -> None:
        found = lines(self._source, DRIVER)
        processes = self._source.readings()[0].processes
        if processes:  # the library knows one at most
            found |= {"0.process": str(processes[0].pid), "0.process_bytes": str(processes[0].memory_bytes)}
        temporary = self._told.with_suffix(".tmp")
        temporary.write_text("".join(f"{key} {value}\n" for key, value in found.items() if value))
        os.replace(temporary, self._told)

    def nvidia_smi(self) -> str:
        """What ``nvidia-smi -q -x`` would say, in the words of :mod:`readings`."""
        values: dict[str, Any] = {}
        for struct in (self._source.identities()[0], self._source.readings()[0], self._source.slow_readings()[0]):
            values |= msgspec.structs.asdict(struct)
        log = ElementTree.Element("nvidia_smi_log")
        gpu = ElementTree.SubElement(log, "gpu")
        for row in (*IDENTITY, *READING, *SLOW):
            value = values.get(row.name)
            if row.paths and value not in (None, "") and row.name not in _LIMITS and row.parse is not action:
                _set(gpu, row.paths[0], _worded(value, row.parse))
        for name, elements in SUMS.items():
            for kind, suffix in (("volatile", ""), ("aggregate", "_aggregate")):
                if values.get(name + suffix) is not None and name != "sram_uncorrected":
                    _set(gpu, f"ecc_errors/{kind}/{elements[-1]}", str(values[name + suffix]))
        for name, bit in REASONS.items():
            active = "Active" if values["clock_reasons"] & bit else "Not Active"
            _set(gpu, f"clocks_event_reasons/clocks_event_reason_{name}", active)
        _set(gpu, "gpu_recovery_action", "None")
        return ElementTree.tostring(log, encoding="unicode")


def _worded(value: Any, parse: Any) -> str:
    if parse is mebibytes:
        return f"{value // MIB} MiB"
    if parse is microseconds:
        return f"{value * 1e6:.0f} us"
    if parse is flag:
        return "Enabled" if value else "Disabled"
    return str(value)


def _set(gpu: ElementTree.Element, path: str, text: str) -> None:
    place = gpu
    for name in path.split("/"):
        found = place.find(name)
        place = found if found is not None else ElementTree.SubElement(place, name)
    place.text = text
