"""What the loads of a burn-in beside the model came to, in its report: one GPU in each."""

from __future__ import annotations

import msgspec

from obatchd.documents import Number


class ProductSpeed(msgspec.Struct):
    """Matrix products of one precision, while no model ran beside them."""

    precision: str  # FP32, TF32, FP16, BF16, FP8
    operations: int  # additions and multiplications
    operations_per_s: float | None  # of the time in which the GPU multiplied
    of_median_percent: float | None = None  # of the median of GPUs like it


class MemoryTest(msgspec.Struct):
    """Patterns in the memory. Speeds are those while no model ran."""

    covered_bytes: int  # read back and compared, in the phase with the most
    free_bytes: int  # in that phase, when it began
    covered_percent: Number | None  # of what was free
    of_card_percent: Number | None
    passes: int  # whole passes of a pattern
    checked_bytes: int  # all
    bytes_per_s: float | None  # written and read, of the time in which that was done
    of_median_percent: float | None = None


class LinkResult(msgspec.Struct):
    """Bandwidth of one link, the median of its measurements."""

    kind: str  # to_host, from_host, to_peer
    peer: str  # UUID
    bytes_per_s: float
    of_median_percent: float | None = None  # of the median of GPUs like it; of peers, the slowest and the median one


class WrongPlace(msgspec.Struct):
    """A wrong result, or a wrong word of memory."""

    at: str
    load: str  # compute, memory
    place: str  # tile and precision, or address and bits
    pattern: str
    expected: str
    found: str
    times: int


class OutsideResult(msgspec.Struct):
    """A program of others that was a load: what it says, as far as it can be believed."""

    program: str  # dcgm, gpu-burn
    outcome: str  # passed, partly (some tests were left out), wrong_results, failed, not_done
    text: str  # follows its name


class PhaseResult(msgspec.Struct):
    """One GPU in one phase."""

    loads: list[str]
    loaded_s: Number
    utilisation_percent: Number | None
    power_w: Number | None  # median
    power_percent: Number | None  # of the limit, median
    clock_mhz: Number | None
    temp_c: Number | None  # highest
    memory_temp_c: Number | None  # highest


class StressLoads(msgspec.Struct):
    """The loads beside the model."""

    library: str = ""  # that computed, with its version
    products: list[ProductSpeed] = []
    memory: MemoryTest | None = None
    links: list[LinkResult] = []
    wrong_tiles: int = 0
    wrong_words: int = 0
    wrong: list[WrongPlace] = []  # the first ones
    ended: str = ""  # why they ended before their time
    outside: list[OutsideResult] = []
