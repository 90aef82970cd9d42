"""Requests that were turned away by what stands in front of a server: each waits, for longer each time.

That is no verdict on a request, so it costs no attempt. But a proxy may turn away just one: it is too large, or it ends
the server behind. So these requests let all others go first, and come back a few at a time. One that was turned away
again and again by servers that answered others in between is singled out, and fails.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import NamedTuple

import attrs
import msgspec

from obatchd.dispatch.link import Link
from obatchd.jobs.lane import Taken
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SINGLED_OUT = 15
_AFTER_ANSWER = 2  # come back for each answer: many that are turned away again must keep the others from no server
Key = tuple[int, int]  # job, line


class _Refusal(msgspec.Struct):
    times: int = 0
    alone: int = 0  # of them, after the same server had answered others since the time before
    answers: dict[str, int] = {}  # by server: of how many requests, when it turned this one away


class _Waiting(NamedTuple):
    taken: Taken
    until_s: float  # monotonic

    @property
    def is_due(self) -> bool:
        return self.until_s <= time.monotonic()


@attrs.define(eq=False)
class Refusals:
    """Keeps them until their next try."""

    _queue: JobQueue
    _known: dict[Key, _Refusal] = attrs.field(factory=dict, init=False)
    _waiting: dict[Profile, dict[Key, _Waiting]] = attrs.field(factory=dict, init=False)

    def count(self, key: Key, link: Link) -> int:
        """A request was turned away; 0, or if that singles it out, how often it was while others were answered."""
        refusal = self._known.setdefault(key, _Refusal())
        refusal.times += 1
        refusal.alone += link.requests_done > refusal.answers.get(link.server.id, link.requests_done)
        refusal.answers[link.server.id] = link.requests_done
        return refusal.alone if refusal.alone >= _SINGLED_OUT else 0

    def postpone(self, key: Key, taken: Taken, link: Link) -> None:
        """Let a request that was turned away wait, longer than the server rests."""
        self._queue.postpone(taken)
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(self._known[key].times - 1, 16), _LONGEST_PAUSE_S)
        waiting = _Waiting(taken, max(time.monotonic(), link.held_until_s) + pause_s)
        self._waiting.setdefault(taken.lane.profile, {})[key] = waiting

    def after_answer(self, profile: Profile) -> list[Taken]:
        """A server answered another request: the next few that may be tried again, for nobody else holds them."""
        if not self._waiting:  # as nearly always, and this runs for each answer
            return []
        waiting = self._waiting.get(profile, {})
        ready = (key for key, one in waiting.items() if not self._known[key].alone or one.is_due)
        return [self._take(profile, key) for key in list(islice(ready, _AFTER_ANSWER))]

    def while_idle(self) -> list[Taken]:
        """Of each profile for which nothing else is at hand one that has waited: it shows whether a server answers."""
        idle = [each for each in self._waiting.items() if not self._queue.at_hand(each[0])]
        first = [(profile, next((key for key, one in them.items() if one.is_due), None)) for profile, them in idle]
        return [self._take(profile, key) for profile, key in first if key is not None]

    def _take(self, profile: Profile, key: Key) -> Taken:
        taken = self._waiting[profile].pop(key).taken
        if not self._waiting[profile]:
            del self._waiting[profile]
        self._queue.take_up(taken)
        return taken

    def forget(self, key: Key) -> None:
        """The request, which does not wait here, is over."""
        self._known.pop(key, None)

    def forget_job(self, job: int) -> None:
        for profile, waiting in list(self._waiting.items()):
            for key in [key for key in waiting if key[0] == job]:
                self._take(profile, key)
        for key in [key for key in self._known if key[0] == job]:
            self.forget(key)
