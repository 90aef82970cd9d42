"""A random choice among the requests of a drop, in one pass and in the memory of the chosen."""

from __future__ import annotations

import random

from obatchd.jobs.model import Entry


class Reservoir:
    """Makes a reservoir sample (Vitter 1985, algorithm R): every request is chosen with the same probability.

    The same seed over the same requests makes the same choice.
    """

    def __init__(self, size: int, seed: str) -> None:
        self.seen = 0
        self._size = size
        self._random = random.Random(seed)
        self._chosen: list[Entry] = []

    def offer(self, entry: Entry) -> None:
        self.seen += 1
        if len(self._chosen) < self._size:
            self._chosen.append(entry)
        elif (place := self._random.randrange(self.seen)) < self._size:
            self._chosen[place] = entry

    def entries(self) -> list[Entry]:
        """The chosen, in their order."""
        return sorted(self._chosen, key=lambda entry: entry.line)
