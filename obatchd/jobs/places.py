"""Where families are: at work, and in the slots of servers that are free. It chooses between requests of one lane."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import filterfalse, islice
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from obatchd.jobs.lane import Lane

Kin = tuple[int, int]  # job and family
_LOOK = 256  # requests of a window, from its front, among which one of a family that is nowhere is looked for


def kept(warm: list[Kin], free: int) -> list[Kin]:
    """Of families that had slots of a server, the latest last, those that its ``free`` slots may have still."""
    return warm[-free:] if free > 0 else []


class Counts(dict[int, int]):
    """Of each family of a job, how many requests; families without any are not in it."""

    def more(self, family: int) -> None:
        self[family] = self.get(family, 0) + 1

    def less(self, family: int) -> None:
        if left := self[family] - 1:
            self[family] = left
        else:
            del self[family]


_NONE = Counts()
_ANYWHERE = ""  # no server has this id
_NOTHING: set[int] = set()


class AtWork:
    """The families of the requests that servers have, counted as these come and go: a choice looks at no others."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], Counts] = {}  # by server and job; those of all servers by ``_ANYWHERE``

    def came(self, server: str, job: int, family: int) -> None:
        """``server`` was given a request."""
        for key in ((_ANYWHERE, job), (server, job)):
            self._of.setdefault(key, Counts()).more(family)

    def went(self, server: str, job: int, family: int) -> None:
        """A request has left ``server``."""
        for key in ((_ANYWHERE, job), (server, job)):
            counts = self._of[key]
            counts.less(family)
            if not counts:
                del self._of[key]

    def of(self, job: int) -> Collection[int]:
        """The families of a job that are at work."""
        return self._of.get((_ANYWHERE, job), _NONE)

    def on(self, server: str, job: int) -> Collection[int]:
        """The families of a job that are at work on a server."""
        return self._of.get((server, job), _NONE)


@attrs.define(eq=False)
class Places:
    """The families of one profile at one moment. ``free`` counts the slots of all its servers that are free.

    ``warm`` are, by server, the families that its free slots computed last, the latest last; servers without such a
    slot may be left out.
    """

    free: int
    _warm: dict[str, list[Kin]]
    _at_work: AtWork
    # What was chosen here, by server and job: servers may not have it yet.
    _begun: dict[tuple[str, int], set[int]] = attrs.field(factory=dict, init=False)

    def choose(self, lane: Lane, server: str) -> int:
        """The place in the window of the request that ``server`` begins next.

        One of a family that a free slot of it has; else one of a family that is nowhere: the first, or near the end of
        the job one of that with most requests, so that servers end together. Else, so that no slot is idle for the sake
        of a family, a family is split, among equals that with most requests: one that is not at work on this very
        server, which no free slot of another waits for, if there is such a one; else the first.
        """
        if lane.kinds < self.free:
            return 0
        for job, family in reversed(self._warm.get(server, ())):
            if job == lane.job and family in lane.members:
                return lane.beginnings.index(family)
        # None of the lane's families has a free slot of this server, so another one waits for each that is warm.
        awaited = {family for warm in self._warm.values() for job, family in warm if job == lane.job}
        at_work, taken = self._at_work.of(lane.job), awaited.union(self._begun_of(lane.job))
        if not lane.unread and len(lane.window) <= _LOOK:
            longest = _longest(lane, taken.union(at_work))
            if longest is not None:
                return lane.beginnings.index(longest)
        for nowhere in filterfalse(at_work.__contains__, islice(lane.beginnings, _LOOK)):
            if nowhere not in taken:
                return lane.beginnings.index(nowhere)
        return lane.beginnings.index(self._to_split(lane, server, awaited))

    def _to_split(self, lane: Lane, server: str, awaited: set[int]) -> int | None:
        """The family of which a second request is begun; all are at work, or a free slot waits for them."""
        families = dict.fromkeys(lane.beginnings[:_LOOK])  # each once, in their order
        here = {*self._at_work.on(server, lane.job), *self._begun.get((server, lane.job), ())}
        for apart in (here | awaited, here, _NOTHING):
            if elsewhere := [family for family in families if family not in apart]:
                return max(elsewhere, key=lane.members.__getitem__)  # type: ignore[arg-type]  # every one has a family
        return None

    def _begun_of(self, job: int) -> Iterator[int]:
        """The families of a job that were chosen here."""
        return (family for (_, other), families in self._begun.items() if other == job for family in families)

    def began(self, lane: Lane, server: str, family: int | None) -> None:
        """``server`` is given a request."""
        warm = self._warm.get(server)
        if family is not None:
            self._begun.setdefault((server, lane.job), set()).add(family)
            if warm and (kin := (lane.job, family)) in warm:
                warm.remove(kin)
                return
        if warm:  # no slot is known to have it: it may be the one that was free for longest
            del warm[0]


def _longest(lane: Lane, taken: Collection[int]) -> int | None:
    """Of the families of a lane that are nowhere, the first with most requests; None where all have one."""
    most, longest = 1, None
    for family, count in lane.members.items():
        if count > most and family not in taken:
            most, longest = count, family
    return longest
