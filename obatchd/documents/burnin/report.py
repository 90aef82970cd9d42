"""How a run goes and went: its report, its series, and the list of runs."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from obatchd.documents import Document, Number
from obatchd.documents.burnin.loads import PhaseResult, StressLoads
from obatchd.documents.burnin.plan import Host, Plan
from obatchd.documents.gpus import Identity

KIND = "obatchd-burnin-report"


class BurninBrief(msgspec.Struct):
    """The run in progress in a few words."""

    run: str
    state: str  # preparing, loading
    elapsed_s: Number  # of load
    asked_s: float
    gpus: list[str]  # UUIDs
    loads: list[str] = []  # of the present phase


class BurninReason(msgspec.Struct):
    """One reason of a verdict: the observation, and the criterion that it meets."""

    consequence: str  # fail, inconclusive, warn, note
    signal: str  # slug
    text: str
    action: str
    at: str | None  # first seen


class BurninEvent(msgspec.Struct):
    """Something that happened to a GPU, or to the host."""

    at: str
    signal: str  # slug
    text: str
    consequence: str  # as of a reason
    action: str
    verbatim: str  # a line of the kernel log


class BurninLoad(msgspec.Struct):
    """The load of a GPU; empty while it is being prepared."""

    model: str = ""
    model_digest: str = ""
    ollama: str = ""
    context_length: int | None = None  # tokens
    slots: int | None = None


class Stress(msgspec.Struct):
    """How hard a GPU worked, over the time under load."""

    loaded_s: Number  # with requests in a slot, output checks included
    canary_s: Number  # of it for output checks
    seen_s: Number  # of the run, with fresh readings
    slots_busy_percent: Number | None  # outside of output checks
    utilisation_percent: Number | None
    power_w: Number | None  # median
    power_limit_w: Number | None
    power_percent: Number | None  # of the limit, median
    power_p95_percent: Number | None
    clock_mhz: Number | None
    temp_c: Number | None  # highest
    memory_temp_c: Number | None  # highest
    vram_bytes: int | None
    vram_percent: Number | None


class BurninWork(msgspec.Struct):
    """The answered work."""

    tokens: int
    prompt_tokens: int
    requests: int
    failed: int
    tokens_per_s: float | None  # in the last hour of load
    tokens_per_s_at_first: float | None  # in its first hour, where that is another one
    energy_j: float | None = None  # of the time under load, where the GPU told it; null where it tells none
    tokens_per_j: float | None = None  # answered in that time


class OutputCheck(msgspec.Struct):
    """The output check of one GPU."""

    state: str  # on, off
    text: str
    checks: int
    mismatches: int
    confirmed: int
    largest_deviation: float | None  # of a log probability


class CounterChange(msgspec.Struct):
    """A counter of the driver over the run."""

    start: int
    end: int
    change: int


class Series(msgspec.Struct):
    """One value for each bucket, parallel to the report's ``at``."""

    utilisation_percent: list[Number | None]
    memory_used_bytes: list[Number | None]
    temp_c: list[Number | None]
    memory_temp_c: list[Number | None]
    power_w: list[Number | None]
    clock_mhz: list[Number | None]
    tokens_per_s: list[float]
    throttled_percent: list[float]
    errors_uncorrected: list[int]  # since the beginning
    errors_corrected: list[int]
    operations_per_s: list[float] = []  # of matrix products
    checked_bytes_per_s: list[float] = []  # of memory
    covered_bytes: list[int] = []  # of memory, in this phase


class BurninGpu(msgspec.Struct, kw_only=True):
    """One GPU of a run, without series and events, which fill pages."""

    uuid: str
    name: str
    index: int
    server: str
    identity: Identity
    verdict: str  # PASS, PASS_LOW_STRESS, INCONCLUSIVE, FAIL
    action: str  # what to do
    reasons: list[BurninReason]  # the gravest first
    load: BurninLoad
    stress: Stress
    work: BurninWork
    canary: OutputCheck
    throttle_s: dict[str, float]  # by cause: hw_thermal, hw_power_brake, hw_slowdown (not told), sw_thermal
    counters: dict[str, CounterChange]
    stress_loads: StressLoads = msgspec.field(default_factory=StressLoads)
    phases: list[PhaseResult] = []
    host: str | UnsetType = UNSET  # that joined, and has it; missing: the machine of the daemon itself


class BurninGpuPages(BurninGpu, kw_only=True):
    """One GPU of a report."""

    events: list[BurninEvent]
    series: Series


class GpuSeries(Series, kw_only=True):
    """The series of one GPU."""

    uuid: str
    index: int
    name: str
    server: str
    host: str | UnsetType = UNSET  # as of a GPU of the report


class BurninGap(msgspec.Struct, rename={"since": "from"}):
    """Nothing was loaded and nothing seen."""

    since: str
    until: str
    reason: str


class BegunPhase(msgspec.Struct):
    """A phase that has begun."""

    number: int  # from 0
    loads: list[str]
    at: str


class BurninHost(msgspec.Struct):
    """One host of a run over several."""

    host: str  # empty: the machine of the head
    state: str  # waiting, preparing, loading; completed, stopped, failed; not_begun, lost
    reason: str  # why it did not take part as it should
    verdict: str  # the worst of its GPUs
    gpus: int
    elapsed_s: Number  # of load
    machine: Host
    version: str  # of its obatchd; empty while it has told nothing


class _Run(Document, kw_only=True):
    """The verdicts of an unfinished run say what they would be now."""

    kind: str = KIND
    run: str
    version: str  # of obatchd
    state: str  # preparing, loading, completed, stopped, failed
    verdict: str  # the worst of its GPUs
    exit_code: int  # 0 PASS, 1 FAIL, 2 INCONCLUSIVE
    meaning: str
    plan: Plan
    host: Host
    started_at: str
    loading_at: str | None
    ended_at: str | None
    end: str  # why
    asked_s: float  # of load
    elapsed_s: Number  # of load
    gaps: list[BurninGap]
    phases: list[BegunPhase] = msgspec.field(default_factory=list)  # the same one again after a gap
    hosts: list[BurninHost] | UnsetType = UNSET  # of a run over several
    outliers: list[str] | UnsetType = UNSET  # hosts that are slower than the others as a whole, in words


class BurninHead(_Run, kw_only=True):
    """``POST /v1/burnin/stop``: a report without series and events."""

    gpus: list[BurninGpu]


class BurninStatus(BurninHead, kw_only=True):
    """``GET /v1/burnin/status`` and ``POST /v1/burnin``: the run in progress, or the latest."""

    active: bool


class BurninReport(_Run, kw_only=True):
    """``GET /v1/burnin/reports/RUN``; also a file."""

    events: list[BurninEvent]  # of the host
    at: list[str]  # end of each bucket
    gpus: list[BurninGpuPages]


class BurninSeries(msgspec.Struct):
    """``GET /v1/burnin/series``: how a run went so far; of many buckets several are drawn together."""

    run: str
    state: str  # as of the report
    active: bool
    elapsed_s: Number  # of load
    asked_s: float
    at_s: list[float]  # end of each bucket, in seconds since the epoch
    gaps: list[BurninGap]
    gpus: list[GpuSeries]


class ListedGpu(msgspec.Struct):
    """A GPU of a run in the list."""

    uuid: str
    index: int
    name: str
    verdict: str  # empty until the end
    host: str | UnsetType = UNSET  # as of a GPU of the report


class ListedRun(msgspec.Struct, kw_only=True):
    """A run in the list; one whose journal cannot be read has only its id, the state ``damaged`` and why."""

    run: str
    state: str  # active, unfinished, completed, stopped, failed, damaged
    verdict: str | UnsetType = UNSET  # empty until the end
    profile: str | UnsetType = UNSET
    asked_s: float | UnsetType = UNSET
    started_at: str | UnsetType = UNSET
    ended_at: str | UnsetType | None = UNSET
    end: str  # why
    gpus: list[ListedGpu] | UnsetType = UNSET
    hosts: list[str] | UnsetType = UNSET  # names, of a run over several


class BurninRuns(msgspec.Struct):
    """``GET /v1/burnin``: newest first."""

    runs: list[ListedRun]


class ToolOutcome(msgspec.Struct):
    """One tool of the vendor that was run for a bundle."""

    tool: str
    command: str
    outcome: str  # in words
