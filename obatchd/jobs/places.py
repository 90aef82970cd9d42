"""Where families are: at work, and in the slots of servers that are free. It chooses between requests of one lane."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from obatchd.jobs.lane import Lane

Kin = tuple[int, int]  # job and family
_LOOK = 256  # requests of a window, from its front, among which one of a family that is nowhere is looked for
# Where a family is that has to be split for the sake of a free slot, best first.
_ELSEWHERE, _AWAITED, _HERE, _NOT_FIT = range(4)


def kept(warm: list[Kin], free: int) -> list[Kin]:
    """Of families that had slots of a server, the latest last, those that its ``free`` slots may have still."""
    return warm[-free:] if free > 0 else []


@attrs.define(eq=False)
class Places:
    """The families of one profile at one moment. ``free`` counts the slots of all its servers that are free.

    By server: ``warm`` are the families that its free slots computed last, the latest last; ``here`` those at work.
    """

    free: int
    _warm: dict[str, list[Kin]]
    _here: dict[str, set[Kin]]
    _taken: set[Kin]  # at work, or waited for by a free slot that has them

    @classmethod
    def at(cls, free: int, warm: Mapping[str, list[Kin]], at_work: Mapping[str, Iterable[Kin]]) -> Places:
        here = {server: set(kin) for server, kin in at_work.items()}
        return cls(free, {s: list(kin) for s, kin in warm.items()}, here, set().union(*here.values(), *warm.values()))

    def choose(self, lane: Lane, server: str) -> int:
        """The place in the window of the request that ``server`` begins next.

        One of a family that a free slot of it has; else one of a family that is nowhere: the first, or near the end of
        the job one of that with most requests, so that servers end together. Else, so that no slot is idle for the sake
        of a family, a family is split, among equals that with most requests: one that is not at work on this very
        server, which no free slot of another waits for, if there is such a one; else the first.
        """
        if lane.kinds < self.free:
            return 0
        for kin in reversed(self._warm.get(server, ())):
            if kin[0] == lane.job and kin[1] in lane.members:
                return _place(lane, kin[1])
        if not lane.unread and len(lane.window) <= _LOOK and (longest := self._longest(lane)) is not None:
            return _place(lane, longest)
        here, awaited = self._here.get(server, set()), self._awaited(server)
        best, chosen, met = (_NOT_FIT, 0), 0, set[int]()
        for at, pending in enumerate(islice(lane.window, _LOOK)):
            family = pending.family
            if family in met:
                continue
            if family is None or (kin := (lane.job, family)) not in self._taken:
                return at
            met.add(family)
            rank = _HERE if kin in here else _AWAITED if kin in awaited else _ELSEWHERE
            if (key := (rank, -lane.members[family])) < best:
                best, chosen = key, at
        return chosen

    def _longest(self, lane: Lane) -> int | None:
        """Of the families of a lane that are nowhere, the first with most requests; None where all have one."""
        taken, job, most, longest = self._taken, lane.job, 1, None
        for family, count in lane.members.items():
            if count > most and (job, family) not in taken:
                most, longest = count, family
        return longest

    def _awaited(self, server: str) -> set[Kin]:
        """The families that free slots of other servers have."""
        return {kin for other, warm in self._warm.items() if other != server for kin in warm}

    def began(self, lane: Lane, server: str, family: int | None) -> None:
        """``server`` was given a request."""
        warm = self._warm.get(server, [])
        if family is not None:
            kin = (lane.job, family)
            self._taken.add(kin)
            self._here.setdefault(server, set()).add(kin)
            if kin in warm:
                warm.remove(kin)
                return
        if warm:  # no slot is known to have it: it may be the one that was free for longest
            gone = warm.pop(0)
            if not any(gone in kin for kin in (*self._here.values(), *self._warm.values())):
                self._taken.discard(gone)


def _place(lane: Lane, family: int) -> int:
    """Where the first request of a family is in the window."""
    return next(at for at, pending in enumerate(lane.window) if pending.family == family)
