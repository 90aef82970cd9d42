"""Requests that were turned away by what stands in front of a server: each waits, for longer each time.

That is no verdict on a request, so it costs no attempt. But a proxy may turn away just one: it is too large, or it ends
the server behind. A request that was turned away again and again by servers that answered others in between is singled
out, and fails.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import attrs
import msgspec

from obatchd.dispatch.link import Link
from obatchd.jobs.lane import Taken
from obatchd.jobs.queue import JobQueue

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SINGLED_OUT = 15
Key = tuple[int, int]  # job, line


class _Refusal(msgspec.Struct):
    times: int = 0
    alone: int = 0  # of them, after the same server had answered others since the time before
    answers: dict[str, int] = {}  # by server: of how many requests, when it turned this one away


class _Waiting(NamedTuple):
    taken: Taken
    until_s: float  # monotonic


@attrs.define(eq=False)
class Refusals:
    """Keeps them until their next try."""

    _queue: JobQueue
    _known: dict[Key, _Refusal] = attrs.field(factory=dict, init=False)
    _waiting: dict[Key, _Waiting] = attrs.field(factory=dict, init=False)

    def count(self, key: Key, link: Link) -> int:
        """A request was turned away; 0, or if that singles it out, how often it was while others were answered."""
        refusal = self._known.setdefault(key, _Refusal())
        refusal.times += 1
        refusal.alone += link.requests_done > refusal.answers.get(link.server.id, link.requests_done)
        refusal.answers[link.server.id] = link.requests_done
        return refusal.alone if refusal.alone >= _SINGLED_OUT else 0

    def postpone(self, key: Key, taken: Taken, link: Link) -> None:
        """Let a request that was turned away wait until others have had their turn when the server has rested."""
        self._queue.postpone(taken)
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(self._known[key].times - 1, 16), _LONGEST_PAUSE_S)
        self._waiting[key] = _Waiting(taken, max(time.monotonic(), link.held_until_s) + pause_s)

    def answered(self) -> None:
        """A server that turned requests away answers again: end the wait of all that were not turned away alone."""
        for key, waiting in self._waiting.items():
            if not self._known[key].alone:
                self._waiting[key] = waiting._replace(until_s=0.0)

    def due(self) -> list[Taken]:
        """Requests that have waited; they belong to nobody now."""
        if not self._waiting:
            return []
        now_s = time.monotonic()
        due = [self._waiting.pop(key).taken for key, waiting in [*self._waiting.items()] if waiting.until_s <= now_s]
        for taken in due:
            self._queue.prepared(taken.lane, None)
        return due

    def forget(self, key: Key) -> None:
        """The request is over."""
        self._known.pop(key, None)
        self._waiting.pop(key, None)

    def forget_job(self, job: int) -> None:
        for key in [key for key in self._known if key[0] == job]:
            self.forget(key)
