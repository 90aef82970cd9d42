"""GPUs of several reports beside each other."""

from __future__ import annotations

import msgspec

from obatchd.documents import Document, Number


class ComparedGpu(msgspec.Struct):
    """A GPU beside others of its kind."""

    report: int  # number of its report, as they were given, from 0
    hostname: str
    run: str
    index: int
    uuid: str
    verdict: str
    tokens_per_s: float | None
    power_percent: Number | None
    clock_mhz: Number | None
    temp_c: Number | None
    of_median_percent: float | None = None  # its tokens per second, of the median of the others
    tokens_per_j: float | None = None
    tokens_per_j_of_median_percent: float | None = None  # of the median of those others that tell it
    operations_per_s: dict[str, float] = {}  # of matrix products, by precision
    memory_bytes_per_s: float | None = None
    covered_bytes: int | None = None  # of its memory
    link_bytes_per_s: dict[str, float] = {}  # to_host, from_host, to_peer (the slowest of its peers)
    stress_of_median_percent: dict[str, float] = {}  # of each of these, by precision, "memory", or link
    library: str = ""  # that computed the products; those of one library are compared
    memory_temp_c: Number | None = None  # highest
    most_power_percent: Number | None = None  # of the limit: the median of the phase with the most
    covered_percent: Number | None = None  # of the memory that was free
    wrong: int = 0  # results, and words of memory
    wrong_at: str = ""  # the first of them: tile, or address and bits
    pcie_gen: int | None = None
    pcie_width: int | None = None  # lanes
    nvlink_errors: int | None = None  # during the run; null where the card has no NVLink, or does not tell
    judgement: str = ""  # "as the others", "warn: …", "FAIL: …"


class ComparedGroup(msgspec.Struct):
    """GPUs of one kind that did the same work."""

    name: str
    model: str
    model_digest: str
    context_length: int | None
    slots: int | None
    tokens_per_s: float | None  # median
    gpus: list[ComparedGpu]
    hosts: list[str]  # reports that are slower than the others as a whole, in words
    hosts_fail: bool


class Comparison(Document, kw_only=True):
    """``obatchctl burnin compare --json``."""

    kind: str = "obatchd-burnin-comparison"
    verdict: str  # the worst of the comparison and of the reports' own
    exit_code: int
    meaning: str
    groups: list[ComparedGroup]
    left_out: list[str]  # runs that could not be compared, in words
