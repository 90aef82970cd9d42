"""Carries out the plan of a storm over several hosts: for the tests and ``scripts/chaos``."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster_lane import Lane, time_until_back
from cluster_plan import Drop, Plan, Strike
from cluster_support import Fleet
from cluster_verdict import Struck, judge, rows
from daemon_support import Document

from obatchd.errors import DaemonDownError

CONFIG: Document = {
    "log_level": "info",
    "cluster": {"lease_s": 3600},
    "servers": {
        "slots": 4, "health_s": 0.5, "stagger_s": 0, "backoff_max_s": 0.2, "starts_limit": 1_000_000, "stop_grace_s": 3,
    },
    "dispatch": {
        "max_attempts": 1000, "poison_crashes": 1000, "strikes": 1_000_000, "stall_s": 5, "connect_timeout_s": 5,
    },
    "watchdog": {"repeats": 1_000_000, "slow_factor": 0},
    "gpu_health": {"repeats": 1_000_000},
}  # fmt: skip
# So long that servers are at work while kills come, with 20 requests for each kill.
SIMULATOR: Document = {"service_s": {"kind": "uniform", "low": 0.1, "high": 1.1}, "load_s": 0.05}
_TOLD = 50  # strikes between two lines that tell how far it is
_LOOK_S = 0.1
_AHEAD = 100  # requests handed over before they are due
_END_S = 120.0  # the longest time without an answer at the end


class ClusterStorm:
    """One storm: every host is struck for itself, all at a time; the head when all are back.

    Attributes:
        struck: what was done, and the promises that were broken.
    """

    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self.fleet = fleet
        self.plan = plan
        self.struck = Struck()
        self._lanes = [Lane(fleet, number, self.struck) for number in range(len(fleet.hosts))]
        self._waiting: deque[Drop] = deque(plan.drops)
        self._handed_over = 0  # requests
        self._told = 0  # strikes
        self._begun_s = time.monotonic()

    def run(self) -> None:
        """All of it, until every request is answered, every program has ended, and all is judged."""
        with ThreadPoolExecutor(len(self._lanes)) as pool:
            for strikes in _between_heads(self.plan.strikes):
                self._strike_hosts(pool, [strike for strike in strikes if strike.what != "head"])
                if strikes[-1].what == "head":
                    self._strike_head()
        while self._waiting:
            self._drop()
        self._until_done()
        self._stop()
        for violation in judge(self.fleet, self.plan, self.struck):
            self.struck.broken(violation)

    def rows(self) -> list[tuple[str, str]]:
        """What happened, as a table."""
        return list(rows(self.fleet, self.plan, self.struck))

    def _strike_hosts(self, pool: ThreadPoolExecutor, strikes: Sequence[Strike]) -> None:
        of_lanes: list[list[Strike]] = [[] for _ in self._lanes]
        for strike in strikes:
            of_lanes[int(strike.host * len(self._lanes))].append(strike)
        running = [pool.submit(lane.strike_all, own) for lane, own in zip(self._lanes, of_lanes, strict=True)]
        while not all(lane.done() for lane in running):
            self._hand_over()
            time.sleep(_LOOK_S)
        for lane in running:
            lane.result()

    def _strike_head(self) -> None:
        self.fleet.head.kill()
        self.fleet.head.start()
        time_until_back("head", self.fleet.hosts, self.struck)
        self.struck.hit("head")

    def _hand_over(self) -> None:
        """Hand over what is due: drops come as the strikes do, some ahead."""
        over = self.struck.kills.total()
        due = self.plan.requests * over / max(1, len(self.plan.strikes)) + _AHEAD
        while self._waiting and self._handed_over < due:
            self._drop()
        if over >= self._told + _TOLD:
            self._told = over
            print(f"{over} strikes, {self._handed_over} requests, {time.monotonic() - self._begun_s:.0f} s", flush=True)

    def _drop(self) -> None:
        drop = self._waiting.popleft()
        self.fleet.head.drop(f"{drop.name}.jsonl", drop.asked)
        self._handed_over += len(drop.asked)

    def _until_done(self) -> None:
        last, moved_s = "", time.monotonic()
        while time.monotonic() - moved_s < _END_S:
            with contextlib.suppress(DaemonDownError, OSError):
                status = self.fleet.head.status()
                if not status["jobs"] and not any(self.fleet.head.inbox.glob("d*.jsonl")):
                    return
                if (now := str((status["queue"], status["jobs"]))) != last:
                    last, moved_s = now, time.monotonic()
            time.sleep(_LOOK_S)
        self.struck.broken(f"nothing was answered for {_END_S:g} s at the end: {last[:500]}")

    def _stop(self) -> None:
        """Each program ends as it is told to."""
        for program in (*self.fleet.hosts, self.fleet.head):
            if code := program.stop():
                self.struck.broken(f"{program.root.name} ended with exit code {code}")


def _between_heads(strikes: Sequence[Strike]) -> Iterator[list[Strike]]:
    """Parts of a plan that each end with a kill of the head, the last one perhaps without."""
    part: list[Strike] = []
    for strike in strikes:
        part.append(strike)
        if strike.what == "head":
            yield part
            part = []
    if part:
        yield part
