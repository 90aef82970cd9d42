"""``GET /metrics``, for Prometheus."""

from __future__ import annotations

from aiohttp import web
from attrs import define

from obatchd.control.operations import Metrics
from obatchd.control.programs import METRICS
from obatchd.front.routes import Route

_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@define(eq=False)
class MetricRoutes:
    """The route."""

    _metrics: Metrics

    def routes(self) -> list[Route]:
        return [Route("GET", "/metrics", self._text, (METRICS,))]

    async def _text(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(process=True), headers={"Content-Type": _TYPE})
