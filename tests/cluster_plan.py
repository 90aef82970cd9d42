"""What a storm over several hosts will do, fixed by its seed.

As in a storm on one machine, when a part dies is told in steps of the work and not in seconds.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from daemon_support import Document

# What is struck, and how often of a hundred.
WEIGHTS = {
    "head": 6,  # SIGKILL, and another one is started
    "host": 12,  # SIGKILL to obatchd host alone, and another one is started
    "break": 14,  # its connection ends
    "stall": 6,  # its line is cut for less time than anybody notices
    "cut": 3,  # its line is cut until both sides have noticed
    "freeze": 2,  # SIGSTOP until the head has noticed
    "worker": 21,
    "serve": 16,
    "runner": 20,
}
_SIZES = (1, 2, 5, 10, 20, 40, 80, 160)


class Strike(NamedTuple):
    """One kill or cut: of what, at which host and server (as fractions of them), after how many more answers."""

    what: str
    host: float
    server: float
    gap: int


class Drop(NamedTuple):
    """A file of requests."""

    name: str
    asked: list[Document]


class Plan(NamedTuple):
    """A whole storm."""

    seed: int
    strikes: list[Strike]
    drops: list[Drop]

    @property
    def requests(self) -> int:
        return sum(len(drop.asked) for drop in self.drops)


def make_plan(seed: int, kills: int, requests: int) -> Plan:
    """The storm of this seed; everything is struck at least once, where there are so many kills."""
    source = random.Random(seed)
    kinds = [*WEIGHTS, *source.choices(list(WEIGHTS), list(WEIGHTS.values()), k=max(0, kills - len(WEIGHTS)))][:kills]
    source.shuffle(kinds)
    most = max(2, requests // max(1, kills))
    strikes = [Strike(what, source.random(), source.random(), source.randint(0, most)) for what in kinds]
    drops: list[Drop] = []
    left = requests
    while left > 0:
        count = min(left, source.choice(_SIZES))
        name = f"d{len(drops):05}"
        drops.append(Drop(name, [{"id": f"{name}-{i}", "prompt": f"{name}: what is {i}?"} for i in range(count)]))
        left -= count
    return Plan(seed, strikes, drops)
