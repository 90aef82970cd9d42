"""What the cards of all hosts do, gathered at the head, so that each host can judge its own beside them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

import attrs

from obatchd.cluster.head.trust import lie
from obatchd.gpucare.siblings import EXCHANGE_S, STALE_S, Sibling
from obatchd.gpucare.watch import GpuWatch

_MOST_CARDS = 64  # of one host
_MOST_ENTRIES = 64  # of each kind and card
_MOST_TEXT = 400  # characters


@attrs.define(eq=False)
class SiblingBoard:
    """The latest that each host told; the head's own machine is the one without a name."""

    _told: dict[str, tuple[float, Sequence[Sibling]]] = attrs.field(factory=dict, init=False)  # monotonic time, cards

    def exchange(self, host: str, own: Sequence[Sibling]) -> list[Sibling]:
        """Take what a host told, for what the others did. Raises ClusterError (``untrue``) where that cannot be."""
        if host:
            _check(own)
        now_s = time.monotonic()
        self._told[host] = (now_s, own)
        return [
            sibling.aged(now_s - told_s)
            for other, (told_s, siblings) in self._told.items()
            if other != host and now_s - told_s <= STALE_S
            for sibling in siblings
        ]

    async def run(self, watch: GpuWatch) -> None:
        """Have the head's own cards judged beside those of hosts, for ever."""
        while True:
            watch.elsewhere.heard(self.exchange("", watch.siblings()))
            await asyncio.sleep(EXCHANGE_S)


def _check(own: Sequence[Sibling]) -> None:
    if len(own) > _MOST_CARDS:
        raise lie(f"it has more than {_MOST_CARDS} cards")
    for card in own:
        many = max(len(card.work), len(card.xids_s), len(card.crashes_s), len(card.crashed_s))
        texts = [card.uuid, *card.work, *card.crashed_s]
        if many > _MOST_ENTRIES or any(len(text) > _MOST_TEXT for text in texts):
            raise lie("it tells more of a card than there can be")
        times = [*(ago_s for _, ago_s in card.xids_s), *card.crashes_s, *card.crashed_s.values()]
        if not all(math.isfinite(ago_s) for ago_s in times):
            raise lie("it tells times of a card that are none")
