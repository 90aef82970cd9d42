"""The part of the control API about GPUs, under ``/v1/gpus``, and burn-in runs, under ``/v1/burnin``."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from attrs import define

from obatchd import errors
from obatchd.control.answer import CALLER, answer, count_asked
from obatchd.control.operations import AuditOperations, Burnin, GpuOperations
from obatchd.documents.audit import BURNIN_STARTED, BURNIN_STOPPED
from obatchd.documents.burnin.report import BurninRuns
from obatchd.documents.gpus import GpuEvents

_MOST_EVENTS = 10_000
_NAMED = (("hosts", "hosts"), ("GPUs", "gpus"))  # for people, and in the body that begins a burn-in
POINTS, MOST_POINTS = 720, 5000  # values of a column


@define(eq=False)
class GpuRoutes:
    """The routes, and who may use them."""

    _gpus: GpuOperations
    _burnin: Burnin
    _audit: AuditOperations

    def for_every_caller(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/gpus", self.all),
            web.get("/v1/gpu-events", self.events),
            web.get("/v1/gpus/{gpu}", self.one),
        ]

    def for_administrators(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/gpus/{gpu}/quarantine", self._quarantine),
            web.post("/v1/gpus/{gpu}/release", self._release),
            web.post("/v1/gpus/{gpu}/lend", self._lend),
            web.post("/v1/gpus/{gpu}/take-back", self._take_back),
            web.post("/v1/gpus/{gpu}/share", self._share),
            web.post("/v1/gpus/{gpu}/unshare", self._unshare),
            web.get("/v1/burnin", self.burnin_runs),
            web.post("/v1/burnin", self._start_burnin),
            web.get("/v1/burnin/status", self.burnin_status),
            web.get("/v1/burnin/series", self.burnin_series),
            web.post("/v1/burnin/stop", self._stop_burnin),
            web.get("/v1/burnin/reports/{run}", self.burnin_report),
        ]

    async def all(self, request: web.Request) -> web.Response:
        return answer(self._gpus.all())

    async def one(self, request: web.Request) -> web.Response:
        return answer(await self._gpus.one(request.match_info["gpu"]))

    async def events(self, request: web.Request) -> web.Response:
        limit = count_asked(request, "limit", 100, _MOST_EVENTS)
        return answer(GpuEvents(await self._gpus.events(request.query.get("gpu"), limit)))

    async def _quarantine(self, request: web.Request) -> web.Response:
        reason = request.query.get("reason", "")[:500]
        return answer(await self._gpus.quarantine(request[CALLER], request.match_info["gpu"], reason))

    async def _release(self, request: web.Request) -> web.Response:
        return answer(await self._gpus.release(request[CALLER], request.match_info["gpu"]))

    async def _lend(self, request: web.Request) -> web.Response:
        try:
            for_s = float(request.query.get("for_s", ""))
        except ValueError:
            raise errors.ConfigError("for_s must be a number of seconds", code="bad_request") from None
        return answer(await self._gpus.lend(request[CALLER], request.match_info["gpu"], for_s))

    async def _take_back(self, request: web.Request) -> web.Response:
        return answer(await self._gpus.take_back(request[CALLER], request.match_info["gpu"]))

    async def _share(self, request: web.Request) -> web.Response:
        return answer(await self._gpus.share(request[CALLER], request.match_info["gpu"], True))

    async def _unshare(self, request: web.Request) -> web.Response:
        return answer(await self._gpus.share(request[CALLER], request.match_info["gpu"], False))

    async def burnin_runs(self, request: web.Request) -> web.Response:
        return answer(BurninRuns(await self._burnin.runs()))

    async def _start_burnin(self, request: web.Request) -> web.Response:
        try:
            asked = msgspec.json.decode(await request.read() or b"{}", type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError):  # half a character, too, which cannot be kept
            reason = "the body must be a JSON object, and its texts whole characters (UTF-8)"
            raise errors.ConfigError(reason, code="bad_request") from None
        named = [f"{word} {', '.join(map(str, asked[key]))}" for word, key in _NAMED if _is_named(asked.get(key))]
        async with self._audit.recorded(request[CALLER], BURNIN_STARTED, detail="; ".join(named)):
            return answer(await self._burnin.start(asked))

    async def burnin_status(self, request: web.Request) -> web.Response:
        return answer(await self._burnin.status())

    async def burnin_series(self, request: web.Request) -> web.Response:
        points = count_asked(request, "points", POINTS, MOST_POINTS)
        return answer(await self._burnin.series(request.query.get("run", "latest"), points))

    async def _stop_burnin(self, request: web.Request) -> web.Response:
        async with self._audit.recorded(request[CALLER], BURNIN_STOPPED):
            return answer(await self._burnin.stop("by an administrator"))

    async def burnin_report(self, request: web.Request) -> web.Response:
        return answer(await self._burnin.report(request.match_info["run"]))


def _is_named(names: object) -> bool:
    return isinstance(names, list) and bool(names)
