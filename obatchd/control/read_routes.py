"""Routes that people look at again and again: all at a glance, and what was."""

from __future__ import annotations

import time

from aiohttp import web
from attrs import define

from obatchd import errors
from obatchd.control.answer import CALLER, answer, count_asked, time_asked
from obatchd.control.gpu_routes import MOST_POINTS, POINTS
from obatchd.control.operations import Reads, SpanAsked
from obatchd.times import span_s

_MOST_JOBS = 1000
_ASK_AGAIN = {"Cache-Control": "no-cache"}  # with the ETag
_MOST_SPAN_S = 92 * 86_400.0  # a little more than is kept


@define(eq=False)
class ReadRoutes:
    """The routes. All callers may use them, and see what they may see elsewhere."""

    _reads: Reads

    def routes(self) -> list[web.RouteDef]:
        """Those of the control API."""
        return [
            web.get("/v1/page", self.page),
            web.get("/v1/gpu-history", self.gpu_history),
            web.get("/v1/work-history", self.work_history),
        ]

    async def page(self, request: web.Request) -> web.Response:
        caller, owner = request[CALLER], request.query.get("owner")
        if owner == "all" and not caller.is_administrator:
            raise errors.ForbiddenError("only administrators see the jobs of others; owner=mine are yours")
        if owner not in (None, "all", "mine"):
            raise errors.ConfigError("owner must be mine or all", code="bad_request")
        jobs = count_asked(request, "jobs", 100, _MOST_JOBS)
        fresh = request.query.get("fresh") == "1"
        found = self._reads.overviews.look(caller, jobs, mine=owner == "mine", fresh=fresh)
        response = web.Response(headers=_ASK_AGAIN)
        response.etag = found.revision
        if any(one.value in (found.revision, "*") for one in request.if_none_match or ()):
            response.set_status(304)
        else:
            response.body, response.content_type, response.charset = found.body, "application/json", "utf-8"
        return response

    async def gpu_history(self, request: web.Request) -> web.Response:
        return answer(await self._reads.history.gpus(_span_asked(request), request.query.get("gpu") or None))

    async def work_history(self, request: web.Request) -> web.Response:
        return answer(await self._reads.history.work(_span_asked(request)))


def _span_asked(request: web.Request) -> SpanAsked:
    """The time that a query asks for: ``span`` until now, or ``since`` and ``until``. Raises ConfigError."""
    now_s, points = time.time(), count_asked(request, "points", POINTS, MOST_POINTS)
    until_s = time_asked(request, "until")
    since_s = time_asked(request, "since")
    until_s = now_s if until_s is None else min(until_s, now_s)
    if since_s is None:
        try:
            since_s = until_s - span_s(request.query.get("span", "24h"))
        except ValueError as error:
            raise errors.ConfigError(f"span: {error}", code="bad_request") from None
    if not 0.0 < until_s - since_s <= _MOST_SPAN_S:
        raise errors.ConfigError("the time asked for must be some, and 90 days at most", code="bad_request")
    return SpanAsked(since_s, until_s, points)
