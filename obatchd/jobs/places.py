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

        One of a family that a free slot of it has; else the first of a family that is nowhere; else, so that no slot
        is idle for the sake of a family, the first of one that is not at work on this very server; else the first.
        """
        if lane.kinds < self.free:
            return 0
        for kin in reversed(self._warm.get(server, ())):
            if kin[0] == lane.job and kin[1] in lane.members:
                return next(at for at, pending in enumerate(lane.window) if pending.family == kin[1])
        here = self._here.get(server, set())
        elsewhere = 0
        for at, pending in enumerate(islice(lane.window, _LOOK)):
            kin = (lane.job, pending.family or 0)
            if pending.family is None or kin not in self._taken:
                return at
            if not elsewhere and kin not in here:
                elsewhere = at + 1
        return max(0, elsewhere - 1)

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
