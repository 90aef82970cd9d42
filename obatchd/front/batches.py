"""``/v1/batches``."""

from __future__ import annotations

from aiohttp import web
from attrs import define

from obatchd.control.programs import BATCHES, BatchAsked, BatchOperations
from obatchd.front.answers import answer, object_sent, selection
from obatchd.front.routes import CALLER, Route

_LISTED, _MOST_LISTED = 20, 100


@define(eq=False)
class BatchRoutes:
    """The routes."""

    _batches: BatchOperations

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/batches", self._create, (BATCHES,)),
            Route("GET", "/v1/batches", self._list, (BATCHES,)),
            Route("GET", "/v1/batches/{batch}", self._one, (BATCHES,)),
            Route("POST", "/v1/batches/{batch}/cancel", self._cancel, (BATCHES,)),
        ]

    async def _create(self, request: web.Request) -> web.StreamResponse:
        """A client whose answer is lost asks again: newer ones say so, of others it is known here."""
        tries = request.headers.get("x-stainless-retry-count", "0")
        asked = BatchAsked(await object_sent(request), request.headers.get("Idempotency-Key"), tries not in ("", "0"))
        document = await self._batches.create(request[CALLER], asked)
        response = answer(document)
        await response.prepare(request)
        await response.write_eof()
        self._batches.answered(document.id)
        return response

    async def _list(self, request: web.Request) -> web.Response:
        return answer(await self._batches.all(request[CALLER], selection(request, _LISTED, _MOST_LISTED)))

    async def _one(self, request: web.Request) -> web.Response:
        return answer(await self._batches.one(request[CALLER], request.match_info["batch"]))

    async def _cancel(self, request: web.Request) -> web.Response:
        return answer(await self._batches.cancel(request[CALLER], request.match_info["batch"]))
