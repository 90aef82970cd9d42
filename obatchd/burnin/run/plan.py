"""From an operator's wish to a plan that can be carried out, or to an error that says why not."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from obatchd.documents.burnin import Limits, Plan
from obatchd.errors import ConfigError
from obatchd.jobs.model import round_context
from obatchd.settings.settings import Settings
from obatchd.times import span_s

_HOUR_S = 3600.0
_LEAST_S, _MOST_S = 10.0, 30 * 24 * _HOUR_S
_BUCKETS = 1440  # lines of samples in a run: one a minute in 24 hours
_CANARIES = 6  # output checks of each GPU in a run, at least


# Seconds of load, and whether little stress is not enough for any PASS. How long others test: docs/burnin.md.
PROFILES = {
    "quick": (0.5 * _HOUR_S, False),  # after a repair, or before a long job
    "overnight": (12 * _HOUR_S, False),  # heat, drivers and early failures
    "acceptance": (24 * _HOUR_S, True),  # at 90 % utilisation or more, before a machine is accepted
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


def make(run: str, asked: Asked, gpus: list[str], settings: Settings, retest: Sequence[str] = ()) -> Plan:
    """The plan of a run on these GPUs (UUIDs), of which those in ``retest`` are in quarantine.

    Raises ConfigError where wishes contradict each other, or no model is known.
    """
    if asked.profile not in PROFILES:
        raise ConfigError(f"no profile {asked.profile!r}; there are: {', '.join(PROFILES)}", code="usage")
    if asked.exclusive and asked.with_jobs:
        raise ConfigError(
            "--exclusive keeps jobs away and --with-jobs takes them as the load: choose one of them", code="usage"
        )
    ours = settings.burnin
    model = asked.model or ours.model or settings.model
    if not model and not asked.with_jobs:
        raise ConfigError("no model is named: use --model, or set model or burnin.model in the configuration")
    usual_s, strict = PROFILES[asked.profile]
    wanted_s = duration_s(asked.duration) if asked.duration else usual_s
    return Plan(
        run=run,
        profile=asked.profile,
        duration_s=wanted_s,
        gpus=gpus,
        model=model,
        context_length=round_context(settings.context_length),
        exclusive=asked.exclusive,
        with_jobs=asked.with_jobs,
        fill_vram=not asked.with_jobs,
        # Batch work in other slots changes an answer's rounding, so with jobs there is no output check.
        canary_s=min(ours.canary_s, wanted_s / _CANARIES) if asked.canary and not asked.with_jobs else 0.0,
        canary_runs=ours.canary_runs,
        bucket_s=max(1.0, wanted_s / _BUCKETS),
        strict=strict,
        limits=Limits(**{name: getattr(ours, name) for name in Limits.__struct_fields__}),
        retest=list(retest),
    )
