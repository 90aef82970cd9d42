"""What hosts report for people at the head: alarms."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

import attrs
import msgspec

from obatchd import log
from obatchd.cluster.head.trust import lie
from obatchd.cluster.messages import AlarmNews
from obatchd.documents import alarms
from obatchd.documents.alarms import Alarm

_log = log.get(__name__)
# That a server failed is known here from its state.
_PASSED_ON = {
    kind.__name__: kind for kind in (alarms.GpuQuarantined, alarms.GpusUnknown, alarms.BurninFinished, alarms.DiskLow)
}
_MOST_AN_HOUR = 60  # of one host
_HOUR_S = 3600.0


class HostAnnouncer(Protocol):
    """Tells administrators; :class:`obatchd.telling.alarms.Alarms`."""

    def announce(self, alarm: Alarm, host: str = "") -> None:
        """Raise an alarm of ``host``, if somebody wants to hear of its kind."""


@attrs.define(eq=False)
class HostAlarms:
    """Passes alarms of hosts on, with the name of each."""

    _announcer: HostAnnouncer
    _lately: dict[str, deque[float]] = attrs.field(factory=dict, init=False)  # of each host (monotonic)

    def told(self, host: str, news: AlarmNews) -> None:
        """Raises ClusterError (``untrue``) where that is no alarm."""
        if (kind := _PASSED_ON.get(news.kind)) is None:
            _log.info("alarm_not_passed_on", host=host, kind=news.kind[:60])
            return
        try:
            alarm = msgspec.convert(news.fields, kind)
        except msgspec.ValidationError as error:
            raise lie(f"an alarm that is none: {error}") from None
        if len(alarm.words) > 4000:
            raise lie("an alarm without end")
        lately, now_s = self._lately.setdefault(host, deque()), time.monotonic()
        while lately and now_s - lately[0] > _HOUR_S:
            lately.popleft()
        if len(lately) >= _MOST_AN_HOUR:
            _log.warning("alarm_dropped", kind=alarm.kind, reason=f"host {host} raises too many")
            return
        lately.append(now_s)
        self._announcer.announce(alarm, host)
