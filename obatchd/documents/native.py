"""The objects of Ollama's own API that obatchd shows to programs.

Names and types of the fields are Ollama's (api/types.go), so durations, which are nanoseconds, have no unit in their
names, and sizes are bytes. Times are ISO 8601 in UTC. A field that Ollama leaves out is ``UNSET``.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class Version(msgspec.Struct):
    """``GET /api/version``."""

    version: str


class Details(msgspec.Struct, kw_only=True):
    """What sort of model it is."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str
    context_length: int | UnsetType = UNSET  # tokens that it was trained for
    embedding_length: int | UnsetType = UNSET


class StoredModel(msgspec.Struct, kw_only=True):
    """A model that servers have."""

    name: str
    model: str  # the name once more
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str] | UnsetType = UNSET


class StoredModels(msgspec.Struct):
    """``GET /api/tags``: the latest change first."""

    models: list[StoredModel]


class RunningModel(msgspec.Struct, kw_only=True):
    """A model that servers have loaded with one context length; sizes are those of all copies together."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class RunningModels(msgspec.Struct):
    """``GET /api/ps``."""

    models: list[RunningModel]


class ErrorText(msgspec.Struct):
    """The body of every refusal, and the last line of a stream that breaks off."""

    error: str


class Said(msgspec.Struct):
    """A message of a model, or a piece of one."""

    role: str = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[msgspec.Raw] | UnsetType = UNSET


class Figures(msgspec.Struct, kw_only=True):
    """What an answer took; Ollama leaves out what is 0."""

    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class ChatAnswer(Figures, kw_only=True):
    """The answer to ``POST /api/chat``, or a piece of it."""

    model: str
    created_at: str
    message: Said
    done: bool
    done_reason: str | UnsetType = UNSET


class GenerateAnswer(Figures, kw_only=True):
    """The answer to ``POST /api/generate``, or a piece of it."""

    model: str
    created_at: str
    response: str
    thinking: str | UnsetType = UNSET
    done: bool
    done_reason: str | UnsetType = UNSET


class Vectors(Figures, kw_only=True):
    """``POST /api/embed``: one vector for each text."""

    model: str
    embeddings: msgspec.Raw


class Vector(msgspec.Struct):
    """``POST /api/embeddings``, which newer programs do not call any more."""

    embedding: msgspec.Raw
