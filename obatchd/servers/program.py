"""The program that is started as a managed server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from obatchd.errors import ServerError


class Program(Protocol):
    """Serves the API of Ollama; :class:`Ollama`, where the composition root does not choose something else."""

    def command(self) -> list[str]:
        """The command line of a server; raises ServerError (``no_ollama``) where the program is not there."""

    def environment(self) -> Mapping[str, str]:
        """Variables of its own, beside those that every server gets."""

    def models_dir(self) -> Path:
        """The model store where the settings name none."""


class Ollama:
    """Ollama as it is installed here. ``name`` is the name or path of the binary."""

    def __init__(self, name: str) -> None:
        self._name = name

    def command(self) -> list[str]:
        path = shutil.which(os.path.expanduser(self._name))
        if path is None:
            raise ServerError(
                f"There is no {self._name!r} to start servers with. Install Ollama (https://ollama.com/download), or "
                "set servers.ollama to the path of the binary; "
                'with gpus = "none" only the [ollama_instances] are used.',
                code="no_ollama",
            )
        return [os.path.abspath(path), "serve"]

    def environment(self) -> Mapping[str, str]:
        return {}

    def models_dir(self) -> Path:
        return Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models")
