"""The part of the control API about GPUs, under ``/v1/gpus``."""

from __future__ import annotations

from aiohttp import web

from obatchd import errors
from obatchd.control.answer import answer
from obatchd.control.operations import GpuOperations
from obatchd.control.query import count_asked
from obatchd.documents.gpus import GpuEvents

GPUS = web.AppKey("gpus", GpuOperations)
_MOST_EVENTS = 10_000


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/gpus", gpus),
        web.get("/v1/gpu-events", events),
        web.get("/v1/gpus/{gpu}", gpu),
        web.post("/v1/gpus/{gpu}/quarantine", _quarantine),
        web.post("/v1/gpus/{gpu}/release", _release),
        web.post("/v1/gpus/{gpu}/lend", _lend),
        web.post("/v1/gpus/{gpu}/take-back", _take_back),
    ]


async def gpus(request: web.Request) -> web.Response:
    """``GET /v1/gpus``; for every caller."""
    return answer(request.app[GPUS].all())


async def gpu(request: web.Request) -> web.Response:
    """``GET /v1/gpus/G``; for every caller."""
    return answer(await request.app[GPUS].one(request.match_info["gpu"]))


async def events(request: web.Request) -> web.Response:
    """``GET /v1/gpu-events?gpu=G&limit=N``; for every caller."""
    limit = count_asked(request, "limit", 100, _MOST_EVENTS)
    return answer(GpuEvents(await request.app[GPUS].events(request.query.get("gpu"), limit)))


async def _quarantine(request: web.Request) -> web.Response:
    return answer(await request.app[GPUS].quarantine(request.match_info["gpu"], request.query.get("reason", "")[:500]))


async def _release(request: web.Request) -> web.Response:
    return answer(await request.app[GPUS].release(request.match_info["gpu"]))


async def _lend(request: web.Request) -> web.Response:
    try:
        for_s = float(request.query.get("for_s", ""))
    except ValueError:
        raise errors.ConfigError("for_s must be a number of seconds", code="bad_request") from None
    return answer(await request.app[GPUS].lend(request.match_info["gpu"], for_s))


async def _take_back(request: web.Request) -> web.Response:
    return answer(await request.app[GPUS].take_back(request.match_info["gpu"]))
