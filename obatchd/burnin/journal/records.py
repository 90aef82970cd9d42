"""What is written down during a burn-in run. Everything that is told about a run is worked out from these records.

Times are seconds since the epoch. ``None`` means that the GPU or driver does not tell, which is never zero.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from obatchd.gpus.track import Track

Consequence = Literal["note", "warn", "inconclusive", "fail"]


class Limits(msgspec.Struct, frozen=True):
    """The criteria of a run that are not those of GPU health, fixed when it starts. Their sources: docs/burnin.md."""

    slower_warn_percent: float = 5.0
    slower_fail_percent: float = 10.0
    stress_power_percent: float = 75.0
    stress_utilisation_percent: float = 90.0
    stress_loaded_percent: float = 95.0
    least_loaded_percent: float = 80.0
    least_seen_percent: float = 95.0
    vram_target_percent: float = 85.0


class Plan(msgspec.Struct, frozen=True):
    """What was asked for."""

    run: str
    profile: str
    duration_s: float  # of load; a gap in which the daemon was down does not count
    gpus: list[str]  # UUIDs
    model: str
    context_length: int  # tokens the filling of VRAM begins with
    exclusive: bool
    with_jobs: bool
    fill_vram: bool
    canary_s: float  # between two output checks of one GPU; 0: none
    canary_runs: int  # of the calibration
    bucket_s: float  # of one line of samples
    strict: bool  # acceptance: too little stress is not enough for any PASS
    limits: Limits
    retest: list[str] = []  # UUIDs of GPUs that were in quarantine at the start; a PASS ends it


class Unit(msgspec.Struct, frozen=True, omit_defaults=True):
    """One GPU of a run and the server that loads it. ``identity`` is for people and the vendor, see the report."""

    uuid: str
    name: str
    index: int
    server: str
    identity: dict[str, Any] = {}


class Begun(msgspec.Struct, tag="begun", frozen=True):
    """First record of a run."""

    at_s: float
    plan: Plan
    units: list[Unit]
    host: dict[str, Any]
    version: str  # of obatchd


class Prepared(msgspec.Struct, tag="prepared", frozen=True, omit_defaults=True):
    """A server has what it is to be loaded with; ``problem`` says why not."""

    at_s: float
    server: str
    model: str
    context_length: int
    slots: int
    vram_percent: float | None = None
    digest: str = ""
    ollama: str = ""
    problem: str = ""


class Loading(msgspec.Struct, tag="loading", frozen=True):
    """The load began on every GPU; from here on the duration counts."""

    at_s: float


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One GPU over one bucket. Means are over the readings of the bucket."""

    seen_s: float = 0.0  # with fresh readings
    loaded_s: float = 0.0  # with requests in a slot
    canary_s: float = 0.0  # kept free for the output check; part of the load
    slot_s: float = 0.0  # busy slots, summed over time
    slots: int = 0
    tokens: int = 0  # answered
    prompt_tokens: int = 0
    requests: int = 0
    failed: int = 0
    utilisation_percent: float | None = None  # mean
    memory_used_bytes: int | None = None  # highest
    memory_total_bytes: int | None = None
    temp_c: float | None = None  # highest
    memory_temp_c: float | None = None  # highest
    power_w: float | None = None  # mean
    power_limit_w: float | None = None
    clock_mhz: float | None = None  # of the multiprocessors, mean
    throttle_s: dict[str, float] = {}  # by cause
    counters: dict[str, int] = {}  # at the end of the bucket


class Bucket(msgspec.Struct, tag="bucket", frozen=True):
    """Samples by GPU UUID."""

    at_s: float  # its end
    span_s: float
    gpus: dict[str, Sample]


class Event(msgspec.Struct, tag="event", frozen=True, omit_defaults=True):
    """Something that happened to a GPU, or to the host when ``gpu`` is empty."""

    at_s: float
    gpu: str
    signal: str  # slug
    text: str
    consequence: Consequence = "note"
    action: str = ""
    verbatim: str = ""  # a line of the kernel log


class Canary(msgspec.Struct, tag="canary", frozen=True, omit_defaults=True):
    """One step of the output check."""

    at_s: float
    gpu: str
    step: Literal["calibrated", "off", "match", "mismatch", "suspect", "confirmed", "cleared"]
    text: str = ""
    digest: str = ""
    deviation: float | None = None  # largest difference of a log probability from the reference


class Tracks(msgspec.Struct, tag="tracks", frozen=True):
    """What the rules of GPU health know of each GPU, by UUID, without recent readings: a later daemon goes on there."""

    at_s: float
    tracks: dict[str, Track]


class Gap(msgspec.Struct, tag="gap", frozen=True):
    """Nothing was loaded and nothing seen: the daemon was not running."""

    from_s: float
    until_s: float
    reason: str


class Ended(msgspec.Struct, tag="ended", frozen=True, omit_defaults=True):
    """Last record of a run. ``verdict`` and ``verdicts`` (by UUID) repeat what the other records show, for lists."""

    at_s: float
    reason: Literal["completed", "stopped", "failed"]
    text: str = ""
    verdict: str = ""
    verdicts: dict[str, str] = {}


Record = Begun | Prepared | Loading | Bucket | Event | Canary | Tracks | Gap | Ended
