"""Calls of Ollama's own API that ask a model."""

from __future__ import annotations

from contextlib import closing
from typing import ClassVar, Protocol

import msgspec
from aiohttp import web
from attrs import define, field

from obatchd.control.programs import INFERENCE, Asking, Awaited, NativeModels, Piece
from obatchd.documents.native import ErrorText
from obatchd.errors import ApiError
from obatchd.front.answers import answer
from obatchd.front.late import LateFailures
from obatchd.front.native.asked import (
    CHAT,
    EMBED,
    EMBEDDINGS,
    GENERATE,
    asked_of,
    is_for_the_model_alone,
    name_in,
    request_of,
    switch,
    unloads,
)
from obatchd.front.native.told import LOADED, UNLOADED, Record, Teller, record_in
from obatchd.front.routes import CALLER, Handler, Route
from obatchd.front.waiting import ASKING_BYTES, Kind, in_pieces, whole

_SIGN = b" "  # which clients skip in front of the next object; an empty line would end them
_encode = msgspec.json.Encoder().encode


@define(eq=False)
class NativeRoutes:
    """The routes."""

    _asking: Asking
    _models: NativeModels
    _late: LateFailures = field(factory=LateFailures, init=False)

    def routes(self) -> list[Route]:
        handlers: dict[str, Handler] = {
            CHAT: self._chat, GENERATE: self._generate, EMBED: self._embed, EMBEDDINGS: self._embeddings,
        }  # fmt: skip
        return [Route("POST", path, do, (INFERENCE,), ASKING_BYTES, waits=True) for path, do in handlers.items()]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._say(request, CHAT)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._say(request, GENERATE)

    async def _say(self, request: web.Request, path: str) -> web.StreamResponse:
        asked = await asked_of(request, ASKING_BYTES)
        model, stream = name_in(asked), switch(asked, "stream", default=True)
        teller = Teller(model, chat=path == CHAT)
        await self._models.check(model)
        if is_for_the_model_alone(path, asked):
            return answer(teller.nothing(UNLOADED if unloads(asked) else LOADED))
        if not stream:
            return await self._whole(request, request_of(path, asked), _Whole(teller.whole))
        with closing(await self._asking.ask(request[CALLER], request_of(path, asked), stream=True)) as awaited:
            return await in_pieces(request, awaited, _Lines(teller))

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        asked = await asked_of(request, ASKING_BYTES)
        teller = Teller(name_in(asked), chat=False)
        await self._models.check(name_in(asked))
        if is_for_the_model_alone(EMBED, asked):
            return answer(teller.vectors(None))
        return await self._whole(request, request_of(EMBED, asked), _Whole(teller.vectors))

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        """The way before ``/api/embed``: one text, which is called a prompt."""
        asked = await asked_of(request, ASKING_BYTES)
        name, text = name_in(asked), asked.pop("prompt", "")
        if not isinstance(text, str):
            raise ApiError("prompt must be a text", code="invalid_type", param="prompt")
        await self._models.check(name)
        if not text:
            return answer(Teller.vector(None))
        return await self._whole(request, request_of(EMBED, asked | {"input": text}), _Whole(Teller.vector))

    async def _whole(self, request: web.Request, raw: bytes, form: _Whole) -> web.StreamResponse:
        await self._late.tell(request, raw)
        with closing(await self._asking.ask(request[CALLER], raw, stream=False)) as awaited:
            return await whole(request, awaited, form, raw, self._late)


class _Words(Protocol):
    """Makes an object of a result."""

    def __call__(self, record: Record) -> msgspec.Struct: ...


@define(eq=False)
class _Whole:
    """A whole answer. Implements :class:`obatchd.front.waiting.Form`."""

    _words: _Words
    kind: ClassVar[Kind] = Kind("application/json", _SIGN)

    async def end(self, awaited: Awaited) -> bytes:
        return _encode(self._words(record_in(await awaited.result())))

    def problem(self, error: ApiError) -> bytes:
        return _encode(ErrorText(error.message))


@define(eq=False)
class _Lines:
    """A stream: one object a line. Implements :class:`obatchd.front.waiting.PieceForm`."""

    _teller: Teller
    kind: ClassVar[Kind] = Kind("application/x-ndjson", _SIGN)

    def piece(self, piece: Piece) -> bytes:
        return _line(self._teller.piece(*piece))

    async def end(self, awaited: Awaited) -> bytes:
        return _line(self._teller.end(record_in(await awaited.result())))

    def problem(self, error: ApiError) -> bytes:
        return _line(ErrorText(error.message))


def _line(document: msgspec.Struct) -> bytes:
    return _encode(document) + b"\n"
