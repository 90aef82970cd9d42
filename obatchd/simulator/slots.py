"""The slots of a loaded model, each with what it computed last: what Ollama's runners keep of prompts.

Both lines give a request to the free slot with the longest common beginning (0.24: llamarunner/cache.go; 0.33:
llama-server), and compute the rest of its prompt only.
"""

from __future__ import annotations

import asyncio
from itertools import takewhile

_FEWEST = 16  # words in common from which it counts: a template is in every prompt


class Slots:
    """``count`` numbered slots, given out in order of asking."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._texts = [""] * count
        self._reused = [0] * count
        self._turn = asyncio.Semaphore(count)

    def all_taken(self) -> bool:
        return self._turn.locked()

    async def take(self, text: str = "") -> int:
        """A slot for a prompt of this text: the first of those that have most of it computed."""
        await self._turn.acquire()
        words = {slot: _common(self._texts[slot], text) for slot in sorted(self._free)}
        slot = max(words, key=words.__getitem__)
        self._free.remove(slot)
        self._texts[slot], self._reused[slot] = text, words[slot]
        return slot

    def reused(self, slot: int) -> int:
        """Words of the prompt in a slot that were computed before."""
        return self._reused[slot]

    def give_back(self, slot: int) -> None:
        self._free.append(slot)
        self._turn.release()


def _common(one: str, other: str) -> int:
    """How many words two texts begin with together, where those are enough to count."""
    if one[:_FEWEST] != other[:_FEWEST]:
        return 0
    words = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.split(), other.split(), strict=False)))
    return words if words >= _FEWEST else 0
