"""Refusals of what aiohttp answers by itself, before any route: calls that break the rules of HTTP.

They get the shape of every other refusal, so that a client that sent rubbish finds a document and no text.
"""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong

from obatchd.doors import reception
from obatchd.errors import ApiError
from obatchd.front.answers import refusal

_TOO_LARGE = ApiError(
    "the head of the call is too large", status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, code="head_too_large"
)
_MALFORMED = ApiError("the call breaks the rules of HTTP", code="malformed_call")


class Calls(reception.Calls):
    """The protocol of one connection."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to a call that no route was asked; a defect goes the usual way, into the log."""
        if not isinstance(exc, HttpProcessingError) or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        response = refusal(_TOO_LARGE if isinstance(exc, LineTooLong) else _MALFORMED)
        response.force_close()
        return response
