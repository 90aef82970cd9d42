"""From an operator's wish to a plan that can be carried out, or to an error that says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from obatchd.documents.burnin.plan import Limits, Phase, Plan
from obatchd.errors import ConfigError
from obatchd.jobs.model import round_context
from obatchd.settings.settings import Settings
from obatchd.times import span_s

_HOUR_S = 3600.0
_LEAST_S, _MOST_S = 10.0, 30 * 24 * _HOUR_S
_BUCKETS = 1440  # lines of samples in a run: one a minute in 24 hours
_CANARIES = 6  # output checks of each GPU in a run, at least

MODEL, COMPUTE, MEMORY, JOBS = "model", "compute", "memory", "jobs"
STRESS = (COMPUTE, MEMORY)  # of the stress process
OUTSIDE = ("dcgm", "gpu-burn")  # programs of others
LOADS = (MODEL, *STRESS, *OUTSIDE)
_OUTSIDE_PART = 0.25  # of a run, for each

# Seconds of load, and whether little stress is not enough for any PASS. How long others test: docs/burnin.md.
PROFILES = {
    "quick": (0.5 * _HOUR_S, False),  # after a repair, or before a long job
    "overnight": (12 * _HOUR_S, False),  # heat, drivers and early failures
    "acceptance": (24 * _HOUR_S, True),  # at 90 % utilisation or more, before a machine is accepted
}
_LONG = (((MODEL,), 0.4), ((COMPUTE,), 0.15), ((MEMORY,), 0.15), ((MODEL, COMPUTE, MEMORY), 0.3))
_PHASES: dict[str, tuple[tuple[tuple[str, ...], float], ...]] = {
    "quick": (((MODEL,), 0.6), ((COMPUTE, MEMORY), 0.4)),
    "overnight": _LONG,  # each in turn, then all together
    "acceptance": _LONG,
}


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The wish as ``obatchctl burnin start`` sends it."""

    gpus: list[str] = []  # UUIDs or indices; empty: all that have a server
    duration: str = ""
    model: str = ""
    profile: str = "overnight"
    exclusive: bool = False
    with_jobs: bool = False
    canary: bool = True
    load: list[str] = []  # of LOADS; empty: those of the profile
    hosts: list[str] = []  # names of hosts that joined, or "all" with the head's own machine; empty: this machine


def duration_s(text: str) -> float:
    """Seconds in ``90s``, ``15m``, ``12h``, ``1d12h``.

    Raises ConfigError where it is no length of time, under 10 seconds or over 30 days.
    """
    try:
        total_s = span_s(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no length of time; write 90s, 15m, 12h or 1d12h", code="usage") from None
    if not _LEAST_S <= total_s <= _MOST_S:
        raise ConfigError(f"{text} is out of range: a burn-in takes 10 seconds to 30 days", code="usage")
    return total_s


def make(
    run: str,
    asked: Asked,
    gpus: list[str],
    settings: Settings,
    retest: Sequence[str] = (),
    missing: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of a run on these GPUs (UUIDs), of which those in ``retest`` are in quarantine.

    ``missing`` are the loads that this host cannot have, each with the reason and what to install. Raises ConfigError
    where wishes contradict each other, no model is known, or such a load is asked for (``not_installed``).
    """
    _check(asked)
    ours = settings.burnin
    phases, left_out = _phases(asked, missing or {})
    loads = {load for phase in phases for load in phase.loads}
    model = asked.model or ours.model or settings.model
    if not model and MODEL in loads:
        raise ConfigError("no model is named: use --model, or set model or burnin.model in the configuration")
    usual_s, strict = PROFILES[asked.profile]
    wanted_s = duration_s(asked.duration) if asked.duration else usual_s
    # Batch work, or a load beside the model, changes an answer's rounding.
    checked = asked.canary and any(phase.loads == [MODEL] for phase in phases)
    return Plan(
        run=run,
        profile=asked.profile,
        duration_s=wanted_s,
        gpus=gpus,
        model=model if MODEL in loads or asked.with_jobs else "",
        context_length=round_context(settings.context_length),
        exclusive=asked.exclusive,
        with_jobs=asked.with_jobs,
        fill_vram=not asked.with_jobs,
        canary_s=min(ours.canary_s, wanted_s / _CANARIES) if checked else 0.0,
        canary_runs=ours.canary_runs,
        bucket_s=max(1.0, wanted_s / _BUCKETS),
        strict=strict,
        limits=Limits(**{name: getattr(ours, name) for name in Limits.__struct_fields__}),
        retest=list(retest),
        phases=phases,
        memory_percent=ours.memory_percent,
        left_out=left_out,
    )


def named(asked: Asked, whole: Plan) -> Asked:
    """The wish to one host of a run, with the settings of the head in it: the host's may differ."""
    return msgspec.structs.replace(asked, model=whole.model or asked.model, duration=f"{whole.duration_s:.0f}s")


def of_host(made: Plan, whole: Plan) -> Plan:
    """The plan of one host, ``made`` by itself, as its part of a run over several: measured and judged as the whole.

    The GPUs are its own, and so are loads that it cannot have.
    """
    return msgspec.structs.replace(
        made,
        run=whole.run,
        duration_s=whole.duration_s,
        context_length=whole.context_length,
        canary_s=whole.canary_s if made.canary_s else 0.0,
        canary_runs=whole.canary_runs,
        bucket_s=whole.bucket_s,
        limits=whole.limits,
        memory_percent=whole.memory_percent,
        over_hosts=True,
    )


def _check(asked: Asked) -> None:
    if asked.profile not in PROFILES:
        raise ConfigError(f"no profile {asked.profile!r}; there are: {', '.join(PROFILES)}", code="usage")
    if asked.exclusive and asked.with_jobs:
        raise ConfigError(
            "--exclusive keeps jobs away and --with-jobs takes them as the load: choose one of them", code="usage"
        )
    if unknown := [load for load in asked.load if load not in LOADS]:
        raise ConfigError(f"no load {unknown[0]!r}; there are: {', '.join(LOADS)}", code="usage")


def _phases(asked: Asked, missing: Mapping[str, str]) -> tuple[list[Phase], dict[str, str]]:
    """The phases of a run, and the loads of its profile that are left out, each with the reason."""
    if asked.with_jobs:
        if asked.load:
            raise ConfigError("--with-jobs takes jobs as the load: leave out --load, or --with-jobs", code="usage")
        return [Phase([JOBS], 1.0)], {}
    if absent := [load for load in asked.load if load in missing]:
        raise ConfigError(f"the load {absent[0]} cannot be had: {missing[absent[0]]}", code="not_installed")
    usual = _PHASES[asked.profile]
    wanted = asked.load or [load for load in LOADS if any(load in loads for loads, _ in usual) and load not in missing]
    parts: dict[tuple[str, ...], float] = {}
    for loads, part in usual:
        if chosen := tuple(load for load in loads if load in wanted):
            parts[chosen] = parts.get(chosen, 0.0) + part
    inside = 1.0 - _OUTSIDE_PART * sum(load in wanted for load in OUTSIDE)
    scale = inside / sum(parts.values()) if parts else 0.0
    outside = [load for load in OUTSIDE if load in wanted]
    phases = [Phase(list(loads), round(part * scale, 6)) for loads, part in parts.items()]
    phases += [Phase([load], _OUTSIDE_PART if parts else 1 / len(outside)) for load in outside]
    left_out = {load: missing[load] for load in STRESS if load in missing} if not asked.load else {}
    return phases, left_out


def phase_at(phases: Sequence[Phase], share: float) -> int:
    """The number of the phase in which a run is when ``share`` of its duration is over."""
    end = 0.0
    for number, phase in enumerate(phases):
        end += phase.part
        if share < end:
            return number
    return max(0, len(phases) - 1)
