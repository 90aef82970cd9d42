"""Alarms of a host: told to administrators by the head, which knows how."""

from __future__ import annotations

from collections import deque

import attrs
import msgspec

from obatchd import log
from obatchd.cluster.host.head import Head
from obatchd.cluster.messages import AlarmNews
from obatchd.documents.alarms import Alarm

_log = log.get(__name__)
_MOST_WAITING = 100


@attrs.define(eq=False)
class AlarmsToHead:
    """Keeps alarms while the head is away. Implements :class:`obatchd.documents.alarms.Announcer`."""

    _head: Head
    _waiting: deque[AlarmNews] = attrs.field(factory=deque, init=False)

    def announce(self, alarm: Alarm) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            dropped = self._waiting.popleft()
            _log.warning("alarm_dropped", kind=dropped.kind, reason="too many wait to be told")
        self._waiting.append(AlarmNews(type(alarm).__name__, msgspec.structs.asdict(alarm)))
        self.tell()

    def tell(self) -> None:
        """Tell the head what waits, if it is there."""
        while self._waiting and self._head.say(self._waiting[0]):
            self._waiting.popleft()
