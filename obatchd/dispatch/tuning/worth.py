"""Whether a change of a server's slots is worth its reload now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from obatchd.dispatch.link import Link
from obatchd.dispatch.tuning.found import Key
from obatchd.dispatch.tuning.ports import Clock, InteractiveWork
from obatchd.dispatch.tuning.turns import Turn, Turns
from obatchd.jobs.lane import Lane
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue
from obatchd.times import duration

PAYS = 10  # times the cost of a change: the least work that has to wait
_YOUNG_S = 600.0  # a job has its first ten minutes for itself
_SHORT_S = 3600.0  # where it ends within an hour
_RESTART_S = 2.0  # what a restart takes besides the load


@attrs.define(eq=False)
class Worth:
    """Looks at the queue of a profile, in seconds of all servers that serve it."""

    _queue: JobQueue
    _links: Mapping[str, Link]
    _turns: Turns
    _interactive: InteractiveWork
    _clock: Clock

    def against(self, link: Link, key: Key, *, measure_s: float = 0.0) -> str:
        """Why the server gets no other slots now, in words; empty where it may.

        ``measure_s`` is the time for which the change is to be watched: then it may have gained nothing.
        """
        if not self._interactive.waits() and (early := self._turns.against(link, key)):
            return early
        cost_s = self._cost_s(link, self._turns.of(link))
        need_s = PAYS * cost_s * (2 if measure_s else 1) + measure_s
        return self._against(link, key.profile, need_s, "a change pays")

    def against_fewer(self, link: Link, profile: Profile, measure_s: float) -> str:
        """Why the server may not work with fewer of its slots for ``measure_s``, in words; empty where it may.

        That takes no reload, and costs about half of that time: as many slots or more are at work as half of the best.
        """
        return self._against(link, profile, PAYS * measure_s / 2, "measuring fewer slots pays")

    def _against(self, link: Link, profile: Profile, need_s: float, what_pays: str) -> str:
        if self._interactive.waits():
            return "somebody waits for an answer"
        serving = [other for other in self._links.values() if other.server.ready and other.server.loaded == profile]
        if link not in serving:
            serving.append(link)
        slots = sum(other.server.slots for other in serving)
        mean_s = self._mean_s(link, serving)
        queue_s = self._queue.waiting(profile) * mean_s / slots
        if queue_s < need_s:
            return f"what waits takes {duration(queue_s)}, and {what_pays} from {duration(need_s)} on"
        if self._disturbs(self._queue.lanes_of_profile(profile), mean_s / slots, queue_s):
            return "a job that ends within an hour is in its first ten minutes"
        return ""

    def _cost_s(self, link: Link, turn: Turn) -> float:
        """Seconds of the server that a change costs: half an answer until it is empty, the restart, the load."""
        return turn.took_s or (link.server.load_s or 0.0) + _RESTART_S + link.mean_s / 2

    @staticmethod
    def _mean_s(link: Link, serving: Iterable[Link]) -> float:
        """Seconds of an answer; of servers that have answered nothing yet it is not known."""
        known = [other.mean_s for other in serving if other.requests_done]
        return sum(known) / len(known) if known else link.mean_s

    def _disturbs(self, lanes: Iterable[Lane], answer_s: float, queue_s: float) -> bool:
        """Whether a job is young and will be over soon; owners share the servers."""
        waiting: dict[int, int] = {}  # requests by job
        young: dict[int, float] = {}  # ages of jobs
        owners, now_s = set(), self._clock.time()
        for lane in lanes:
            if count := lane.waiting:
                owners.add(lane.owner)
                waiting[lane.job] = waiting.get(lane.job, 0) + count
                if 0 <= (age_s := now_s - lane.accepted_s) < _YOUNG_S:
                    young[lane.job] = age_s
        return any(
            age_s + min(waiting[job] * answer_s * len(owners), queue_s) < _SHORT_S for job, age_s in young.items()
        )
