"""The rows of a segment's tables as types, and the key of a request.

A request's row id is ``job key << 32 | line``: one integer key gives input order, range scans per job and the last
line of defence against a second result at once.
"""

from __future__ import annotations

import msgspec

from obatchd.jobs.model import Outcome, Refusal

_LINE_BITS = 32
LINE_MASK = (1 << _LINE_BITS) - 1
REFUSED_LANE = -1  # requests refused while indexing belong to no lane


def request_key(job: int, line: int) -> int:
    """The row id of a request."""
    return job << _LINE_BITS | line


def keys_of(job: int) -> tuple[int, int]:
    """The row ids of a job's requests lie between these two."""
    return job << _LINE_BITS, (job + 1) << _LINE_BITS


class LaneRow(msgspec.Struct):
    """Requests of one job that ask for the same model, context and priority."""

    job: int
    lane: int
    model: str | None
    context_length: int | None  # tokens as asked; None: the job's or daemon's
    priority: str | None
    requests: int
    finished: int = 0


class ResultRow(msgspec.Struct, array_like=True):
    job: int
    line: int
    lane: int
    outcome: Outcome
    record: bytes


class AttemptRow(msgspec.Struct, array_like=True):
    """An attempt that ended in a fault or outlived a commit; ``fault`` is empty while it runs."""

    job: int
    line: int
    attempt: int
    server: str
    started_s: float
    fault: str = ""
    spent_s: float = 0.0


class CostRow(msgspec.Struct, array_like=True):
    """What a job has cost so far. The energy is that of GPUs, for so many weighed tokens."""

    job: int
    energy_j: float
    energy_tokens: float
    gpu_s: float
    prompt_tokens: int
    response_tokens: int


class IndexedChunk(msgspec.Struct):
    """The additions of one call of :meth:`~obatchd.jobs.store.segment.Segment.write_index` for a job."""

    job: int
    lanes: list[LaneRow]  # of this chunk's requests, ``requests`` counts the chunk's own
    lane_of: list[int]  # lane of every entry given; REFUSED_LANE where it was refused
    refusals: list[Refusal]  # of this chunk's lines that cannot be run

    @property
    def refused(self) -> int:
        """How many they are."""
        return len(self.refusals)
