"""The stand-in as the program of managed servers; implements ``obatchd.servers.program.Program``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import obatchd


class SimulatedOllama:
    """Servers that share the load of their GPUs, and a model store of their own, in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def command(self) -> list[str]:
        return [sys.executable, "-P", "-m", "obatchd.simulator.ollama", "serve"]

    def environment(self) -> Mapping[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name.startswith("OBATCHD_SIMULATOR")},
            "OBATCHD_SIMULATOR_GPU_DIR": str(self._directory),
            "PYTHONPATH": str(Path(obatchd.__file__).parents[1]),
            # It speaks TLS to nobody, and aiohttp reads every certificate of the system when it is imported: a tenth of
            # the processor time of a stand-in's start.
            "SSL_CERT_FILE": os.devnull,
        }

    def models_dir(self) -> Path:
        """Never a real one."""
        return self._directory / "models"
