"""The model store: one JSON file in ``OLLAMA_MODELS`` that all stand-in servers of a machine share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from obatchd.model_names import folded
from obatchd.simulator.config import ModelSpec

# Host, namespace, name and tag as Ollama accepts them (types/model/name.go of v0.24).
_NAME = re.compile(r"^([\w][\w.:-]*/)?([\w][\w.-]*/)?[\w][\w.-]*(:[\w][\w.-]*)?$", re.ASCII)


def valid_name(name: str) -> bool:
    return bool(_NAME.match(name))


def full_name(name: str) -> str:
    """``x`` and ``x:latest`` are one model."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def details(model: ModelSpec, *, parent: str = "") -> dict[str, Any]:
    """The ``details`` object of tags, ps and show."""
    return {
        "parent_model": parent,
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
    }


class ModelStore:
    """Models by full name. Reads the file again when it changed; without one it has the configured models."""

    def __init__(self, directory: Path, defaults: list[ModelSpec]) -> None:
        self.directory = directory
        self._path = directory / "simulated-models.json"
        self._defaults = _by_name(defaults)
        self._models = self._defaults
        self._version: tuple[int, int] | None = None

    def all(self) -> dict[str, ModelSpec]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._models, self._version = self._defaults, None
            return self._models
        version = (status.st_ino, status.st_mtime_ns)
        if version != self._version:
            self._models = _by_name(msgspec.json.decode(self._path.read_bytes(), type=list[ModelSpec]))
            self._version = version
        return self._models

    def find(self, name: str) -> ModelSpec | None:
        models = self.all()
        if (found := models.get(full_name(name))) is not None:
            return found
        wanted = folded(name)  # which costs more, and is seldom needed
        return next((spec for known, spec in models.items() if folded(known) == wanted), None)

    def put(self, model: ModelSpec) -> None:
        self._change(lambda models: {**models, full_name(model.name): model})

    def remove(self, name: str) -> None:
        self._change(lambda models: {key: model for key, model in models.items() if key != full_name(name)})

    def _change(self, change: Callable[[dict[str, ModelSpec]], dict[str, ModelSpec]]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".simulated-models.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other servers change the same file
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(msgspec.json.encode(list(change(self.all()).values())))
            temporary.replace(self._path)


def _by_name(models: list[ModelSpec]) -> dict[str, ModelSpec]:
    named = {}
    for model in models:
        name = full_name(model.name)
        digest = model.digest or hashlib.sha256(name.encode()).hexdigest()
        named[name] = msgspec.structs.replace(model, name=name, digest=digest)
    return named
