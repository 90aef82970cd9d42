"""The head as the parts of a host see it: there for the length of a session, else away."""

from __future__ import annotations

import time
from typing import Any

import attrs

from obatchd.cluster.session import Session


@attrs.define(eq=False)
class Head:
    """Who is asked and told while there is a session; one that has been accepted."""

    session: Session[Any] | None = attrs.field(default=None, init=False)
    leaving: str = attrs.field(default="", init=False)  # why this host is about to go; it gets no new work then
    _left_s: float = attrs.field(factory=time.monotonic, init=False)

    def entered(self, session: Session[Any]) -> None:
        self.session = session

    def left(self, session: Session[Any]) -> None:
        if self.session is session:
            self.session, self._left_s = None, time.monotonic()

    @property
    def away_s(self) -> float:
        """For how long there has been no session; 0 while there is one."""
        return 0.0 if self.session is not None else time.monotonic() - self._left_s

    def say(self, message: object) -> bool:
        """Whether there is a session to say it in."""
        return self.session is not None and self.session.say(message)
