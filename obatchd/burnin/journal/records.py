"""The records of a burn-in run. Report and verdict are functions of these records alone.

Times are seconds since the epoch. ``None`` means that the GPU or driver does not tell, which is never zero.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from obatchd.documents.burnin.plan import Host, Plan
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
    host: str = ""  # that joined; empty: the machine of the daemon itself

    @property
    def called(self) -> str:
        """In commands and sentences, where an index alone may mean a GPU of each host."""
        return f"{self.host}/{self.index}" if self.host else str(self.index)


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


class PhaseBegun(msgspec.Struct, tag="phase", frozen=True):
    """The loads of a phase run on every GPU that can have them; also after a restart of the daemon within it."""

    at_s: float
    number: int  # from 0
    loads: list[str]


class StressOpened(msgspec.Struct, tag="stress_opened", frozen=True):
    """The loads beside the model can run on a GPU."""

    at_s: float
    gpu: str
    library: str
    version: str
    device: str
    precisions: list[str]


class WrongResult(msgspec.Struct, tag="wrong", frozen=True, omit_defaults=True):
    """A wrong result of a product, or a wrong word of memory, where its place was told; samples count all."""

    at_s: float
    gpu: str
    load: Literal["compute", "memory", "links"]
    place: str
    pattern: str
    expected: str
    found: str
    times: int = 1


class LinkSpeed(msgspec.Struct, tag="link", frozen=True, omit_defaults=True):
    """One measurement; ``peer`` is the UUID of the other GPU."""

    at_s: float
    gpu: str
    kind: Literal["to_host", "from_host", "to_peer"]
    bytes_per_s: float
    peer: str = ""


class StressEnded(msgspec.Struct, tag="stress_ended", frozen=True, omit_defaults=True):
    """The loads beside the model ended on a GPU before their time, and do not begin again in this run.

    ``code``: ``hung``, ``died``, ``memory_limit``, ``stopped`` (near its shutdown temperature), or what the process
    tells as trouble.
    """

    at_s: float
    gpu: str
    code: str
    text: str


class OutsideEnded(msgspec.Struct, tag="outside", frozen=True, omit_defaults=True):
    """A program of others has ended on a GPU."""

    at_s: float
    gpu: str
    program: str  # dcgm, gpu-burn
    outcome: Literal["passed", "partly", "wrong_results", "failed", "not_done"]  # see burnin.stress.outside.outcome
    text: str  # follows the name of the program


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
    stress_s: float = 0.0  # with a load beside the model
    operations: dict[str, int] = {}  # of matrix products, by precision
    operating_s: dict[str, float] = {}  # in which the GPU multiplied
    firsts: dict[str, str] = {}  # by precision: a digest of the first product, to which all others are compared
    wrong_tiles: int = 0
    wrong_words: int = 0
    bytes_written: int = 0
    bytes_checked: int = 0
    accessing_s: float = 0.0  # in which the memory was written and read
    covered_bytes: int = 0  # read back and compared since the load "memory" began; highest
    free_bytes: int = 0  # when it began
    passes: int = 0  # whole ones of a pattern, since it began; highest

    @property
    def under_load_s(self) -> float:
        """With any load, output checks of the model included."""
        return max(self.loaded_s + self.canary_s, self.stress_s)


class Bucket(msgspec.Struct, tag="bucket", frozen=True, omit_defaults=True):
    """Samples by GPU UUID."""

    at_s: float  # its end
    span_s: float
    gpus: dict[str, Sample]
    between: bool = False  # the loads of one phase were exchanged for those of the next: no part of the duration


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


Record = (
    Begun | Prepared | Loading | PhaseBegun | StressOpened | StressEnded | WrongResult | LinkSpeed | OutsideEnded
    | Bucket | Event | Canary | Tracks | Gap | Ended
)  # fmt: skip
