"""An answer of the control API: one JSON document, or a line of several, each with the number of the schema."""

from __future__ import annotations

import json

import msgspec
from aiohttp import web

from obatchd.documents import SCHEMA


def answer(document: msgspec.Struct, status: int = 200) -> web.Response:
    """The whole answer."""
    return web.Response(body=_encoded(document), status=status, content_type="application/json", charset="utf-8")


def answer_line(document: msgspec.Struct) -> bytes:
    """One line of an answer that goes on."""
    return _encoded(document) + b"\n"


def _encoded(document: msgspec.Struct) -> bytes:
    fields = {"schema": SCHEMA} | msgspec.structs.asdict(document)
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:  # a path that is not UTF-8, as Python has it
        return json.dumps(msgspec.to_builtins(fields)).encode()
