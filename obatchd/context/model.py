"""Messages between the daemon, the preparer and the worker."""

from __future__ import annotations

from typing import Any

import msgspec


class Rules(msgspec.Struct, tag="rules", frozen=True):
    """The settings of ``[context]`` that the preparer needs; first frame, and again when one changes."""

    from_links: bool
    on_error: str  # fail, note
    allow: list[str]
    max_sources: int
    max_bytes: int
    max_characters: int
    max_redirects: int
    timeout_s: float
    host_pause_s: float
    parse_timeout_s: float
    parse_memory_bytes: int
    cache_s: float
    cache_bytes: int
    user_agent: str
    keep_full_prompt: bool


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


ToPreparer = Rules | Wish
FromPreparer = Prepared | Alive

to_preparer: msgspec.msgpack.Decoder[ToPreparer] = msgspec.msgpack.Decoder(ToPreparer)
from_preparer: msgspec.msgpack.Decoder[FromPreparer] = msgspec.msgpack.Decoder(FromPreparer)
context = msgspec.msgpack.Decoder(Context)
encode_context = msgspec.msgpack.Encoder().encode
