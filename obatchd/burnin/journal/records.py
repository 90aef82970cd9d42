"""The records of a burn-in run. Report and verdict are functions of these records alone.

Times are seconds since the epoch. ``None`` means that the GPU or driver does not tell, which is never zero.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from obatchd.documents.burnin import Host, Plan
from obatchd.gpus.model import Identity
from obatchd.gpus.track import Track

Consequence = Literal["note", "warn", "inconclusive", "fail"]
Step = Literal["calibrated", "off", "match", "mismatch", "suspect", "confirmed", "cleared"]


class Unit(msgspec.Struct, frozen=True, omit_defaults=True):
    """One GPU of a run and the server that loads it. ``identity`` is for people and the vendor, see the report."""

    uuid: str
    name: str
    index: int
    server: str
    identity: Identity = Identity("")


class Begun(msgspec.Struct, tag="begun", frozen=True):
    """First record of a run."""

    at_s: float
    plan: Plan
    units: list[Unit]
    host: Host
    version: str  # of obatchd


class Prepared(msgspec.Struct, tag="prepared", frozen=True, omit_defaults=True):
    """A server has its model and context; ``problem`` says why it does not."""

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


class Sample(msgspec.Struct, omit_defaults=True):
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
    energy_j: float | None = None
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
    step: Step
    text: str = ""
    digest: str = ""
    deviation: float | None = None  # largest difference of a log probability from the reference


class Tracks(msgspec.Struct, tag="tracks", frozen=True):
    """The track of each GPU, by UUID, without recent readings: a later daemon goes on from there."""

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
