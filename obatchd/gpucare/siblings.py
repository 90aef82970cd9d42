"""Cards of other hosts, as far as the care of these ones needs them: trouble that all have is no fault of one card."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import attrs
import msgspec

from obatchd.gpus.model import Identity, XidEvent
from obatchd.gpus.track import Crash, Track
from obatchd.gpus.xids import classify
from obatchd.settings.tables.gpu_health import GpuHealthSettings

EXCHANGE_S = 10.0  # between two exchanges of what cards do
STALE_S = 60.0  # what was told so long ago says nothing about now
_MOST_TIMES = 32  # of each kind and card


class Sibling(msgspec.Struct, frozen=True):
    """One card in a few words. Times are seconds ago, because the clocks of hosts differ."""

    uuid: str
    work: list[str] = []  # profiles that its servers have loaded and are ready with, in words
    xids_s: list[tuple[int, float]] = []  # of applications, lately, each with its number
    crashes_s: list[float] = []  # of its server, where it was not what it worked on
    crashed_s: dict[str, float] = {}  # the latest one, whatever the reason, by what its server had loaded

    def aged(self, by_s: float) -> Sibling:
        """The same some time later."""
        return Sibling(
            self.uuid,
            self.work,
            [(number, ago_s + by_s) for number, ago_s in self.xids_s],
            [ago_s + by_s for ago_s in self.crashes_s],
            {work: ago_s + by_s for work, ago_s in self.crashed_s.items()},
        )

    def track(self, now_s: float) -> Track:
        """As the rules take it; ``now_s`` is the epoch time of now."""
        return Track(
            Identity(self.uuid),
            xids=[XidEvent(number, now_s - ago_s, self.uuid) for number, ago_s in self.xids_s],
            server_crashes=[Crash(now_s - ago_s) for ago_s in self.crashes_s],
            crashed_s={work: now_s - ago_s for work, ago_s in self.crashed_s.items()},
        )


def condensed(track: Track, work: Iterable[str], settings: GpuHealthSettings, now_s: float) -> Sibling:
    """A card of this machine for others; ``work`` is what its servers are ready with, in words."""
    after_s = now_s - settings.repeat_s
    recent = [e for e in track.xids if e.at_s >= after_s and classify(e, settings.xids).kind == "application"]
    return Sibling(
        track.uuid,
        sorted(work),
        [(event.xid, now_s - event.at_s) for event in recent[-_MOST_TIMES:]],
        [now_s - crash.at_s for crash in track.server_crashes[-_MOST_TIMES:]],
        {name: now_s - at_s for name, at_s in [*track.crashed_s.items()][-_MOST_TIMES:]},
    )


@attrs.define(eq=False)
class CardsElsewhere:
    """What others told of their cards, the latest. Without it cards are judged beside those of this machine alone."""

    _told: Mapping[str, Sibling] = attrs.field(factory=dict, init=False)  # by UUID
    _told_s: float = attrs.field(default=float("-inf"), init=False)  # monotonic

    def heard(self, siblings: Iterable[Sibling]) -> None:
        """That is all of them now."""
        self._told, self._told_s = {sibling.uuid: sibling for sibling in siblings}, time.monotonic()

    def tracks(self, work: AbstractSet[str], named: AbstractSet[str]) -> Sequence[Track]:
        """Cards that do the same ``work``, in words, or are ``named`` by their UUIDs."""
        age_s = time.monotonic() - self._told_s
        if age_s > STALE_S:
            return []
        now_s = time.time() - age_s
        return [s.track(now_s) for s in self._told.values() if s.uuid in named or not work.isdisjoint(s.work)]
