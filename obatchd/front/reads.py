"""What people look at again and again, below ``/obatchd/v1``, as the control API has it: for the page.

They may change with every version: the page and the daemon are of the same.
"""

from __future__ import annotations

from aiohttp import web
from attrs import define

from obatchd.control.gpu_routes import GpuRoutes
from obatchd.control.operations import AuditOperations, Burnin, GpuOperations, Reads
from obatchd.control.programs import BATCHES, SCOPES_OF_PROGRAMS
from obatchd.control.read_routes import ReadRoutes
from obatchd.errors import ForbiddenError
from obatchd.front.jobs import BELOW
from obatchd.front.routes import CALLER, Handler, Route


@define(eq=False)
class LookRoutes:
    """The routes."""

    _reads: Reads
    _gpus: GpuOperations
    _burnin: Burnin
    _audit: AuditOperations

    def routes(self) -> list[Route]:
        reads, gpus, burnin = (
            ReadRoutes(self._reads),
            GpuRoutes(self._gpus, self._burnin, self._audit),
            f"{BELOW}/burnin",
        )
        return [
            Route("GET", f"{BELOW}/page", reads.page, (BATCHES,)),
            Route("GET", f"{BELOW}/gpus", gpus.all, SCOPES_OF_PROGRAMS),
            Route("GET", f"{BELOW}/gpus/{{gpu}}", gpus.one, SCOPES_OF_PROGRAMS),
            Route("GET", f"{BELOW}/gpu-events", gpus.events, SCOPES_OF_PROGRAMS),
            Route("GET", f"{BELOW}/gpu-history", reads.gpu_history, SCOPES_OF_PROGRAMS),
            Route("GET", f"{BELOW}/work-history", reads.work_history, SCOPES_OF_PROGRAMS),
            Route("GET", burnin, _for_administrators(gpus.burnin_runs), (BATCHES,)),
            Route("GET", f"{burnin}/status", _for_administrators(gpus.burnin_status), (BATCHES,)),
            Route("GET", f"{burnin}/series", _for_administrators(gpus.burnin_series), (BATCHES,)),
            Route("GET", f"{burnin}/reports/{{run}}", _for_administrators(gpus.burnin_report), (BATCHES,)),
        ]


def _for_administrators(handler: Handler) -> Handler:
    """A handler that answers nobody else."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if not request[CALLER].is_administrator:
            raise ForbiddenError("only administrators of obatchd may do this")
        return await handler(request)

    return handle
