"""Faulty devices of real stress processes; imported there, so with little else."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from obatchd.burnin.stress.cpu import CpuBlock, CpuDevice, Result


class Killed:
    """A driver that kills the process."""

    def written(self, block: CpuBlock) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def multiplied(self, result: Result, precision: str) -> None: ...


class Flips:
    """Memory with a bit that is stuck."""

    def written(self, block: CpuBlock) -> None:
        block.words[3] |= 1 << 5

    def multiplied(self, result: Result, precision: str) -> None: ...


class Hangs:
    """A driver that never returns."""

    def written(self, block: CpuBlock) -> None:
        time.sleep(1000)

    def multiplied(self, result: Result, precision: str) -> None: ...


def device_with(disturbance: type[Any] | None) -> CpuDevice:
    usual = {"total_bytes": 2**21, "block_bytes": 2**19, "precisions": ("FP16",), "step_s": 0.05, "share": 0.2}
    return CpuDevice(**usual) if disturbance is None else CpuDevice(**usual, disturbance=disturbance())
