"""What the stress process says: counts of each load at least every two seconds, and the places of what is wrong."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs

from obatchd.burnin.stress.protocol import WORK_EVERY_S, WRONG_A_MINUTE, FromProcess, Load, Work, Wrong

_TELL_AFTER_S = WORK_EVERY_S / 2  # a step of a load may last as long again
_PLACES = 10_000  # whose faults are counted one by one

Send = Callable[[FromProcess], None]


class Clock(Protocol):
    """The module ``time``, or one that a test sets."""

    def time(self) -> float: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


@attrs.define(eq=False)
class Teller:
    """Sends frames."""

    _send: Send
    clock: Clock = time
    _told_s: deque[float] = attrs.field(factory=deque, init=False)  # wrong places, in the last minute
    _times: dict[str, int] = attrs.field(factory=dict, init=False)  # by load and place

    def tell(self, message: FromProcess) -> None:
        self._send(message)

    @property
    def at_s(self) -> float:
        return self.clock.time()

    def wrong(self, load: Load, place: str, pattern: str, expected: str, found: str) -> None:
        """Tell a place, unless many were told in the last minute."""
        key = f"{load} {place}"
        if key in self._times or len(self._times) < _PLACES:
            self._times[key] = self._times.get(key, 0) + 1
        now_s = self.clock.monotonic()
        while self._told_s and self._told_s[0] <= now_s - 60:
            self._told_s.popleft()
        if len(self._told_s) < WRONG_A_MINUTE:
            self._told_s.append(now_s)
            self._send(Wrong(self.at_s, load, place, pattern, expected, found, self._times.get(key, 1)))


@attrs.define(eq=False)
class Meter:
    """Counts of one load since they were told last."""

    _load: Load
    _teller: Teller
    precision: str = attrs.field(default="", init=False)
    first: str = attrs.field(default="", init=False)
    operations: int = attrs.field(default=0, init=False)
    operating_s: float = attrs.field(default=0.0, init=False)
    wrong: int = attrs.field(default=0, init=False)
    bytes_written: int = attrs.field(default=0, init=False)
    bytes_checked: int = attrs.field(default=0, init=False)
    accessing_s: float = attrs.field(default=0.0, init=False)
    covered_bytes: int = attrs.field(default=0, init=False)
    free_bytes: int = attrs.field(default=0, init=False)
    passes: int = attrs.field(default=0, init=False)
    _since_s: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._since_s = self._teller.clock.monotonic()

    def tell_in_time(self) -> None:
        """Tell the counts when it is time."""
        if self._teller.clock.monotonic() - self._since_s >= _TELL_AFTER_S:
            self.tell()

    def tell(self) -> None:
        """Tell the counts now."""
        now_s = self._teller.clock.monotonic()
        span_s, self._since_s = now_s - self._since_s, now_s
        self._teller.tell(
            Work(
                at_s=self._teller.at_s,
                load=self._load,
                span_s=span_s,
                precision=self.precision,
                operations=self.operations,
                operating_s=self.operating_s,
                wrong=self.wrong,
                bytes_written=self.bytes_written,
                bytes_checked=self.bytes_checked,
                accessing_s=self.accessing_s,
                covered_bytes=self.covered_bytes,
                free_bytes=self.free_bytes,
                passes=self.passes,
                first=self.first,
            )
        )
        self.operations = self.wrong = self.bytes_written = self.bytes_checked = 0
        self.operating_s = self.accessing_s = 0.0
