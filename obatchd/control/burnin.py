"""The part of the control API that is about burn-in runs, under ``/v1/burnin``. For administrators."""

from __future__ import annotations

import json
from typing import Any, Protocol

from aiohttp import web
from attrs import define

from obatchd.control.answer import answer
from obatchd.documents.burnin import BurninBrief, BurninHead, BurninReport, BurninRuns, BurninStatus, ListedRun
from obatchd.errors import ConfigError


class Burnin(Protocol):
    """Questions and commands about burn-in runs."""

    async def start(self, asked: dict[str, Any]) -> BurninStatus:
        """Begin a run; raises ConfigError or ControlError."""

    async def stop(self, who: str) -> BurninHead:
        """End the run in progress."""

    def brief(self) -> BurninBrief | None:
        """The run in progress in a few words."""

    async def status(self) -> BurninStatus:
        """The run in progress or the latest one."""

    async def report(self, run: str) -> BurninReport:
        """A whole report."""

    async def runs(self) -> list[ListedRun]:
        """All runs, newest first."""


@define(eq=False)
class BurninRoutes:
    """The routes."""

    _runs: Burnin

    def for_administrators(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/burnin", self._list),
            web.post("/v1/burnin", self._start),
            web.get("/v1/burnin/status", self._status),
            web.post("/v1/burnin/stop", self._stop),
            web.get("/v1/burnin/reports/{run}", self._report),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        return answer(BurninRuns(await self._runs.runs()))

    async def _start(self, request: web.Request) -> web.Response:
        try:
            asked = json.loads(await request.read() or b"{}")
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            raise ConfigError("the body must be a JSON object", code="bad_request")
        return answer(await self._runs.start(asked))

    async def _status(self, request: web.Request) -> web.Response:
        return answer(await self._runs.status())

    async def _stop(self, request: web.Request) -> web.Response:
        return answer(await self._runs.stop("by an administrator"))

    async def _report(self, request: web.Request) -> web.Response:
        return answer(await self._runs.report(request.match_info["run"]))
