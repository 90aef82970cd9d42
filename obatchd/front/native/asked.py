"""What a call of Ollama's own API asks for, as a request that obatchd knows: a line of a batch file.

Fields: ollama api/types.go. Those that are not named here have no effect, as there.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from obatchd.errors import ApiError
from obatchd.front.answers import BODY_LIMIT_BYTES, object_sent

CHAT, GENERATE, EMBED, EMBEDDINGS = "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"
_EVERY = ("model", "options")
# ``logprobs`` and the next ones cannot be done, and their reader says why.
_ANSWERED = (*_EVERY, "format", "think", "logprobs", "top_logprobs")
_FIELDS = {
    CHAT: (*_ANSWERED, "messages", "tools"),
    GENERATE: (*_ANSWERED, "prompt", "images", "system", "raw", "template", "suffix", "context"),
    EMBED: (*_EVERY, "input", "dimensions"),
}
_ID = "-"  # a line of a batch file has one
_encode = msgspec.json.Encoder().encode


async def asked_of(request: web.Request, most_bytes: int = BODY_LIMIT_BYTES) -> dict[str, Any]:
    """The JSON object in the body, without fields that are null; raises ApiError where there is none."""
    return {name: value for name, value in (await object_sent(request, most_bytes)).items() if value is not None}


def name_in(asked: dict[str, Any]) -> str:
    """The model that a call names; raises ApiError where it names none."""
    name = asked.get("model") or asked.get("name")
    if not isinstance(name, str):
        raise ApiError("model is required", code="missing_required_parameter", param="model")
    return name


def switch(asked: dict[str, Any], name: str, *, default: bool) -> bool:
    """A field that is true or false; raises ApiError where it is something else."""
    value = asked.get(name, default)
    if not isinstance(value, bool):
        raise ApiError(f"{name} must be true or false", code="invalid_type", param=name)
    return value


def is_for_the_model_alone(path: str, asked: dict[str, Any]) -> bool:
    """Whether a call says nothing to the model, which then only is to be loaded, or to be unloaded."""
    if path == CHAT:
        return not asked.get("messages")
    if path == GENERATE:
        return not asked.get("prompt") and not asked.get("images") and not asked.get("suffix")
    return asked.get("input", []) in ([], "")


def unloads(asked: dict[str, Any]) -> bool:
    """Whether ``keep_alive`` is no time at all: a number of seconds, or a text with units, such as ``0s``."""
    kept = asked.get("keep_alive")
    if isinstance(kept, str):
        return bool(kept) and not kept.strip("0.hmsuµn")
    return kept == 0 and not isinstance(kept, bool)


def request_of(path: str, asked: dict[str, Any]) -> bytes:
    """The request; its reader is that of lines of batch files, and says what is wrong with it."""
    body = {name: asked[name] for name in _FIELDS[path] if name in asked}
    return _encode({"custom_id": _ID, "url": path, "body": body})
