"""Requests that may crash servers: each waits for a server of its own."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator

import attrs

from obatchd.jobs.lane import Lane, Pending, Taken
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
        taken = next(self._in_order(profile, undecided), None)
        if taken is not None:
            taken.lane.trials += 1
            if taken in self._taken:
                self._taken.remove(taken)
            else:
                taken.lane.remove(taken.pending)
        return taken

    def any(self, profile: Profile, undecided: Undecided) -> bool:
        return next(self._in_order(profile, undecided), None) is not None

    def _in_order(self, profile: Profile, undecided: Undecided) -> Iterator[Taken]:
        """Looks at no more requests than the caller takes: this runs at each free slot."""
        lanes = [lane for lane in self._accused.values() if lane.profile == profile and lane.job not in self.paused]
        lanes.sort(key=lambda lane: lane.trials)
        for lane in lanes:
            fresh = (pending for pending in lane.window if not pending.servers)
            yield from _accused(lane, fresh, undecided)
        ours = (t for t in self._taken if t.lane.profile == profile and t.lane.job not in self.paused)
        yield from (taken for taken in ours if (taken.lane.job, taken.pending.line) not in undecided)
        for lane in lanes:
            yield from _accused(lane, lane.window, undecided)


def _accused(lane: Lane, requests: Iterable[Pending], undecided: Undecided) -> Iterator[Taken]:
    for pending in requests:
        if (lane.job, pending.line) not in undecided and lane.is_accused(pending):
            yield Taken(lane, pending, 0.0)
