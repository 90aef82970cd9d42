"""The energy of jobs: meters of the servers' GPUs on one side, answers on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic as monotonic_s
from typing import NamedTuple, Protocol

from attrs import define, field

from obatchd.delivery.shares import PROMPT_TOKEN, Running, ServerShares, Share, weighed
from obatchd.jobs.store import EnergyRow
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.live.work import Work
from obatchd.spool.outbox import Totals

_WHOLE_PERCENT = 99.5  # from there on nothing is said of the rest
_UNREAD = "the daemon or the driver was started anew meanwhile, or the driver did not answer"
_NOTHING = "it was over before a server of it was metered, or the daemon was started anew meanwhile"


class JobEnergy(NamedTuple):
    """The energy of a job that is over, as the fields of its summary."""

    energy_j: float | None = None
    percent: float = 0.0
    note: str = ""
    tokens_per_j: float | None = None


def energy_of(live: LiveJob, totals: Totals, models: Models) -> JobEnergy:
    """The energy of a job whose results are written."""
    tokens = weighed(totals.prompt_tokens, totals.response_tokens)
    if not tokens:
        return JobEnergy()
    share = min(1.0, live.energy_tokens / tokens)
    tokens_told = share and live.energy_j and totals.response_tokens
    return JobEnergy(
        round(live.energy_j, 3) if share else None,
        round(100 * share, 1),
        _why_not_all(totals, models, share) if 100 * share < _WHOLE_PERCENT else "",
        round(share * totals.response_tokens / live.energy_j, 4) if tokens_told else None,
    )


def _why_not_all(totals: Totals, models: Models, share: float) -> str:
    servers: dict[str, list[str]] = {}  # by reason
    for name in sorted(totals.busy_s):
        if reason := models.why_no_energy(name):
            servers.setdefault(reason, []).append(name)
    told = [f"{', '.join(names)}: {reason}" for reason, names in servers.items()]
    return "; ".join(told) or (_UNREAD if share else _NOTHING)


class SlotsInUse(Protocol):
    """Knows the requests at the servers; :class:`obatchd.dispatch.dispatcher.Dispatcher`."""

    def running(self) -> Mapping[str, Sequence[tuple[int, float]]]:
        """By server: the job, and the beginning (monotonic), of each request that has a slot."""


@define(eq=False)
class EnergyBill:
    """Adds to the energy of each job. Lives in the main loop."""

    _work: Work
    _models: Models
    _slots: SlotsInUse | None = field(default=None, init=False)
    _servers: dict[str, ServerShares] = field(factory=dict, init=False)
    _unkept: dict[int, LiveJob] = field(factory=dict, init=False)

    def start(self, slots: SlotsInUse) -> None:
        self._slots = slots

    def answered(self, job: int, server_id: str, duration_s: float, prompt_tokens: int, response_tokens: int) -> None:
        """A request was answered, just now, after so many seconds in a slot. One of no job bears its part, too."""
        if (shares := self._servers.get(server_id)) is not None:
            now_s = monotonic_s()
            shares.answered(job, now_s - duration_s, now_s, response_tokens + PROMPT_TOKEN * prompt_tokens)

    def look(self) -> None:
        """Take the meters of all servers, where they were read since."""
        running = self._slots.running() if self._slots else {}
        for server_id, slots in running.items():
            if (reading := self._models.energy(server_id)) is None:
                continue
            shares = self._servers.setdefault(server_id, ServerShares())
            if reading.at_s > shares.read_s:
                for job, share in shares.read(reading, [Running(*slot) for slot in slots]).items():
                    self._add(job, share)

    def close(self, live: LiveJob) -> None:
        """A job has all its results: its energy is as much as is known now."""
        running: Mapping[str, Sequence[tuple[int, float]]] | None = None
        for server_id, shares in self._servers.items():
            if shares.owes(live.key):
                if running is None:
                    running = self._slots.running() if self._slots else {}
                self._add(live.key, shares.take(live.key, [Running(*slot) for slot in running.get(server_id, ())]))
        self._unkept.pop(live.key, None)  # the index has it soon

    def stop(self) -> None:
        """The daemon ends: what is known of the energy of all jobs goes into the store with the last commit."""
        for shares in self._servers.values():
            for job in shares.jobs():
                self._add(job, shares.take(job))

    def unkept(self) -> list[tuple[str, EnergyRow]]:
        """The sums of jobs that the store does not know, each given once; with the segment of the job."""
        changed, self._unkept = self._unkept, {}
        return [
            (live.row.segment, EnergyRow(job, live.energy_j, live.energy_tokens))
            for job, live in changed.items()
            if job in self._work.jobs
        ]

    def _add(self, job: int, share: Share) -> None:
        live = self._work.jobs.get(job)
        if live is not None and share.tokens:
            live.energy_j += share.energy_j
            live.energy_tokens += share.tokens
            self._unkept[job] = live
