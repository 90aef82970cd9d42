"""The body of a request to Ollama."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from obatchd.dispatch.protocol import JobContext
from obatchd.jobs.formats.images import bare_base64
from obatchd.jobs.formats.request import Request

# Options that Ollama reads when it loads a model: a different value in one request would reload it (ollama
# server/sched.go, needsReload), so only the server's own values are ever sent.
LOAD_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "use_mlock", "num_thread", "numa", "low_vram",
     "draft_num_predict"}
)  # fmt: skip


def request_body(
    request: Request,
    context: JobContext,
    model: str,
    load_options: dict[str, Any],
    capabilities: Collection[str] = (),
) -> dict[str, Any]:
    """The body of ``/api/chat``: a request's own fields over its job's; load-time options only as the server has them.

    ``truncate`` and ``shift`` are off, so that a prompt that does not fit fails instead of being cut, and a token
    limit is always sent, because without one a model may run to ten times its context (ollama llm/server.go).
    Nothing is said about how long to keep the model: our own servers have that in their environment, and a remote one
    is not ours to fill. ``capabilities`` of the model: none where they are not known.
    """
    options = {name: value for name, value in (context.options | request.options).items() if name not in LOAD_OPTIONS}
    limit = request.max_response_tokens or options.get("num_predict")
    if not isinstance(limit, int) or limit <= 0:
        limit = context.max_response_tokens
    options |= {"num_predict": limit, **load_options}
    system = request.system if request.system is not None else context.system_message
    messages = _messages(request)
    if system and not any(message.get("role") == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system})
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": options,
    }
    if request.tools:
        body["tools"] = request.tools
    if wanted := request.format if request.format is not None else context.format:
        body["format"] = wanted
    think = request.think if request.think is not None else context.think
    if think != "auto" and (not think or _can(capabilities, "thinking")):
        body["think"] = think
    return body


def _messages(request: Request) -> list[dict[str, Any]]:
    if not request.messages:
        message: dict[str, Any] = {"role": request.role, "content": request.prompt}
        if request.images:
            message["images"] = [bare_base64(image) for image in request.images]
        return [message]
    return [
        message | {"images": [bare_base64(image) for image in message["images"]]} if "images" in message else message
        for message in request.messages
    ]


def has_images(request: Request) -> bool:
    """Whether the model has to see something."""
    return bool(request.images) or any(message.get("images") for message in request.messages)


def left_out(request: Request, capabilities: Collection[str] = ()) -> list[str]:
    """The fields of a request without effect, in words for its author; what its reader noted comes first."""
    notes = request.notes + [
        f"options.{name} is left out: it belongs to the server, not to a request"
        for name in request.options
        if name in LOAD_OPTIONS and (name != "num_ctx" or request.context_length is not None)
    ]
    if request.keep_alive is not None:
        notes.append("keep_alive is left out: the daemon keeps models loaded")
    if request.think and request.think != "auto" and not _can(capabilities, "thinking"):
        notes.append("think is left out: the model has no separate reasoning")
    return notes


def _can(capabilities: Collection[str], capability: str) -> bool:
    """Whether a model has the capability, or may have it because nothing is known of it."""
    return not capabilities or capability in capabilities
