"""Calls of Ollama's own API that ask a model."""

from __future__ import annotations

from contextlib import closing
from typing import Any, ClassVar

import msgspec
from aiohttp import web
from attrs import define

from obatchd.control.programs import INFERENCE, Asking, Awaited, NativeModels, Piece
from obatchd.documents.native import ErrorText
from obatchd.errors import ApiError
from obatchd.front.answers import answer
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
from obatchd.front.waiting import ASKING_BYTES, Kind, in_pieces

_SIGN = b" "  # which clients skip in front of the next object; an empty line would end them
_encode = msgspec.json.Encoder().encode


@define(eq=False)
class NativeRoutes:
    """The routes."""

    _asking: Asking
    _models: NativeModels

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
        with closing(await self._asking.ask(request[CALLER], request_of(path, asked), stream=stream)) as awaited:
            if stream:
                return await in_pieces(request, awaited, _Lines(teller))
            return answer(teller.whole(record_in(await awaited.result())))

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        asked = await asked_of(request, ASKING_BYTES)
        teller = Teller(name_in(asked), chat=False)
        await self._models.check(name_in(asked))
        if is_for_the_model_alone(EMBED, asked):
            return answer(teller.vectors(None))
        return answer(teller.vectors(await self._vectors(request, asked)))

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        """The way before ``/api/embed``: one text, which is called a prompt."""
        asked = await asked_of(request, ASKING_BYTES)
        name, text = name_in(asked), asked.pop("prompt", "")
        if not isinstance(text, str):
            raise ApiError("prompt must be a text", code="invalid_type", param="prompt")
        await self._models.check(name)
        if not text:
            return answer(Teller.vector(None))
        return answer(Teller.vector(await self._vectors(request, asked | {"input": text})))

    async def _vectors(self, request: web.Request, asked: dict[str, Any]) -> Record:
        with closing(await self._asking.ask(request[CALLER], request_of(EMBED, asked), stream=False)) as awaited:
            return record_in(await awaited.result())


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
