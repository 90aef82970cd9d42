"""The lanes whose turn may come: those with waiting requests, by profile, owner and class, and whose turn it is."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set

import attrs

from obatchd.jobs.lane import Lane
from obatchd.jobs.model import Profile
from obatchd.jobs.shares import Shares

Classes = tuple[list[Lane], list[Lane], list[Lane]]  # lanes by base class, each list by order of acceptance
_NOBODY: dict[int, Classes] = {}


@attrs.define(eq=False)
class WaitingLanes:
    """Those that have waiting requests, without those of paused jobs. ``clock`` gives wall-clock seconds."""

    _paused: Collection[int]  # jobs
    _shares: Shares
    _clock: Callable[[], float]
    _lanes: dict[Profile, dict[int, Classes]] = attrs.field(factory=dict, init=False)  # by owner
    _kindred: dict[Profile, set[Lane]] = attrs.field(factory=dict, init=False)  # with requests that share a beginning

    def enlist(self, lane: Lane) -> None:
        """Count ``lane`` in, if it waits and its job is not paused; again after each change of its window."""
        if not lane.waiting or lane.job in self._paused:
            return
        if lane.kindred:
            self._kindred.setdefault(lane.profile, set()).add(lane)
        owners = self._lanes.setdefault(lane.profile, {})
        if lane.owner not in owners:
            self._join(lane.owner)
            owners[lane.owner] = ([], [], [])
        lanes = owners[lane.owner][lane.base_class]
        at = bisect.bisect_left(lanes, lane.order, key=lambda other: other.order)
        if at == len(lanes) or lanes[at] is not lane:
            lanes.insert(at, lane)

    def unlist(self, lane: Lane) -> None:
        """``lane`` has nothing left, or its job is paused or over."""
        if lane.kindred and lane.profile in self._kindred:
            self._kindred[lane.profile].discard(lane)
            if not self._kindred[lane.profile]:
                del self._kindred[lane.profile]
        owners = self._lanes.get(lane.profile, {})
        classes = owners.get(lane.owner)
        if classes is None:
            return
        lanes = classes[lane.base_class]
        at = bisect.bisect_left(lanes, lane.order, key=lambda other: other.order)
        if at < len(lanes) and lanes[at] is lane:
            del lanes[at]
        if not any(classes):
            del owners[lane.owner]
            if not owners:
                del self._lanes[lane.profile]

    def _join(self, owner: int) -> None:
        """An owner who comes back does not collect on the time he was away."""
        if not self.has(owner):
            self._shares.join(owner, self.everybody())

    # Looking.

    def has(self, owner: int) -> bool:
        """Whether requests of ``owner`` wait, for whatever profile."""
        return any(owner in owners for owners in self._lanes.values())

    def everybody(self) -> set[int]:
        """All owners whose requests wait."""
        return {owner for owners in self._lanes.values() for owner in owners}

    def profiles(self) -> Set[Profile]:
        return self._lanes.keys()

    def owners(self, profile: Profile) -> Mapping[int, Classes]:
        """The lanes that wait for ``profile``, by owner."""
        return self._lanes.get(profile, _NOBODY)

    def of(self, profile: Profile) -> Iterator[Lane]:
        """The lanes that wait for ``profile``."""
        return (lane for classes in self.owners(profile).values() for lanes in classes for lane in lanes)

    def shares_beginnings(self, profile: Profile) -> bool:
        """Whether requests at hand for ``profile`` are of lanes in which families were met."""
        return any(lane.related for lane in self._kindred.get(profile, ()))

    def in_order(self, lanes: Iterable[Lane]) -> list[Lane]:
        """By present class, then by acceptance."""
        found, now_s = list(lanes), self._clock()
        if len(found) < 2:  # as nearly always
            return found
        return sorted(found, key=lambda lane: (-lane.priority_class(now_s), lane.order))

    def claim(self, profile: Profile) -> tuple[float, int, tuple[int, int]]:
        """How strong the claim of ``profile`` is (less is stronger): use of its least served owner, class, order."""
        owners = self.owners(profile)
        if not owners:
            return (float("inf"), 0, (0, 0))  # only suspects wait
        owner = self._shares.least(owners)
        first = self.in_order(lanes[0] for lanes in owners[owner] if lanes)[0]
        return (self._shares.of(owner).used_s, -first.priority_class(self._clock()), first.order)
