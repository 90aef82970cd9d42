"""The changes of slots: in ``tune_pause_s`` at most one of a server and one for a profile, also over restarts."""

from __future__ import annotations

import math

import attrs

from obatchd.dispatch.link import Link
from obatchd.dispatch.tuning.found import PREFIX as TUNED
from obatchd.dispatch.tuning.found import Key
from obatchd.dispatch.tuning.ports import Clock, FactStore
from obatchd.jobs.model import Profile
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.times import duration

# Of the facts of a server and of a profile on one kind of GPU: when slots were changed, in seconds since the epoch.
SERVER, PROFILE = "slots_changed/", "slots_changed_for/"


class Turn:
    """What was last done to the slots of one server."""

    def __init__(self) -> None:
        self.trial: Profile | None = None  # for which it was given the slots that it has, by a step
        self.busy_s = 0.0  # monotonic; when its queue last kept every slot busy
        self.took_s = 0.0  # the latest change, drain included
        self.refused_s = float("-inf")  # monotonic; when a change was not worth it
        self.restarts = 0  # of the server, when it was looked at last
        self.process_slots = 0  # before the load in progress; 0 where its process had loaded nothing
        self.asked_slots = 0  # of the load in progress
        self.used_slots = 0  # of those of the process, at last; a profile that nothing is known of goes on with them


@attrs.define(eq=False)
class Turns:
    """Those of all servers, and the times of their changes."""

    _facts: FactStore
    _clock: Clock
    _settings: Current[Settings]
    _of: dict[str, Turn] = attrs.field(factory=dict, init=False)  # by server
    _changed_s: dict[str, float] = attrs.field(factory=dict, init=False)  # by fact; monotonic

    def of(self, link: Link) -> Turn:
        server = link.server.id
        turn = self._of.get(server)
        if turn is None:
            turn = self._of[server] = Turn()
            turn.restarts = link.server.tuning.restarts if link.server.tuning else 0
        return turn

    def changes(self, link: Link, key: Key) -> None:
        """A server is given other slots now: written down before it begins, because the daemon may die of it."""
        for fact in (SERVER + link.server.id, _of_profile(key)):
            self._changed_s[fact] = self._clock.monotonic()
            self._write(fact)

    def rests(self, link: Link) -> bool:
        """Whether a server keeps its slots for now, whatever the profile."""
        return self._left_s(SERVER + link.server.id) > 0

    def against(self, link: Link, key: Key) -> str:
        """Why it is too early for other slots, in words; empty where it is not."""
        pause = duration(self._settings.value.servers.tune_pause_s)
        own_s, others_s = self._left_s(SERVER + link.server.id), self._left_s(_of_profile(key))
        left = duration(max(1.0, own_s, others_s))
        if own_s >= others_s and own_s > 0:
            return f"a server gets other slots at most once in {pause}; {link.server.id} may in {left}"
        if others_s > 0:
            return f"one server at a time gets other slots for a model, at most one in {pause}; the next may in {left}"
        return ""

    def _left_s(self, fact: str) -> float:
        if fact not in self._changed_s:
            self._changed_s[fact] = self._known_s(fact)
        return self._changed_s[fact] + self._settings.value.servers.tune_pause_s - self._clock.monotonic()

    def _write(self, fact: str) -> None:
        self._facts.set(fact, str(math.ceil(self._clock.time())))

    def _known_s(self, fact: str) -> float:
        """When an earlier run of the daemon changed slots (monotonic, and maybe before 0).

        A time that is yet to come (the clock was set back) counts as now, once.
        """
        text = self._facts.get(fact) or ""
        if not text.isdecimal() or len(text) > 12:
            return float("-inf")
        ago_s = self._clock.time() - int(text)
        if ago_s < 0:
            self._write(fact)
        return self._clock.monotonic() - max(0.0, ago_s)


def _of_profile(key: Key) -> str:
    return PROFILE + key.fact.removeprefix(TUNED)
