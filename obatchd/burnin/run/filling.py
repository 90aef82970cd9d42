"""Chooses the context with which a model fills the memory of GPUs of one kind, and loads it."""

from __future__ import annotations

import asyncio
import time

from obatchd import log
from obatchd.burnin.run.ports import RunHost, RunServer
from obatchd.burnin.run.workload import context_for
from obatchd.documents.burnin import Plan
from obatchd.errors import ModelError
from obatchd.jobs.model import Profile

_log = log.get(__name__)
_READING_S = 15.0  # longest wait for a reading after a load
_LOOK_S = 0.2
_SETTLE_S = 1.0  # a reading older than this after a load may not have it yet


async def fill(server: RunServer, gpu: str, plan: Plan, host: RunHost) -> int:
    """Load the model with the largest useful context; returns that context in tokens.

    More context for fewer slots gains nothing, so the slots of the first load are kept.

    Raises:
        ModelError, ServerError: the model cannot be loaded at all.
    """
    base = plan.context_length
    most = host.model(plan.model).context_length or base
    small = await _loaded(server, gpu, Profile(plan.model, min(base, most)), host)
    slots, target = server.slots, plan.limits.vram_target_percent / 100
    if not plan.fill_vram or small is None or most <= base or small[0] >= target * small[1]:
        return min(base, most)
    double = min(2 * base, most)
    large = await _try(server, gpu, Profile(plan.model, double), slots, host)
    if large is None:
        return await _back(server, Profile(plan.model, base))
    wanted = context_for(target * large[1], (base, small[0]), (double, large[0]), most)
    if wanted <= double:
        return double if wanted == double else await _settle(server, gpu, plan.model, wanted, base, slots, host)
    return await _settle(server, gpu, plan.model, wanted, double, slots, host)


async def _settle(server: RunServer, gpu: str, model: str, wanted: int, known: int, slots: int, host: RunHost) -> int:
    """``wanted`` if it fits with all slots, else ``known``, which does."""
    if await _try(server, gpu, Profile(model, wanted), slots, host) is not None:
        return wanted
    return await _back(server, Profile(model, known))


async def _try(server: RunServer, gpu: str, profile: Profile, slots: int, host: RunHost) -> tuple[float, float] | None:
    try:
        used = await _loaded(server, gpu, profile, host)
    except ModelError as error:
        _log.info("burnin_context_refused", server=server.id, context=profile.context_length, reason=error.message)
        return None
    return used if server.slots >= slots else None


async def _back(server: RunServer, profile: Profile) -> int:
    await server.load(profile)
    return profile.context_length


async def _loaded(server: RunServer, gpu: str, profile: Profile, host: RunHost) -> tuple[float, float] | None:
    """Load; memory in use after it and in all, in bytes, None where the GPU does not tell."""
    await server.load(profile)
    after_s, deadline_s = time.time() + _SETTLE_S, time.monotonic() + _READING_S
    while time.monotonic() < deadline_s:
        reading = host.reading(gpu)
        if reading is not None and reading.at_s >= after_s:
            used, total = reading.memory_used_bytes, reading.memory_total_bytes
            return (float(used), float(total)) if used is not None and total else None
        await asyncio.sleep(_LOOK_S)
    return None
