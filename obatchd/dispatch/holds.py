"""Reasons for which nothing new is offered to any server."""

from __future__ import annotations

from typing import Protocol

from obatchd import log

_log = log.get(__name__)


class HoldListener(Protocol):
    """Hears of every reason that begins or ends."""

    def held(self, reason: str) -> None:
        """Nothing new is to be offered; ``reason`` was not there before."""

    def released(self, reason: str) -> None:
        """``reason`` is over; others may still hold."""


class Holds:
    """The reasons that hold dispatch now. In-flight requests end as they would."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()
        self._listeners: list[HoldListener] = []

    def listen(self, listener: HoldListener) -> None:
        self._listeners.append(listener)

    def hold(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.add(reason)
            _log.info("dispatch_held", reason=reason)
            for listener in self._listeners:
                listener.held(reason)

    def release(self, reason: str) -> None:
        if reason in self._reasons:
            self._reasons.discard(reason)
            _log.info("dispatch_resumed", reason=reason)
            for listener in self._listeners:
                listener.released(reason)

    @property
    def reasons(self) -> frozenset[str]:
        """Empty while dispatch runs."""
        return frozenset(self._reasons)
