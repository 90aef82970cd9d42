"""Answers that clients wait for, whole or piece by piece: signs of life meanwhile, and errors after the status is out.

The status is sent with the first piece, or with a sign of life before it; until then an error has a status of its own.
A client that goes cancels its call, and closing what it waits for frees the slot.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

from aiohttp import web

from obatchd.control.programs import Awaited, Piece
from obatchd.errors import ApiError
from obatchd.front.late import LateFailures

ASKING_BYTES = 64 * 1024**2  # of the body of a call that asks a model; images are in it
SIGN_S = 15.0  # without a piece, until a sign of life


class Kind(NamedTuple):
    """What a body is."""

    content_type: str
    sign: bytes  # of life; clients skip it
    headers: tuple[tuple[str, str], ...] = ()


class Form(Protocol):
    """How an API words the answer to one call, in bytes for the client."""

    kind: ClassVar[Kind]

    async def end(self, awaited: Awaited) -> bytes:
        """The end of the answer, or all of it where nobody wants pieces."""

    def problem(self, error: ApiError) -> bytes:
        """The end of an answer that has none."""


class PieceForm(Form, Protocol):
    """As Form, of an answer that comes in pieces."""

    def piece(self, piece: Piece) -> bytes:
        """More of the answer."""


class _Body:
    """A body that begins when there is something to write."""

    def __init__(self, request: web.Request, kind: Kind) -> None:
        self.response = web.StreamResponse(headers={"Content-Type": kind.content_type, **dict(kind.headers)})
        self._request = request
        self._sign = kind.sign

    @property
    def begun(self) -> bool:
        return self.response.prepared

    async def write(self, content: bytes) -> None:
        if not self.begun:
            await self.response.prepare(self._request)
        await self.response.write(content)

    def cut(self, *, at_once: bool) -> None:
        """End the connection, so that nobody takes what is written for a whole answer."""
        if (transport := self._request.transport) is not None:
            transport.abort() if at_once else transport.close()

    async def when_there(self, awaited: Awaited) -> None:
        """Wait until more of the answer is there, or its end, and send a sign of life each time that takes long."""
        while not await awaited.wait(SIGN_S):
            await self.write(self._sign)


async def in_pieces(request: web.Request, awaited: Awaited, form: PieceForm) -> web.StreamResponse:
    """Tell an answer piece by piece."""
    body = _Body(request, form.kind)
    try:
        await body.when_there(awaited)
        while (piece := awaited.fresh()) is not None:
            await body.write(form.piece(piece))
            await body.when_there(awaited)
        await body.write(await form.end(awaited))
    except ApiError as error:
        if not body.begun:
            raise
        await body.write(form.problem(error))
    except Exception:
        if body.begun:  # a refusal would pass for a part of the answer
            body.cut(at_once=True)
        raise
    await body.response.write_eof()
    return body.response


async def whole(
    request: web.Request, awaited: Awaited, form: Form, raw: bytes, late: LateFailures
) -> web.StreamResponse:
    """Tell a whole answer to ``raw``. One that fails after a sign of life ends in a problem and in a body that is cut
    off; ``late`` tells it to a second call."""
    body = _Body(request, form.kind)
    try:
        await body.when_there(awaited)
        told = await form.end(awaited)
        if not body.begun:
            return web.Response(body=told, content_type=form.kind.content_type)
        await body.write(told)
    except ApiError as error:
        if not body.begun:
            raise
        await late.keep(request, raw, error)
        await body.write(form.problem(error))
        body.cut(at_once=False)
        return body.response
    except Exception:
        if body.begun:
            body.cut(at_once=True)
        raise
    await body.response.write_eof()
    return body.response
