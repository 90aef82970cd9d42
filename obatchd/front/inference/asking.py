"""``/v1/chat/completions`` and ``/v1/embeddings``: the answer at once, and no job."""

from __future__ import annotations

import secrets
from contextlib import closing

from aiohttp import web
from attrs import define, field

from obatchd.control.programs import INFERENCE, Asking, NativeModels
from obatchd.errors import ApiError
from obatchd.front.inference.asked import CHAT, EMBEDDINGS, asked_of
from obatchd.front.inference.told import Chunks, Whole
from obatchd.front.late import LateFailures
from obatchd.front.routes import CALLER, Handler, Route
from obatchd.front.waiting import ASKING_BYTES, in_pieces, whole


@define(eq=False)
class InferenceRoutes:
    """The routes."""

    _asking: Asking
    _models: NativeModels
    _late: LateFailures = field(factory=LateFailures, init=False)

    def routes(self) -> list[Route]:
        handlers: dict[str, Handler] = {CHAT: self._chat, EMBEDDINGS: self._embeddings}
        return [Route("POST", path, do, (INFERENCE,), ASKING_BYTES, waits=True) for path, do in handlers.items()]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._ask(request, CHAT)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._ask(request, EMBEDDINGS)

    async def _ask(self, request: web.Request, url: str) -> web.StreamResponse:
        asked = await asked_of(request, url)
        await self._models.check(asked.model)
        if not asked.stream:
            await self._late.tell(request, asked.raw)
        key = secrets.token_hex(12)
        try:
            taken = await self._asking.ask(request[CALLER], asked.raw, stream=asked.stream)
        except ApiError as error:
            error.param = error.param or asked.named_in(error.message)
            raise
        with closing(taken) as awaited:
            if asked.stream:
                return await in_pieces(request, awaited, Chunks(key, asked.model, asked.usage, asked.forced))
            return await whole(request, awaited, Whole(key, asked.model, asked.forced), asked.raw, self._late)
