"""The worker's prompt of a prepared request. Imports little: workers have it from their first moment."""

from __future__ import annotations

from typing import Any

import msgspec

from obatchd.context.model import Context
from obatchd.jobs.formats.request import Request


def apply_context(request: Request, context: Context) -> Request:
    """The prompt: the request's text with its sources in front."""
    if context.prompt is None:
        return request
    place = last_question(request.messages)
    if place is None:
        return msgspec.structs.replace(request, prompt=context.prompt)
    messages = list(request.messages)
    messages[place] = {**messages[place], "content": context.prompt}
    return msgspec.structs.replace(request, messages=messages)


def asked_text(request: Request) -> str:
    """The text that sources belong to: of a chat its last question, else the prompt."""
    place = last_question(request.messages)
    return request.prompt if place is None else str(request.messages[place].get("content", ""))


def last_question(messages: list[dict[str, Any]]) -> int | None:
    """Where the last message of the user stands."""
    return next((n for n in range(len(messages) - 1, -1, -1) if messages[n].get("role") == "user"), None)


def recorded(context: Context) -> dict[str, Any]:
    """The sources in the record of a request."""
    if context.prompt is None:
        return {}
    own: dict[str, Any] = {"sources": context.sources}
    return own | {"full_prompt": context.prompt} if context.keep_full_prompt else own
