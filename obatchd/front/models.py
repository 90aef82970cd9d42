"""``/v1/models``: what the servers have. The name of a model may have slashes in it."""

from __future__ import annotations

from aiohttp import web
from attrs import define

from obatchd.control.operations import ModelOperations
from obatchd.control.programs import SCOPES_OF_PROGRAMS
from obatchd.documents.programs import ModelObject, Page
from obatchd.errors import ApiError
from obatchd.front.answers import answer
from obatchd.front.routes import Route

_LATEST = ":latest"  # what Ollama adds to a name without a tag


@define(eq=False)
class ModelRoutes:
    """The routes."""

    _models: ModelOperations

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/v1/models", self._list, SCOPES_OF_PROGRAMS),
            Route("GET", "/v1/models/{model:.+}", self._one, SCOPES_OF_PROGRAMS),
        ]

    async def _names(self) -> list[str]:
        return list(dict.fromkeys(model.model for model in await self._models.all()))

    async def _list(self, request: web.Request) -> web.Response:
        names = await self._names()
        first, last = (names[0], names[-1]) if names else (None, None)
        return answer(Page(data=[ModelObject(name) for name in names], first_id=first, last_id=last))

    async def _one(self, request: web.Request) -> web.Response:
        name, names = request.match_info["model"], await self._names()
        if name not in names and f"{name}{_LATEST}" not in names:
            words = f"The model '{name}' does not exist; obatchctl models pull {name} gets it"
            raise ApiError(words, status=404, code="model_not_found", param="model")
        return answer(ModelObject(name))
