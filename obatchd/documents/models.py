"""Models in the stores of the servers, and downloads."""

from __future__ import annotations

import msgspec


class ModelEntry(msgspec.Struct, frozen=True):
    """A model in a store. Texts are empty and numbers 0 where Ollama does not tell."""

    name: str
    digest: str
    quantization: str
    parameter_size: str
    context_length: int  # tokens it was trained for; not told in a list
    capabilities: list[str]  # completion, vision, tools, thinking, embedding, insert; not told in a list
    size_bytes: int
    store: str  # "local" is that of the managed servers here; the others are called like their server or host
    model: str  # the name once more


class Models(msgspec.Struct):
    """``GET /v1/models``."""

    models: list[ModelEntry]


class PullProgress(msgspec.Struct):
    """A download in progress; each line of ``POST /v1/models/pull``, whose last one may be an error."""

    model: str
    server: str
    status: str = "starting"
    completed_bytes: int = 0
    total_bytes: int = 0  # of the layers heard of so far
    done: bool = False


class Pull(msgspec.Struct):
    """A download as the status shows it."""

    model: str  # of a remote server or a joined host, with its name behind it
    status: str
    completed_bytes: int
    total_bytes: int
