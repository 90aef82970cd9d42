"""What Ollama is sent for a request."""

from __future__ import annotations

from typing import Any

from obatchd.dispatch.protocol import JobContext
from obatchd.jobs.formats.request import Request

# Options that Ollama reads when it loads a model: a different value in one request would reload it (ollama
# server/sched.go, needsReload), so only the server's own values are ever sent.
LOAD_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "use_mlock", "num_thread", "numa", "low_vram",
     "draft_num_predict"}
)  # fmt: skip


def request_body(request: Request, context: JobContext, model: str, load_options: dict[str, Any]) -> dict[str, Any]:
    """The body of ``/api/chat``: a request's own fields over its job's; load-time options only as the server has them.

    ``truncate`` and ``shift`` are off, so that a prompt that does not fit fails instead of being cut, and a token
    limit is always sent, because without one a model may run to ten times its context (ollama llm/server.go).
    Nothing is said about how long to keep the model: our own servers have that in their environment, and a remote one
    is not ours to fill.
    """
    options = {name: value for name, value in (context.options | request.options).items() if name not in LOAD_OPTIONS}
    limit = request.max_response_tokens or options.get("num_predict")
    if not isinstance(limit, int) or limit <= 0:
        limit = context.max_response_tokens
    options |= {"num_predict": limit, **load_options}
    system = request.system if request.system is not None else context.system_message
    messages = list(request.messages) if request.messages else [{"role": request.role, "content": request.prompt}]
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
    if request.format is not None:
        body["format"] = request.format
    if request.think is not None:
        body["think"] = request.think
    return body
