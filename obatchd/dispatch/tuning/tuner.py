"""Finds the slots with which the servers of one kind answer a profile fastest, on the batch work that waits anyway.

One server measures for all of its kind. It gets other slots by a planned restart and a load, which the
:class:`~obatchd.dispatch.switching.ProfileSwitcher` carries out as any other load, between requests. The steps of one
search follow one another while its queue keeps the server busy; else a server gets other slots at most once an hour.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import attrs

from obatchd import log
from obatchd.dispatch.link import Link
from obatchd.dispatch.tuning.found import Found, Kept, Key
from obatchd.dispatch.tuning.loads import Loads
from obatchd.dispatch.tuning.ports import Clock, Digests, FactStore, InteractiveWork, TunableServer
from obatchd.dispatch.tuning.search import GAIN, best_of
from obatchd.dispatch.tuning.seats import Seat, Seats, Step
from obatchd.dispatch.tuning.turns import Turn, Turns
from obatchd.dispatch.tuning.window import Window
from obatchd.dispatch.tuning.worth import Worth
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue

_log = log.get(__name__)
_LOOK_S = 1.0
_IDLE_S = 30.0  # a search is broken off when its server had free slots for so long
_WINDOW_S = 60.0
_WINDOW_ANSWERS = 200
_NO_WORK = "no server works on enough requests for it now"
_GAVE_WAY_S = 30.0  # a change that gave way to somebody who waited is not begun again: its server was emptied in vain
_ASK_AGAIN_S = 5.0  # whether a change is worth it: many jobs may have to be looked at


class Standing(NamedTuple):
    """How far a search is."""

    found: Found
    server: str  # that measures now, or is about to; empty for none
    slots: int  # that it measures; 0 for none
    answers: int  # seen so far
    waits: str  # why nothing is measured; empty where it is, or where the search is over


@attrs.define(eq=False)
class Tuner:
    """Decides on slots. ``clock`` is :mod:`time`, or that of a test."""

    _queue: JobQueue
    _links: Mapping[str, Link]
    _facts: FactStore
    _digests: Digests
    _interactive: InteractiveWork
    _clock: Clock = time
    kept: Kept = attrs.field(init=False)
    loads: Loads = attrs.field(init=False)
    waits: dict[str, str] = attrs.field(factory=dict, init=False)  # why no step is made now, by fact
    _worth: Worth = attrs.field(init=False)
    _seats: Seats = attrs.field(init=False)
    _looked_s: float = attrs.field(default=float("-inf"), init=False)

    def __attrs_post_init__(self) -> None:
        self.kept = Kept(self._facts)
        self._worth = Worth(self._queue, self._links, self._interactive, self._clock)
        self._seats = Seats(self._links, self._digests, self.kept, Turns(self._facts, self._clock))
        self.loads = Loads(self._seats, self._worth, self._clock)

    # Once a second.

    def look(self) -> None:
        """Take what was measured, and begin the changes that are due; does nothing before a second has passed."""
        now_s = self._clock.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        for link in self._links.values():
            if link.server.tuning is not None:
                self._look(link, link.server.tuning, now_s)

    def give_way(self) -> None:
        """Withdraw changes that have not come to their loads while somebody waits for an answer; costs nothing else."""
        if self._seats.steps and self._interactive.waits():
            for link in self._links.values():
                if link.server.id in self._seats.steps and link.loading is None:
                    self._withdraw(link)

    def _look(self, link: Link, server: TunableServer, now_s: float) -> None:
        turn = self._seats.turns.of(link)
        profile, step = link.server.loaded, self._seats.steps.get(link.server.id)
        if step is not None and link.loading is None:
            if link.switching_to != step.profile:
                self._withdraw(link)  # the server went down meanwhile, and others do its work
            return
        if turn.restarts != server.restarts:
            self.loads.died(link, turn, server)
        if profile is None or link.loading is not None or link.switching_to is not None or not link.server.ready:
            return
        seat = self._seats.of(link, server, profile)
        if seat.key in self._seats.single:
            return
        if self._queue.more_than(profile, 0) or link.started >= link.server.slots:
            turn.busy_s = now_s
        elif now_s - turn.busy_s > _IDLE_S:
            turn.session = None
        if seat.found.chosen:
            self._adopt(seat)
        elif self._seats.measures_for(seat.key, link):
            self._search(seat)

    def _search(self, seat: Seat) -> None:
        """Measure the present number, or go on to the next."""
        link, found, slots = seat.link, seat.found, seat.link.server.slots
        if seat.server.beside_others:
            link.window = None
            self.waits[seat.key.fact] = f"other people's processes use the GPU of {link.server.id}"
            return
        if link.window is not None and link.window.slots != slots:
            link.window = None
        if link.window is not None and link.window.full:
            self._note(seat, link.window)
            link.window = None
        wanted = found.following(seat.server.memory_bytes)
        if wanted is None:
            self._choose(seat)
        elif slots not in found.tried or wanted == slots:
            self.waits.pop(seat.key.fact, None)
            link.window = link.window or Window(slots)
        elif link.usable and not self._refused_lately(seat.turn):
            measure_s = min(_WINDOW_S, _WINDOW_ANSWERS * link.mean_s / wanted)
            if not self._change(seat, wanted, measure_s=measure_s) and self._is_slow(found, slots):
                self._change(seat, found.good)  # what is left pays for no further step, but for the way back

    def _note(self, seat: Seat, window: Window) -> None:
        found = seat.found
        found.compare_with(window.mix())
        measured = window.speed(found.mix, self._clock.time())
        found.note(measured)
        self.kept.keep(seat.key)
        _log.info(
            "slots_measured", server=seat.link.server.id, model=found.model, slots=window.slots,
            tokens_per_s=round(measured.tokens_per_s, 1), spread_percent=round(100 * measured.spread, 1),
            answers=measured.answers,
        )  # fmt: skip

    def _choose(self, seat: Seat) -> None:
        found = seat.found
        if not found.tried:
            return
        found.chosen = best_of(found.tried).slots
        self.kept.keep(seat.key)
        self._seats.leave(seat.key)
        self.waits.pop(seat.key.fact, None)
        _log.info(
            "slots_chosen", model=found.model, device=found.device, slots=found.chosen,
            tokens_per_s=round(found.tried[found.chosen].tokens_per_s, 1), tried=len(found.tried),
        )  # fmt: skip
        self._adopt(seat)

    def _adopt(self, seat: Seat) -> None:
        """Give a server the number that was found, where that gains something."""
        link, found = seat.link, seat.found
        link.window = None
        if link.server.slots == found.chosen or seat.server.beside_others or not link.usable:
            return
        if self._refused_lately(seat.turn):
            return
        if link.server.slots not in found.tried or self._is_slow(found, link.server.slots):
            self._change(seat, found.chosen)

    def _refused_lately(self, turn: Turn) -> bool:
        return self._clock.monotonic() - turn.refused_s < _ASK_AGAIN_S

    @staticmethod
    def _is_slow(found: Found, slots: int) -> bool:
        """Whether the good number is known to be worth a change from this one."""
        return found.tried[found.good].tokens_per_s >= (1 + GAIN) * found.tried[slots].tokens_per_s

    def _change(self, seat: Seat, slots: int, *, measure_s: float = 0.0) -> bool:
        """Begin a change if it is worth it: the server is emptied, then restarted and loaded by the switcher.

        One that is to be measured for ``measure_s`` may have to be taken back. False: it is not worth it now.
        """
        link, key, turn, now_s = seat.link, seat.key, seat.turn, self._clock.monotonic()
        together = any(step.profile == key.profile for step in self._seats.steps.values())
        if together or not link.requests_done:  # how long an answer takes is not known yet
            return True
        if against := self._worth.against(link, turn, key.profile, measure_s=measure_s):
            turn.refused_s = now_s
            self.waits[key.fact] = against
            self._seats.leave(key)  # another server may
            return False
        self.waits.pop(key.fact, None)
        found = seat.found
        if slots not in found.tried:
            found.begun[slots] = found.begun.get(slots, 0) + 1
            self.kept.keep(key)  # if the daemon ends in this step, its next start uses the good number
        self._seats.steps[link.server.id] = Step(key.profile, slots, found.good, now_s)
        link.window = None
        link.switching_to = key.profile
        _log.info(
            "slots_change", server=link.server.id, model=key.profile.model, old=link.server.slots, new=slots,
            in_flight=len(link.offers),
        )  # fmt: skip
        return True

    def _withdraw(self, link: Link) -> None:
        step = self._seats.steps.pop(link.server.id)
        if link.switching_to == step.profile:
            link.switching_to = None
        self._seats.turns.of(link).refused_s = self._clock.monotonic() + _GAVE_WAY_S - _ASK_AGAIN_S
        self._unbegin(link, step)

    def _unbegin(self, link: Link, step: Step) -> None:
        """A step that did not reach its load says nothing of its number."""
        server = link.server.tuning
        if server is not None:
            seat = self._seats.of(link, server, step.profile)
            left = seat.found.begun.pop(step.slots, 0) - 1
            if left > 0:
                seat.found.begun[step.slots] = left
            self.kept.keep(seat.key)

    def stop(self) -> None:
        """The daemon ends in good order: that says nothing of numbers which were begun and not measured."""
        self.kept.forgive()

    def stands(self) -> Iterator[Standing]:
        """How far each search is."""
        for found in self.kept.all():
            key = Key(found.device, Profile(found.model, found.context_length))
            link = self._seats.measuring(key)
            if found.chosen or link is None:
                yield Standing(found, "", 0, 0, "" if found.chosen else self.waits.get(key.fact, _NO_WORK))
                continue
            step, busy_s = self._seats.steps.get(link.server.id), self._seats.turns.of(link).busy_s
            window = link.window if link.server.loaded == key.profile else None
            if step is not None and step.profile == key.profile:
                yield Standing(found, link.server.id, step.slots, 0, "")
            elif window is not None and self._clock.monotonic() - busy_s <= _IDLE_S:
                yield Standing(found, link.server.id, window.slots, window.answers, "")
            else:
                yield Standing(found, "", 0, 0, self.waits.get(key.fact, _NO_WORK))
