"""Calls of Ollama's own API that ask a model."""

from __future__ import annotations

import asyncio

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
from obatchd.front.native.told import LOADED, UNLOADED, Teller, record_in
from obatchd.front.routes import CALLER, Handler, Route

_BODY_BYTES = 64 * 1024**2
_SIGN_S = 15.0  # without a piece, until a sign of life
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
        return [Route("POST", path, do, (INFERENCE,), _BODY_BYTES) for path, do in handlers.items()]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._say(request, CHAT)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._say(request, GENERATE)

    async def _say(self, request: web.Request, path: str) -> web.StreamResponse:
        asked = await asked_of(request, _BODY_BYTES)
        model, stream = name_in(asked), switch(asked, "stream", default=True)
        teller = Teller(model, chat=path == CHAT)
        await self._models.check(model)
        if is_for_the_model_alone(path, asked):
            return answer(teller.nothing(UNLOADED if unloads(asked) else LOADED))
        async with self._asking.ask(request[CALLER], request_of(path, asked), stream=stream) as awaited:
            if stream:
                return await _stream(request, teller, awaited)
            return answer(teller.whole(record_in(await awaited.result())))

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        asked = await asked_of(request, _BODY_BYTES)
        teller = Teller(name_in(asked), chat=False)
        await self._models.check(name_in(asked))
        if is_for_the_model_alone(EMBED, asked):
            return answer(teller.vectors(None))
        async with self._asking.ask(request[CALLER], request_of(EMBED, asked), stream=False) as awaited:
            return answer(teller.vectors(record_in(await awaited.result())))

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        """The way before ``/api/embed``: one text, which is called a prompt."""
        asked = await asked_of(request, _BODY_BYTES)
        name, text = name_in(asked), asked.pop("prompt", "")
        if not isinstance(text, str):
            raise ApiError("prompt must be a text", code="invalid_type", param="prompt")
        await self._models.check(name)
        if not text:
            return answer(Teller.vector(None))
        async with self._asking.ask(
            request[CALLER], request_of(EMBED, asked | {"input": text}), stream=False
        ) as awaited:
            return answer(Teller.vector(record_in(await awaited.result())))


async def _stream(request: web.Request, teller: Teller, awaited: Awaited) -> web.StreamResponse:
    """An answer line by line. The status is sent with the first one, or with a sign of life before it."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    try:
        while (piece := await _next(request, response, awaited)) is not None:
            await _write(request, response, _encode(teller.piece(*piece)) + b"\n")
        await _write(request, response, _encode(teller.end(record_in(await awaited.result()))) + b"\n")
    except ApiError as error:
        if not response.prepared:
            raise
        await _write(request, response, _encode(ErrorText(error.message)) + b"\n")
    except Exception:
        if response.prepared and request.transport is not None:  # a refusal would pass for a part of the answer
            request.transport.abort()
        raise
    await response.write_eof()
    return response


async def _next(request: web.Request, response: web.StreamResponse, awaited: Awaited) -> Piece | None:
    """The next piece; None: there is none any more."""
    while True:
        try:
            async with asyncio.timeout(_SIGN_S):
                return await anext(awaited)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            await _write(request, response, _SIGN)


async def _write(request: web.Request, response: web.StreamResponse, content: bytes) -> None:
    if not response.prepared:
        await response.prepare(request)
    await response.write(content)
