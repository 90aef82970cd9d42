"""How fast a server is with so many requests side by side: a curve through points, and noise."""

from __future__ import annotations

import random

import msgspec


class Throughput(msgspec.Struct, forbid_unknown_fields=True):
    """Answer tokens per second of all slots together, by how many of them are busy."""

    points: list[tuple[int, float]]  # busy slots, tokens per second; ascending
    noise: float = 0.0  # standard deviation of the time of one answer, as a share of it

    def total(self, busy: int) -> float:
        """Tokens per second of all: on a line between two points, in proportion before the first."""
        before, speed = 0, 0.0
        for slots, tokens_per_s in self.points:
            if busy <= slots:
                return speed + (tokens_per_s - speed) * (busy - before) / (slots - before)
            before, speed = slots, tokens_per_s
        return speed

    def of_one(self, busy: int, seed: str) -> float:
        """Tokens per second of one answer beside ``busy - 1`` others; the same ``seed`` has the same noise."""
        share = self.total(busy) / max(1, busy)
        return share / max(0.2, random.Random(seed).gauss(1.0, self.noise)) if self.noise else share
