"""What the control API answers with: one JSON document, or a line of several, each with the number of the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from obatchd.documents import SCHEMA


def answer(document: Mapping[str, Any], status: int = 200) -> web.Response:
    """The whole answer."""
    return web.json_response({"schema": SCHEMA, **document}, status=status)


def answer_line(document: Mapping[str, Any]) -> bytes:
    """One line of an answer that goes on."""
    return json.dumps({"schema": SCHEMA, **document}).encode() + b"\n"
