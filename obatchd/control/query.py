"""The query of a request to the control API."""

from __future__ import annotations

import re

from aiohttp import web

from obatchd import errors


def count_asked(request: web.Request, name: str, default: int, most: int) -> int:
    """The number that a query asks for.

    Raises:
        ConfigError: it is none from 1 to ``most``.
    """
    text = request.query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or not 0 < int(text) <= most:
        raise errors.ConfigError(f"{name} must be a number from 1 to {most}", code="bad_request")
    return int(text)
