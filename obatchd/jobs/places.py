"""Where families are: at work, and in the slots of servers that are free. It chooses between requests of one lane."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import islice
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from obatchd.jobs.lane import Lane

Kin = tuple[int, int]  # job and family
_LOOK = 256  # requests of a window, from its front, among which one of a family that is nowhere is looked for


def kept(warm: list[Kin], free: int) -> list[Kin]:
    """Of families that had slots of a server, the latest last, those that its ``free`` slots may have still."""
    return warm[-free:] if free > 0 else []


@attrs.define(eq=False)
class Places:
    """The families of one profile at one moment. ``free`` counts the slots of all its servers that are free.

    ``warm`` has, by server, the families that its free slots computed last, the latest last.
    """

    free: int
    _warm: dict[str, list[Kin]]
    _taken: set[Kin]  # at work, or waited for by a free slot that has them

    @classmethod
    def at(cls, free: int, warm: dict[str, list[Kin]], at_work: Iterable[Kin]) -> Places:
        taken = set(at_work)
        taken.update(*warm.values())
        return cls(free, {server: list(kin) for server, kin in warm.items()}, taken)

    def choose(self, lane: Lane, server: str) -> int:
        """The place in the window of the request that ``server`` begins next.

        One of a family that a free slot of it has; else the first of a family that is nowhere; else the first: a slot
        is never idle for the sake of a family.
        """
        if lane.kinds < self.free:
            return 0
        for kin in reversed(self._warm.get(server, ())):
            if kin[0] == lane.job and kin[1] in lane.members:
                return next(at for at, pending in enumerate(lane.window) if pending.family == kin[1])
        taken: Container[Kin] = self._taken
        for at, pending in enumerate(islice(lane.window, _LOOK)):
            if pending.family is None or (lane.job, pending.family) not in taken:
                return at
        return 0

    def began(self, lane: Lane, server: str, family: int | None) -> None:
        """``server`` was given a request: a slot less is free."""
        self.free -= 1
        warm = self._warm.get(server, [])
        if family is not None:
            self._taken.add((lane.job, family))
            if (lane.job, family) in warm:
                warm.remove((lane.job, family))
                return
        if warm:  # no slot is known to have it: it may be the one that was free for longest
            self._taken.discard(warm.pop(0))
