"""Which request a server gets next.

Fair share between owners in slot-seconds, then priority class within one owner (one class up per hour of waiting),
then the order of acceptance. Only a window of each lane is in memory: requests further on stay in the store until
the lane's turn comes near. Runs in the main loop; nothing here blocks or does input or output.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import NamedTuple, Protocol

from obatchd.jobs.lane import Lane, Pending, Taken
from obatchd.jobs.model import Profile
from obatchd.jobs.places import Places
from obatchd.jobs.shares import Shares
from obatchd.jobs.suspects import Suspects, Undecided
from obatchd.jobs.waiting import Classes, WaitingLanes

_LOOK_AHEAD_LANES = 8


class _Asks(NamedTuple):
    """Who asks for requests; :meth:`JobQueue.take`."""

    server: str
    servers: Set[str]
    places: Places | None


class LaneFeeder(Protocol):
    """Brings requests from the store into lanes; :class:`obatchd.intake.feeder.Feeder`."""

    def fetch(self, lane: Lane, queue: JobQueue) -> None:
        """The window of ``lane`` runs low: begin to read more; :meth:`JobQueue.fetched` takes it."""

    def ready(self, lane: Lane, pending: Sequence[Pending], queue: JobQueue) -> Sequence[Pending]:
        """Those that may go into the window now; the others come by :meth:`JobQueue.prepared`."""
        ...


class QueueListener(Protocol):
    """Hears of the queue; :class:`obatchd.dispatch.dispatcher.Dispatcher`."""

    def queue_filled(self) -> None:
        """There may be something new to offer."""

    def job_cancelled(self, job: int) -> None:
        """The job with this key has left the queue, and nobody waits for its requests in flight."""


class JobQueue:
    """All lanes with waiting requests. ``clock`` gives wall-clock seconds."""

    def __init__(self, feeder: LaneFeeder, clock: Callable[[], float] = time.time) -> None:
        self._lanes: dict[int, dict[int, Lane]] = {}  # by job, then number
        self._shares = Shares()
        self._paused: set[int] = set()
        self._waiting = WaitingLanes(self._paused, self._shares, clock)
        self._suspects = Suspects(self._paused)
        self._feeder = feeder
        self._listeners: list[QueueListener] = []

    def listen(self, listener: QueueListener) -> None:
        self._listeners.append(listener)

    def _filled(self) -> None:
        for listener in self._listeners:
            listener.queue_filled()

    # Filling.

    def add_lane(self, lane: Lane) -> Lane:
        """Register ``lane``, or find the one registered under its job and number."""
        return self._lanes.setdefault(lane.job, {}).setdefault(lane.number, lane)

    def extend(self, lane: Lane, stored: int, pending: Sequence[Pending] = ()) -> None:
        """``stored`` more requests of ``lane`` are in the store; ``pending`` is given where they are at hand.

        Requests at hand go straight into the window, but only while nothing before them is still in the store alone.
        """
        if pending and len(pending) == stored and lane.unread == 0 and not lane.fetching:
            lane.put(self._feeder.ready(lane, pending, self))
            lane.cursor = max(lane.cursor, pending[-1].line)
        else:
            lane.unread += stored
        self._waiting.enlist(lane)
        self._filled()

    def fetched(self, lane: Lane, pending: Sequence[Pending], gone: int = 0, *, phantom: int = 0) -> None:
        """Requests read from the store for ``lane``; ``gone`` were finished without being offered.

        ``phantom`` of the unread are not in the store: a reading found nothing where so many were expected.
        """
        lane.fetching = False
        if not self._known(lane):
            return
        lane.put(self._feeder.ready(lane, pending, self))
        lane.unread = max(0, lane.unread - len(pending) - gone - phantom)
        self._waiting.enlist(lane)
        self._filled()

    def prepared(self, lane: Lane, pending: Pending | None) -> None:
        """A request of ``lane`` has its sources, or (None) has failed for want of them."""
        lane.preparing -= 1
        if pending is not None and self._known(lane):
            lane.put((pending,))
            self._waiting.enlist(lane)
            self._filled()

    def give_back(self, taken: Taken) -> None:
        """Put a request back in front of its lane and take its charge off its owner."""
        self._shares.of(taken.lane.owner).used_s -= taken.charge_s
        lane = taken.lane
        if self._known(lane):
            lane.put_back(taken.pending)
            self._waiting.enlist(lane)

    def postpone(self, taken: Taken) -> None:
        """Somebody keeps a request until :meth:`take_up`: count it as waiting, and take its charge off its owner."""
        self._shares.of(taken.lane.owner).used_s -= taken.charge_s
        taken.lane.postponed += 1
        taken.lane.postponed_bytes += len(taken.pending.raw)

    def take_up(self, taken: Taken) -> None:
        """A request that was postponed comes back, by ``give_back`` or ``set_aside``."""
        taken.lane.postponed -= 1
        taken.lane.postponed_bytes -= len(taken.pending.raw)

    def set_aside(self, taken: Taken) -> None:
        """Keep a request that is suspected of crashing servers until one can be had for it alone."""
        self._shares.of(taken.lane.owner).used_s -= taken.charge_s
        if self._known(taken.lane):
            self._suspects.add(Taken(taken.lane, taken.pending, 0.0))

    def take_suspect(self, profile: Profile, undecided: Undecided = ()) -> Taken | None:
        """The next request to be tried alone; those that are ``undecided`` wait."""
        taken = self._suspects.take(profile, undecided)
        if taken is not None and not taken.lane.waiting:
            self._waiting.unlist(taken.lane)
        return taken

    def has_suspects(self, profile: Profile, undecided: Undecided = ()) -> bool:
        return self._suspects.any(profile, undecided)

    def accuse(self, lane: Lane, settings: bytes) -> None:
        """Keep the requests of a lane with these settings back for ``take_suspect``."""
        if self._known(lane):
            self._suspects.accuse(lane, settings)

    def acquit(self, lane: Lane, settings: bytes) -> None:
        """Give out the requests of a lane with these settings like all others."""
        self._suspects.acquit(lane, settings)

    def withdraw(self, taken: Taken) -> None:
        """A request that was taken is not tried after all: take its charge off its owner."""
        self._shares.of(taken.lane.owner).used_s -= taken.charge_s

    def cancel_job(self, job: int) -> None:
        """Forget everything of a job, and have its requests in flight abandoned."""
        self.remove_job(job)
        for listener in self._listeners:
            listener.job_cancelled(job)

    def remove_job(self, job: int) -> None:
        """Forget everything of a job that is over."""
        self.remove_lanes(self._lanes_of(job))
        self._lanes.pop(job, None)
        self._paused.discard(job)

    def remove_lanes(self, lanes: Iterable[Lane]) -> None:
        gone = list(lanes)
        self._suspects.forget(gone)
        for lane in gone:
            self._lanes.get(lane.job, {}).pop(lane.number, None)
            self._waiting.unlist(lane)

    def pause(self, job: int) -> None:
        self._paused.add(job)
        for lane in self._lanes_of(job):
            self._waiting.unlist(lane)

    def resume(self, job: int) -> None:
        self._paused.discard(job)
        for lane in self._lanes_of(job):
            self._waiting.enlist(lane)
        self._filled()

    # Taking.

    def take(
        self,
        profile: Profile,
        count: int,
        server: str = "",
        servers: Set[str] = frozenset(),
        *,
        wary: bool = False,
        places: Places | None = None,
    ) -> list[Taken]:
        """Up to ``count`` requests for ``profile``, charged to their owners.

        Where ``server`` is not the only one of ``servers``, a request is left for another of them if ``server`` had its
        last attempt, or any, while one of them had none. If ``wary``, to see whether a server answers, those come first
        whose like was not turned away. ``places`` say where families are; they choose among requests of the lane whose
        turn it is, never between lanes or owners.
        """
        asks = _Asks(server, servers, places)
        first = self._take(profile, count, asks, wary=True) if wary else []
        return first or self._take(profile, count, asks, wary=False)

    def _take(self, profile: Profile, count: int, asks: _Asks, *, wary: bool) -> list[Taken]:
        taken: list[Taken] = []
        owners = self._waiting.owners(profile)
        passed: set[int] = set()
        while owners and len(taken) < count:
            candidates = [owner for owner in owners if owner not in passed]
            if not candidates:
                break
            owner = self._shares.least(candidates) if len(candidates) > 1 else candidates[0]
            burst = count - len(taken) if len(candidates) == 1 else 1
            got = self._take_from(owners[owner], owner, burst, asks, wary=wary)
            if not got:
                passed.add(owner)
            taken.extend(got)
            owners = self._waiting.owners(profile)
        return taken

    def _take_from(self, classes: Classes, owner: int, count: int, asks: _Asks, *, wary: bool) -> list[Taken]:
        share = self._shares.of(owner)
        taken: list[Taken] = []
        for lane in self._waiting.in_order(lane for lanes in classes for lane in lanes[:_LOOK_AHEAD_LANES]):
            if wary and lane.turned_away:
                continue
            if lane.wants_fetch:
                lane.fetching = True
                self._feeder.fetch(lane, self)
            while len(taken) < count and (pending := lane.pop(*asks)) is not None:
                taken.append(Taken(lane, pending, share.mean_s))
                share.used_s += share.mean_s
            if not lane.waiting:
                self._waiting.unlist(lane)
            if len(taken) >= count:
                break
        return taken

    def charge(self, taken: Taken, used_s: float) -> None:
        """The slot time that a request really used replaces the charge made in advance."""
        self._shares.of(taken.lane.owner).charge(used_s, taken.charge_s)

    # Requests that are in no lane: dispatch.interactive keeps them, and their owners pay for them as for all others.

    def charge_ahead(self, owner: int) -> float:
        """Charge an owner for a request that begins; what was charged, for :meth:`charge` or :meth:`withdraw`."""
        share = self._shares.of(owner)
        share.used_s += share.mean_s
        return share.mean_s

    def used_s(self, owner: int) -> float:
        """What an owner has used of the servers, in slot-seconds."""
        return self._shares.of(owner).used_s

    def join(self, owner: int, beside: Set[int]) -> None:
        """An owner comes back with requests in no lane, where the owners ``beside`` have such ones."""
        if not self._waiting.has(owner):
            self._shares.join(owner, self._waiting.everybody() | beside)

    def owners(self, profile: Profile) -> Set[int]:
        """The owners whose requests wait for ``profile`` in lanes."""
        return self._waiting.owners(profile).keys()

    # Looking.

    def waiting(self, profile: Profile) -> int:
        """Requests that wait for ``profile``, in memory or in the store."""
        return sum(lane.waiting for lane in self._waiting.of(profile))

    def more_than(self, profile: Profile, count: int) -> bool:
        """Whether more than ``count`` requests wait for ``profile``; looks no further than it must."""
        for lane in self._waiting.of(profile):
            count -= lane.waiting
            if count < 0:
                return True
        return False

    def has(self, profile: Profile) -> bool:
        """Whether anything waits for ``profile``, suspects included."""
        return profile in self._waiting.profiles() or profile in self._suspects.profiles()

    def at_hand(self, profile: Profile) -> bool:
        """Whether a request for ``profile`` can be taken, or is about to be read; not all in the store are."""
        return any(lane.window or lane.fetching or lane.wants_fetch for lane in self._waiting.of(profile))

    def shares_beginnings(self, profile: Profile) -> bool:
        """Whether requests at hand for ``profile`` are of lanes in which families were met."""
        return self._waiting.shares_beginnings(profile)

    def profiles(self) -> list[Profile]:
        """Profiles that requests wait for, the one that should be served first in front."""
        found = self._suspects.profiles() | self._waiting.profiles()
        return sorted(found, key=self.claim) if len(found) > 1 else list(found)

    def claim(self, profile: Profile) -> tuple[float, int, tuple[int, int]]:
        """How strong the claim of ``profile`` is (less is stronger): use of its least served owner, class, order."""
        return self._waiting.claim(profile)

    def lanes_of_profile(self, profile: Profile) -> list[Lane]:
        """Every registered lane whose requests need ``profile``."""
        return [lane for lane in self._all() if lane.profile == profile]

    def total(self) -> int:
        """All waiting requests, those of paused jobs included."""
        total = len(self._suspects)
        for lanes in self._lanes.values():  # ten thousand, when many jobs wait
            for lane in lanes.values():
                total += len(lane.window) + lane.unread + lane.preparing + lane.postponed
        return total

    def _lanes_of(self, job: int) -> list[Lane]:
        return list(self._lanes.get(job, {}).values())

    def _all(self) -> Iterator[Lane]:
        for lanes in self._lanes.values():
            yield from lanes.values()

    def _known(self, lane: Lane) -> bool:
        return self._lanes.get(lane.job, {}).get(lane.number) is lane
