"""Reasons for which nothing new is offered to any server."""

from __future__ import annotations

from typing import Protocol

import attrs

from obatchd import log

_log = log.get(__name__)
STOPPING = "stopping"  # the daemon is told to stop
DRAINING = "draining"  # an administrator has said so, as with the next
PAUSED = "paused"
_TOLD = {
    DRAINING: "obatchd is drained; an administrator ends that with  obatchctl undrain",
    PAUSED: "all jobs are paused; an administrator ends that with  obatchctl resume",
}


class HoldListener(Protocol):
    """Hears of every reason that begins or ends."""

    def held(self, reason: str) -> None:
        """Nothing new is to be offered; ``reason`` was not there before."""

    def released(self, reason: str) -> None:
        """``reason`` is over; others may still hold."""


@attrs.define(eq=False)
class Holds:
    """The reasons that hold dispatch now. In-flight requests end as they would."""

    reasons: set[str] = attrs.field(factory=set, init=False)  # empty while dispatch runs
    _listeners: list[HoldListener] = attrs.field(factory=list, init=False)

    @property
    def told(self) -> str:
        """What somebody said that keeps all work waiting; empty where nobody did."""
        return next((words for reason, words in _TOLD.items() if reason in self.reasons), "")

    def listen(self, listener: HoldListener) -> None:
        self._listeners.append(listener)

    def hold(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.add(reason)
            _log.info("dispatch_held", reason=reason)
            for listener in self._listeners:
                listener.held(reason)

    def release(self, reason: str) -> None:
        if reason in self.reasons:
            self.reasons.discard(reason)
            _log.info("dispatch_resumed", reason=reason)
            for listener in self._listeners:
                listener.released(reason)
