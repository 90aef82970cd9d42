"""Facts about a model in a store."""

from __future__ import annotations

import msgspec

from obatchd.errors import ModelError
from obatchd.ollama.api import ShownModel, StoredModel
from obatchd.servers.server import Server

LOCAL = "local"  # the store of the managed servers; the others are called like their server


class ModelInfo(msgspec.Struct, frozen=True):
    """Facts about a model in a store. Texts are empty and numbers 0 where Ollama does not tell."""

    name: str
    digest: str
    quantization: str
    parameter_size: str
    context_length: int  # tokens it was trained for
    capabilities: list[str]  # completion, vision, tools, thinking, embedding, insert
    size_bytes: int
    store: str = LOCAL


def describe(name: str, store: str, entry: StoredModel, show: ShownModel | None) -> ModelInfo:
    facts = show.model_info if show else {}
    context = next((value for key, value in facts.items() if key.endswith(".context_length")), 0)
    return ModelInfo(
        name=name,
        digest=entry.digest,
        quantization=entry.details.quantization_level,
        parameter_size=entry.details.parameter_size,
        context_length=int(context or 0),
        capabilities=show.capabilities if show else [],
        size_bytes=entry.size,
        store=store,
    )


def pull_error(model: str, server: Server, words: str) -> ModelError:
    if "file does not exist" in words or "not found" in words:
        return ModelError(
            f"There is no model {model} in the registry ({server.id}: {words}). Check the name.",
            code="model_not_found",
        )
    if "no space left" in words:
        return ModelError(f"No space to pull {model} on {server.id}: {words}.", code="no_space")
    return ModelError(
        f"Pulling {model} through {server.id} failed: {words}. Check the network and the proxy (servers.environment).",
        code="pull_failed",
    )
