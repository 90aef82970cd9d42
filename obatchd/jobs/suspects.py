"""Requests that may crash servers: each waits for a server of its own."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from itertools import chain

import attrs

from obatchd.jobs.lane import Lane, Taken
from obatchd.jobs.model import Profile

Undecided = Container[tuple[int, int]]  # job and line of requests that wait


@attrs.define(eq=False)
class Suspects:
    """Those that were in flight in several crashes, and those whose settings are accused of one."""

    paused: Container[int]  # jobs
    _taken: list[Taken] = attrs.field(factory=list, init=False)
    _accused: dict[tuple[int, int], Lane] = attrs.field(factory=dict, init=False)  # lanes with accused settings

    def __len__(self) -> int:
        """How many wait outside their lanes."""
        return len(self._taken)

    def profiles(self) -> set[Profile]:
        return {taken.lane.profile for taken in self._taken if taken.lane.job not in self.paused}

    def add(self, taken: Taken) -> None:
        self._taken.append(taken)

    def accuse(self, lane: Lane, settings: bytes) -> None:
        lane.accused.add(settings)
        self._accused[lane.order] = lane

    def acquit(self, lane: Lane, settings: bytes) -> None:
        lane.accused.discard(settings)
        if not lane.accused:
            self._accused.pop(lane.order, None)

    def forget(self, lanes: Collection[Lane]) -> None:
        self._taken = [taken for taken in self._taken if taken.lane not in lanes]
        for lane in lanes:
            self._accused.pop(lane.order, None)

    def take(self, profile: Profile, undecided: Undecided) -> Taken | None:
        """The next one: of the accused that were never tried, of the suspects, of the accused."""
        accused = sorted(self._accused_for(profile, undecided), key=lambda taken: taken.lane.trials)
        fresh = (taken for taken in accused if not taken.pending.servers)
        taken = next(chain(fresh, self._suspects_for(profile, undecided), accused), None)
        if taken is not None:
            taken.lane.trials += 1
            if taken in self._taken:
                self._taken.remove(taken)
            else:
                taken.lane.window.remove(taken.pending)
        return taken

    def any(self, profile: Profile, undecided: Undecided) -> bool:
        found = chain(self._suspects_for(profile, undecided), self._accused_for(profile, undecided))
        return next(found, None) is not None

    def _suspects_for(self, profile: Profile, undecided: Undecided) -> Iterator[Taken]:
        ours = (t for t in self._taken if t.lane.profile == profile and t.lane.job not in self.paused)
        return (taken for taken in ours if (taken.lane.job, taken.pending.line) not in undecided)

    def _accused_for(self, profile: Profile, undecided: Undecided) -> Iterator[Taken]:
        """The first accused requests of each lane: one that was never tried, and one that was."""
        for lane in self._accused.values():
            if lane.profile == profile and lane.job not in self.paused:
                accused = [p for p in lane.window if (lane.job, p.line) not in undecided and lane.is_accused(p)]
                for tried in (False, True):
                    yield from (Taken(lane, p, 0.0) for p in [p for p in accused if bool(p.servers) is tried][:1])
