"""Takes servers for a run and gives each the model with the context that fills its GPU."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence

from obatchd import log
from obatchd.burnin.journal.records import Prepared
from obatchd.burnin.run.filling import fill
from obatchd.burnin.run.ports import RunHost, RunServer
from obatchd.burnin.run.writing import RecordWriter
from obatchd.documents.burnin import Plan
from obatchd.errors import ObatchError, ServerError
from obatchd.jobs.model import Profile

_log = log.get(__name__)
_LOOK_S = 0.25
_UP_TIMEOUT_S = 300.0  # for a server that is being started


async def take(server: RunServer, reason: str, *, retest: bool) -> None:
    """Give a server no more batch work, and wait until requests in flight have ended, however long that takes.

    Args:
        retest: its GPU is in quarantine, and the server is to run for us all the same.
    """
    server.begin_test(reason)
    if retest:
        server.release()
    await server.idle.wait()


async def up(server: RunServer) -> None:
    """Wait until a server can be used."""
    while not server.ready_for_test:
        await asyncio.sleep(_LOOK_S)


async def up_soon(server: RunServer) -> None:
    """Wait for a server that is being started.

    Raises:
        ServerError: ``not_ready``: it does not come up in time, or is out of use.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_UP_TIMEOUT_S):
            while not server.ready_for_test and not server.out_of_use:
                await asyncio.sleep(_LOOK_S)
    if not server.ready_for_test:
        raise ServerError(f"{server.id} is {server.state}: {server.reason}", code="not_ready")


class Preparer:
    """Prepares the servers of a run.

    Args:
        gpus_of: UUIDs of the GPUs of each server.
        kinds: the kind of each server's GPUs; those of one kind get the same context, so that they can be compared.
    """

    def __init__(
        self,
        plan: Plan,
        host: RunHost,
        gpus_of: Mapping[str, Sequence[str]],
        kinds: Mapping[str, str],
        writer: RecordWriter,
    ) -> None:
        self._plan = plan
        self._host = host
        self._gpus_of = gpus_of
        self._kinds = kinds
        self._writer = writer

    async def prepare(self, servers: Sequence[RunServer]) -> None:
        """Prepare all of them; a server that cannot be prepared is written down with its problem."""
        kinds: dict[str, list[RunServer]] = {}
        for server in servers:
            kinds.setdefault(self._kinds[server.id], []).append(server)
        await asyncio.gather(*(self._prepare_kind(members) for members in kinds.values()))

    async def _prepare_kind(self, servers: Sequence[RunServer]) -> None:
        """Find the context on the first server that can, then give it to the others."""
        for place, server in enumerate(servers):
            context = await self._prepare(server, None)
            if context is not None:
                await asyncio.gather(*(self._prepare(other, context) for other in servers[place + 1 :]))
                return

    async def _prepare(self, server: RunServer, context: int | None) -> int | None:
        plan, host, gpu = self._plan, self._host, self._gpus_of[server.id][0]
        problem = ""
        try:
            await up_soon(server)
            await host.ensure_model(server.id, plan.model)
            if context is None:
                context = await fill(server, gpu, plan, host)
            else:
                await server.load(Profile(plan.model, context))
        except ObatchError as error:
            problem = error.message
        reading = host.reading(gpu)
        used, total = (reading.memory_used_bytes, reading.memory_total_bytes) if reading else (None, None)
        vram_percent = 100 * used / total if used is not None and total else None
        digest = host.model(plan.model).digest
        await self._writer.write(
            [
                Prepared(
                    time.time(), server.id, plan.model, context or 0, server.slots, vram_percent, digest,
                    server.version, problem,
                )
            ]
        )  # fmt: skip
        _log.info(
            "burnin_prepared", run=plan.run, server=server.id, context=context, slots=server.slots, problem=problem
        )  # fmt: skip
        return None if problem else context
