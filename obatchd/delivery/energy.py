"""What jobs cost, above all their energy: meters of the servers' GPUs on one side, answers on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic as monotonic_s
from typing import NamedTuple, Protocol

from attrs import define, field

from obatchd.delivery.shares import PROMPT_TOKEN, Running, ServerShares, Share, weighed
from obatchd.dispatch.events import Finished
from obatchd.documents.jobs import CostSoFar
from obatchd.jobs.store import CostRow
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


def cost_so_far(live: LiveJob) -> CostSoFar | None:
    """What a job in work has cost; None where nothing was answered yet."""
    tokens = weighed(live.prompt_tokens, live.response_tokens)
    if not tokens:
        return None
    share = min(1.0, live.energy_tokens / tokens)
    told = round(share * live.response_tokens / live.energy_j, 4) if share and live.energy_j else None
    return CostSoFar(live.prompt_tokens, live.response_tokens, round(live.gpu_s, 3), told)


def _why_not_all(totals: Totals, models: Models, share: float) -> str:
    servers: dict[str, list[str]] = {}  # by reason
    for name in sorted(totals.busy_s):
        if reason := models.why_no_energy(name):
            servers.setdefault(reason, []).append(name)
    told = [f"{', '.join(names)}: {reason}" for reason, names in servers.items()]
    return "; ".join(told) or (_UNREAD if share else _NOTHING)


def _cost(live: LiveJob) -> CostRow:
    return CostRow(live.key, live.energy_j, live.energy_tokens, live.gpu_s, live.prompt_tokens, live.response_tokens)


class SlotsInUse(Protocol):
    """Knows the requests at the servers; :class:`obatchd.dispatch.dispatcher.Dispatcher`."""

    def running(self) -> Mapping[str, Sequence[tuple[int, float]]]:
        """By server: the job, and the beginning (monotonic), of each request that has a slot."""


@define(eq=False)
class EnergyBill:
    """Adds to what each job has cost. Lives in the main loop."""

    _work: Work
    _models: Models
    _slots: SlotsInUse | None = field(default=None, init=False)
    _servers: dict[str, ServerShares] = field(factory=dict, init=False)
    _unkept: dict[int, LiveJob] = field(factory=dict, init=False)

    def start(self, slots: SlotsInUse) -> None:
        self._slots = slots

    def answered(self, job: int, server_id: str, duration_s: float, prompt_tokens: int, response_tokens: int) -> None:
        """A request was answered, just now, after so many seconds in a slot."""
        if (shares := self._servers.get(server_id)) is not None:
            now_s = monotonic_s()
            shares.answered(job, now_s - duration_s, now_s, response_tokens + PROMPT_TOKEN * prompt_tokens)

    def count(self, live: LiveJob, answers: Sequence[Finished]) -> None:
        """These answers are durable: add what they cost to what is told of the job while it runs."""
        busy_s: dict[str, float] = {}
        for answer in answers:
            busy_s[answer.server] = busy_s.get(answer.server, 0.0) + answer.duration_s
            self.answered(live.key, answer.server, answer.duration_s, answer.prompt_tokens, answer.response_tokens)
        live.gpu_s += sum(of_server_s * self._models.gpus_per_slot(name) for name, of_server_s in busy_s.items())
        live.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        live.response_tokens += sum(answer.response_tokens for answer in answers)
        self._unkept[live.key] = live

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

    def unkept(self) -> list[tuple[str, CostRow]]:
        """The sums of jobs that the store does not know, each given once; with the segment of the job."""
        changed, self._unkept = self._unkept, {}
        return [(live.row.segment, _cost(live)) for job, live in changed.items() if job in self._work.jobs]

    def _add(self, job: int, share: Share) -> None:
        live = self._work.jobs.get(job)
        if live is not None and share.tokens:
            live.energy_j += share.energy_j
            live.energy_tokens += share.tokens
            self._unkept[job] = live
