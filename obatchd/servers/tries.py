"""How often a server ended or could not be reached lately, and how long it is left alone before the next try."""

from __future__ import annotations

import random
import time
from collections import deque

from obatchd.settings.tables.servers import ServerSettings
from obatchd.words import counted

_FIRST_S = 1.0
_JITTER = 0.2


class Tries:
    """The runs of one server that ended unasked, and completed no request."""

    def __init__(self) -> None:
        self._failures: deque[float] = deque()  # monotonic times
        self._pauses = 0

    def useful(self) -> None:
        """A request was completed, or tokens came."""
        self._failures.clear()

    def steady(self) -> None:
        """It was READY for long: the next pause is short again."""
        self._pauses = 0

    def failed(self, settings: ServerSettings, *, ours: bool, reached: bool) -> tuple[float, str]:
        """One more. The pause in seconds, and in words why it is given up for now; empty: it is not.

        ``ours``: we start it. Where others do, and it cannot be ``reached``, looking for it seldom spares nothing.
        """
        longest_s, failures = settings.backoff_max_s, count(self._failures, settings.starts_window_s)
        if failures < settings.starts_limit:
            pause_s = min(_FIRST_S * 2**self._pauses, longest_s)
            self._pauses = min(self._pauses + 1, 30)
            return pause_s * random.uniform(1 - _JITTER, 1), ""
        pause_s = settings.slow_retry_s if ours or reached else min(settings.slow_retry_s, longest_s)
        times = "once" if failures == 1 else counted(failures, "time")
        return pause_s, f"started {times} without a completed request" if ours else f"tried {times}"


def count(times: deque[float], window_s: float) -> int:
    """Add now to the times of an event; how often it happened in the last ``window_s``."""
    times.append(time.monotonic())
    while times[0] < times[-1] - window_s:
        times.popleft()
    return len(times)
