"""What the GPUs of one machine did over some time."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from attrs import define, field

from obatchd.documents.gpus import GpuEvent
from obatchd.documents.history import GpuColumns, GpuHistory
from obatchd.errors import ControlError
from obatchd.gpucare.cards import GpuCards, told
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpus.columns import CardColumns
from obatchd.gpus.history import History

MOST_EVENTS = 1000  # of one answer
_OLD_S = 15.0
T = TypeVar("T")


@define(eq=False)
class Past:
    """Reads ``history.db``; raises ControlError (``no_history``) where it cannot be read."""

    _policy: GpuPolicy
    _cards: GpuCards
    _kept: dict[Hashable, Any] = field(factory=dict, init=False)  # columns that were read a moment ago, for other tabs
    _turn: asyncio.Lock = field(factory=asyncio.Lock, init=False)

    @property
    def history(self) -> History:
        return self._policy.watch.history

    async def gpus(self, since_s: float, until_s: float, points: int, name: str | None) -> GpuHistory:
        """Readings and events of one GPU or of all, in at most so many steps; times are seconds since the epoch."""
        history, uuid = self.history, self._cards.find(name) if name else None
        tracks = self._policy.monitor.tracks
        serial = tracks[uuid].identity.serial if uuid else ""
        grid = history.grid(since_s, until_s, points)

        def look() -> list[GpuEvent]:
            return history.events(uuid, MOST_EVENTS + 1, serial, since_s=since_s, until_s=until_s)

        cards = await self.columns(("cards", grid, uuid), lambda: history.cards(grid, uuid))
        events = [told(event) for event in await _read(look)]
        columns = sorted(map(self._card, cards), key=lambda card: (card.index is None, card.index or 0, card.uuid))
        return GpuHistory(grid.step_s, grid.at_s, columns, events[-MOST_EVENTS:], len(events) > MOST_EVENTS)

    def _card(self, card: CardColumns) -> GpuColumns:
        track = self._policy.monitor.tracks.get(card.uuid)
        latest = track.latest if track else None
        columns: dict[str, Any] = card.columns
        return GpuColumns(
            uuid=card.uuid,
            index=track.identity.index if track else None,
            name=track.identity.name if track else "",
            serial=card.serial,
            slot=card.slot,
            memory_total_bytes=latest.memory_total_bytes if latest else None,
            **columns,
        )

    async def columns(self, key: Hashable, look: Callable[[], T]) -> T:
        """What ``look`` reads, or read some seconds ago: one at a time, for months of many GPUs take a second."""
        async with self._turn:
            if key not in self._kept:
                self._kept[key] = await _read(look)
                asyncio.get_running_loop().call_later(_OLD_S, self._kept.pop, key, None)
            found: T = self._kept[key]
            return found


async def _read(look: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(look)
    except sqlite3.Error as error:
        raise ControlError(
            f"history.db cannot be read: {error}; see the log of the daemon", code="no_history"
        ) from error
