"""The changes of each server's slots, of which it has one an hour; their times outlive the daemon."""

from __future__ import annotations

import attrs

from obatchd.dispatch.link import Link
from obatchd.dispatch.tuning.ports import Clock, FactStore
from obatchd.jobs.model import Profile

BETWEEN_S = 3600.0  # changes of one server for its slots
PREFIX = "slots_changed/"  # of the fact of a server: when it was given other slots, in seconds since the epoch


class Turn:
    """The changes of one server."""

    def __init__(self) -> None:
        self.changed_s = float("-inf")  # monotonic; the latest change of its slots
        self.session: Profile | None = None  # whose search has gone on without a break since then
        self.busy_s = 0.0  # monotonic; when its queue last kept every slot busy
        self.took_s = 0.0  # the latest change, drain included
        self.refused_s = float("-inf")  # monotonic; when a change was not worth it
        self.restarts = 0  # of the server, when it was looked at last
        self.process_slots = 0  # before the load in progress; 0 where its process had loaded nothing
        self.asked_slots = 0  # of the load in progress


@attrs.define(eq=False)
class Turns:
    """Those of all servers."""

    _facts: FactStore
    _clock: Clock
    _of: dict[str, Turn] = attrs.field(factory=dict, init=False)  # by server

    def of(self, link: Link) -> Turn:
        server = link.server.id
        turn = self._of.get(server)
        if turn is None:
            turn = self._of[server] = Turn()
            turn.restarts = link.server.tuning.restarts if link.server.tuning else 0
            turn.changed_s = self._known_s(server)
        return turn

    def changes(self, link: Link) -> None:
        """A server is given other slots now: written down before it begins, because the daemon may die of it."""
        self.of(link).changed_s = self._clock.monotonic()
        self._write(link.server.id)

    def _write(self, server: str) -> None:
        self._facts.set(PREFIX + server, f"{self._clock.time():.0f}")

    def _known_s(self, server: str) -> float:
        """When an earlier run of the daemon changed the slots of a server (monotonic, and maybe before 0).

        A time that is yet to come (the clock was set back) counts as now, once.
        """
        text = self._facts.get(PREFIX + server) or ""
        if not text.isdecimal() or len(text) > 12:
            return float("-inf")
        ago_s = self._clock.time() - int(text)
        if ago_s < 0:
            self._write(server)
        return self._clock.monotonic() - max(0.0, ago_s)
