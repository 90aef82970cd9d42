"""Jobs that are not done yet, as the main loop sees them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from obatchd.counters import RateMeter
from obatchd.dispatch.protocol import JobContext
from obatchd.documents import excerpt
from obatchd.jobs.lane import Lane
from obatchd.jobs.model import JobState, Outcome, Profile
from obatchd.jobs.store import CostRow, JobRow, LaneRow

_RATE_WINDOW_S = 30


class Ending(NamedTuple):
    """Why a job is over before all its requests are answered: the outcome of the others."""

    outcome: Outcome
    code: str
    message: str


CANCELLED = Ending(Outcome.CANCELLED, "cancelled", "the job was cancelled")


class Turn(NamedTuple):
    """Where a job stands that has not begun."""

    position: int  # 1: the next to get a slot
    starts_s: float | None  # wall clock; None while nothing tells how fast it goes


class LiveJob:
    """One job between acceptance and ``summary.json``. Only the main loop changes it."""

    def __init__(self, row: JobRow, outbox: Path) -> None:
        self.row = row
        self.frozen = row.frozen
        self.outbox = outbox
        self.lanes: dict[int, Lane] = {}
        self.requests = 0  # indexed so far
        self.indexed = False
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, tuple[int, str]] = {}  # how many by code, and the message of the first
        self.paused = row.paused
        self.ending = CANCELLED if row.cancelled else None
        self.resumed = False  # taken up again after a restart: response files may be missing
        self.publishing = False
        self.answered_s: float | None = None  # wall clock: when every request had its result
        self.refused = 0  # requests that were refused when they were read
        self.asked_before: set[int] = set()  # context lengths of requests that an earlier run finished
        self.looking_back = bool(row.settings.skip_done)  # earlier answers are looked for: nothing is offered yet
        self.turn: Turn | None = None  # None once it has begun
        self.energy_j = 0.0  # of GPUs, so far
        self.energy_tokens = 0.0  # weighed tokens that it is for; see obatchd.delivery.shares
        self.gpu_s = 0.0  # so far, as the next two
        self.prompt_tokens = 0
        self.response_tokens = 0
        self.hindrance = ""  # a server's bad answer since its latest result, in words
        self.status_written: tuple[Any, ...] = ()
        self._rate = RateMeter(_RATE_WINDOW_S)
        self._token_rate = RateMeter(_RATE_WINDOW_S)

    @property
    def key(self) -> int:
        return self.row.key

    @property
    def cancelled(self) -> bool:
        return self.ending is CANCELLED

    @property
    def expires_s(self) -> float | None:
        """Wall-clock time at which the job's deadline passes, or None."""
        return self.frozen.expires_s(self.row.accepted_s)

    @property
    def finished(self) -> int:
        return self.counts.total()

    @property
    def complete(self) -> bool:
        """Whether every request has its result."""
        return self.indexed and self.finished >= self.requests

    def profile_of(self, lane: LaneRow) -> Profile:
        """The profile of the lane's requests: their own fields over the settings frozen with the job."""
        asked = lane.context_length or self.frozen.context_length
        return Profile.of(lane.model or self.frozen.model, asked)

    def priority_of(self, lane: LaneRow) -> str:
        return lane.priority or self.frozen.priority

    def context(self) -> JobContext:
        """The common part of the job's requests, for its workers."""
        return excerpt(JobContext, self.frozen, job=self.key, name=self.row.job)

    def take_up(self, cost: CostRow) -> None:
        """What an earlier run of the daemon has spent on the job."""
        self.energy_j, self.energy_tokens, self.gpu_s = cost.energy_j, cost.energy_tokens, cost.gpu_s
        self.prompt_tokens, self.response_tokens = cost.prompt_tokens, cost.response_tokens

    def count(self, outcome: Outcome, requests: int = 1, tokens: int = 0) -> None:
        """``requests`` more have this outcome, with so many tokens in their answers."""
        self.counts[outcome.value] += requests
        self.hindrance = ""
        self._rate.add(requests)
        if tokens:
            self._token_rate.add(tokens)

    def blame(self, code: str, message: str, requests: int = 1) -> None:
        """``requests`` more failed with this code."""
        count, first = self.failures.get(code, (0, message))
        self.failures[code] = (count + requests, first)

    def requests_per_s(self) -> float:
        """Results per second over the last thirty seconds."""
        return self._rate.per_s()

    def tokens_per_s(self) -> float:
        """Tokens of finished answers per second over the last thirty seconds."""
        return self._token_rate.per_s()

    def state(self) -> JobState:
        return JobState.PUBLISHING if self.publishing else self.row.state

    @property
    def text_suffix(self) -> str:
        """The ending of the responses' text files."""
        return f".{self.frozen.response_text}"

    def response_files(self) -> bool:
        """Whether each response gets files of its own."""
        if self.frozen.response_files == "auto":
            return self.requests <= self.frozen.response_files_limit
        return self.frozen.response_files == "always"
