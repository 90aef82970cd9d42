"""How many of something happened per second of late, in constant memory."""

from __future__ import annotations

import time
from collections import deque


class RateMeter:
    """Counts over the last ``window_s`` seconds, kept per second."""

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._buckets: deque[list[float]] = deque(maxlen=window_s + 1)  # [second, count]
        self._begun_s: float | None = None

    def add(self, count: float) -> None:
        """``count`` more happened just now."""
        now_s = time.monotonic()
        if self._begun_s is None:
            self._begun_s = now_s
        second = int(now_s)
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1][1] += count
        else:
            self._buckets.append([second, count])

    def per_s(self) -> float:
        """The mean over the window, or over the time since the first count where that is shorter."""
        if self._begun_s is None:
            return 0.0
        now_s = time.monotonic()
        recent = sum(count for second, count in self._buckets if second > now_s - self._window_s)
        return recent / min(float(self._window_s), max(now_s - self._begun_s, 1.0))
