"""Takes servers for a run and loads on each the model, with the context that fills the memory of its GPU."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence

import attrs

from obatchd import log
from obatchd.burnin.journal.journal import RecordWriter
from obatchd.burnin.journal.records import Prepared
from obatchd.burnin.run.ports import RunHost, RunServer, Tested
from obatchd.burnin.run.workload import context_for
from obatchd.documents.burnin.plan import Plan
from obatchd.errors import ModelError, ObatchError, ServerError
from obatchd.gpus.model import Reading
from obatchd.jobs.model import Profile

_log = log.get(__name__)
LOOK_S = 0.25
_READING_S = 15.0  # longest wait for a reading after a load
SETTLE_S = 1.0  # a reading older than this after a load may not have it yet
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


async def up_soon(server: RunServer) -> None:
    """Wait for a server that is being started.

    Raises ServerError (``not_ready``) where it does not come up in time, or is out of use.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_UP_TIMEOUT_S):
            while not server.ready_for_test and not server.out_of_use:
                await asyncio.sleep(LOOK_S)
    if not server.ready_for_test:
        raise ServerError(server.in_words, code="not_ready")


@attrs.define(eq=False)
class Preparer:
    """Prepares the servers of a run."""

    _plan: Plan
    _host: RunHost
    _writer: RecordWriter

    async def prepare(self, servers: Iterable[Tested]) -> None:
        """Prepare all of them; a server that cannot be prepared is written down with its problem."""
        kinds: dict[str, list[Tested]] = {}
        for tested in servers:
            kinds.setdefault(tested.kind, []).append(tested)
        await asyncio.gather(*(self._prepare_kind(members) for members in kinds.values()))

    async def _prepare_kind(self, servers: Sequence[Tested]) -> None:
        """Find the context on the first server that can, then give it to the others."""
        for place, tested in enumerate(servers):
            context = await self._prepare(tested, None)
            if context is not None:
                await asyncio.gather(*(self._prepare(other, context) for other in servers[place + 1 :]))
                return

    async def _prepare(self, tested: Tested, context: int | None) -> int | None:
        plan, host, server, gpu, problem = self._plan, self._host, tested.server, tested.gpus[0], ""
        try:
            await up_soon(server)
            await host.ensure_model(server.id, plan.model)
            if context is None:
                context = await self._fill(server, gpu)
            else:
                await server.load(Profile(plan.model, context))
        except ObatchError as error:
            problem = error.message
        used, total = _memory(host.reading(gpu)) or (0.0, 0.0)
        await self._writer.write(
            Prepared(
                time.time(), server.id, plan.model, context or 0, server.slots, 100 * used / total if total else None,
                host.model(plan.model).digest, server.version, problem,
            )
        )  # fmt: skip
        _log.info(
            "burnin_prepared", run=plan.run, server=server.id, context=context, slots=server.slots, problem=problem
        )  # fmt: skip
        return None if problem else context

    async def _fill(self, server: RunServer, gpu: str) -> int:
        """Load the model with the largest useful context; returns that context in tokens.

        More context for fewer slots gains nothing, so the slots of the first load are kept. Raises ModelError or
        ServerError where the model cannot be loaded at all.
        """
        plan, known = self._plan, self._plan.context_length
        most = self._host.model(plan.model).context_length or known
        small = await self._loaded(server, gpu, min(known, most))
        slots, target = server.slots, plan.limits.vram_target_percent / 100
        if not plan.fill_vram or small is None or most <= known or small[0] >= target * small[1]:
            return min(known, most)
        double = min(2 * known, most)
        if (large := await self._try(server, gpu, double, slots)) is not None:
            wanted = context_for(target * large[1], (known, small[0]), (double, large[0]), most)
            if wanted == double or await self._try(server, gpu, wanted, slots) is not None:
                return wanted
            known = double if wanted > double else known
        await server.load(Profile(plan.model, known))
        return known

    async def _try(self, server: RunServer, gpu: str, context: int, slots: int) -> tuple[float, float] | None:
        """As :meth:`_loaded`; None if the context does not fit with all slots, too."""
        try:
            used = await self._loaded(server, gpu, context)
        except ModelError as error:
            _log.info("burnin_context_refused", server=server.id, context=context, reason=error.message)
            return None
        return used if server.slots >= slots else None

    async def _loaded(self, server: RunServer, gpu: str, context: int) -> tuple[float, float] | None:
        """Load; memory in use after it and in all, in bytes, None where the GPU does not tell."""
        await server.load(Profile(self._plan.model, context))
        after_s, deadline_s = time.time() + SETTLE_S, time.monotonic() + _READING_S
        while time.monotonic() < deadline_s:
            reading = self._host.reading(gpu)
            if reading is not None and reading.at_s >= after_s:
                return _memory(reading)
            await asyncio.sleep(LOOK_S)
        return None


def _memory(reading: Reading | None) -> tuple[float, float] | None:
    if reading is None or reading.memory_used_bytes is None or not reading.memory_total_bytes:
        return None
    return float(reading.memory_used_bytes), float(reading.memory_total_bytes)
