"""Messages between the daemon, the preparer and the worker. Imports little: workers have it from their first moment."""

from __future__ import annotations

from typing import Any

import msgspec

from obatchd.jobs.formats.request import Request


class Rules(msgspec.Struct, tag="rules", frozen=True):
    """The settings of ``[context]``; first frame, and again when one changes."""

    settings: dict[str, Any]


class Wish(msgspec.Struct, tag="wish", frozen=True):
    """One request to be prepared. ``folder`` holds the files it may name; empty where its drop is none."""

    job: int
    line: int
    owner: int
    raw: bytes
    folder: str
    keep_full_prompt: bool


class Prepared(msgspec.Struct, tag="prepared", frozen=True):
    """The outcome of a wish: ``context`` as the worker takes it, or the code and message of a failure."""

    job: int
    line: int
    context: bytes = b""
    code: str = ""
    message: str = ""


class Alive(msgspec.Struct, tag="alive", frozen=True):
    """Every second: the preparer's loop turns."""


class Context(msgspec.Struct, frozen=True):
    """A worker's orders for a request: ask ``prompt`` in place of its own, and record ``sources``.

    ``prompt`` is None where the request turned out to name no source.
    """

    prompt: str | None
    sources: list[dict[str, Any]]
    keep_full_prompt: bool

    def applied_to(self, request: Request) -> Request:
        """``request`` with the prompt that has its sources in front."""
        if self.prompt is None:
            return request
        place = last_question(request.messages)
        if place is None:
            return msgspec.structs.replace(request, prompt=self.prompt)
        messages = list(request.messages)
        messages[place] = {**messages[place], "content": self.prompt}
        return msgspec.structs.replace(request, messages=messages)

    def recorded(self) -> dict[str, Any]:
        """The sources in the record of a request."""
        if self.prompt is None:
            return {}
        own: dict[str, Any] = {"sources": self.sources}
        return own | {"full_prompt": self.prompt} if self.keep_full_prompt else own


def asked_text(request: Request) -> str:
    """The text that sources belong to: of a chat its last question, else the prompt."""
    place = last_question(request.messages)
    return request.prompt if place is None else str(request.messages[place].get("content", ""))


def last_question(messages: list[dict[str, Any]]) -> int | None:
    """Where the last message of the user stands."""
    return next((n for n in range(len(messages) - 1, -1, -1) if messages[n].get("role") == "user"), None)


ToPreparer = Rules | Wish
FromPreparer = Prepared | Alive

to_preparer: msgspec.msgpack.Decoder[ToPreparer] = msgspec.msgpack.Decoder(ToPreparer)
from_preparer: msgspec.msgpack.Decoder[FromPreparer] = msgspec.msgpack.Decoder(FromPreparer)
context = msgspec.msgpack.Decoder(Context)
