"""A shared library that answers as NVIDIA's does, built from ``nvml_stand_in.c``, and what stand-in GPUs tell it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec

from obatchd.simulator.gpus import SimulatedGpus

COMPILER = shutil.which("cc") or shutil.which("gcc")
# The driver's values by field number, as nvml.h has the numbers, and the driver's units for one of ours.
FIELDS = {
    "memory_temp_c": (82, 1),
    "sw_power_cap_s": (74, 1e9),
    "sw_thermal_s": (269, 1e9),
    "hw_thermal_s": (270, 1e9),
    "hw_power_brake_s": (271, 1e9),
    "pcie_correctable": (173, 1),
    "pcie_non_fatal": (179, 1),
    "pcie_fatal": (180, 1),
    "recovery_action": (230, 1),
}
THOUSANDTHS = {
    "power_w": "power_mw", "power_limit_w": "power_limit_mw", "power_default_w": "power_default_mw",
    "energy_j": "energy_mj",
}  # fmt: skip


def build_library(directory: Path) -> None:
    """Make ``libnvidia-ml.so.1`` there; who has the directory in ``LD_LIBRARY_PATH`` loads it for the driver's."""
    assert COMPILER
    source = Path(__file__).with_name("nvml_stand_in.c")
    command = [COMPILER, "-shared", "-fPIC", "-o", str(directory / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True, timeout=60)


def lines(source: SimulatedGpus, driver: str = "580.1") -> dict[str, str]:
    """What the stand-ins tell now, as the library reads it."""
    found = {"driver": driver, "cuda": "13000", "count": str(len(source.gpus()))}
    for index, structs in enumerate(zip(source.identities(), source.readings(), source.slow_readings(), strict=True)):
        for struct in structs:
            for name, value in msgspec.structs.asdict(struct).items():
                if name in FIELDS and value is not None:
                    number, unit = FIELDS[name]
                    found[f"{index}.field.{number}"] = str(int(value * unit))
                elif name in THOUSANDTHS and value is not None:
                    found[f"{index}.{THOUSANDTHS[name]}"] = str(int(value * 1000))
                elif isinstance(value, bool):
                    found[f"{index}.{name}"] = str(int(value))
                elif value is not None and name not in ("errors", "processes", "at_s"):
                    found[f"{index}.{name}"] = str(value)
    return found
