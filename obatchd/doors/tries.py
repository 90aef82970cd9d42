"""Secrets that are none: counted, and told in the log once a minute, so that whoever tries them out fills no disk."""

from __future__ import annotations

import time

from attrs import define, field

_TOLD_S = 60.0  # between two lines in the log


@define(eq=False)
class WrongTries:
    """Counts calls with something wrong."""

    _calls: int = field(default=0, init=False)
    _told_s: float = field(default=float("-inf"), init=False)

    def count(self) -> int:
        """One more; how many a line in the log is to tell now, 0: none is due."""
        self._calls += 1
        now_s = time.monotonic()
        if now_s - self._told_s < _TOLD_S:
            return 0
        calls, self._calls, self._told_s = self._calls, 0, now_s
        return calls
