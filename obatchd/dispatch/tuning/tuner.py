"""Finds the slots with which the servers of one kind answer a profile fastest, on the batch work that waits anyway.

One server at a time measures for all of its kind. It gets more slots by a planned restart and a load, which the
:class:`~obatchd.dispatch.switching.ProfileSwitcher` carries out as any other load, between requests, at most once in
``tune_pause_s``. A smaller number takes neither: the server leaves some of its slots free. So numbers below the one
that it has are measured at once, and one that turns out to be too large is given back at once.
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
from obatchd.dispatch.tuning.search import best_of
from obatchd.dispatch.tuning.seats import Seat, Seats, Step
from obatchd.dispatch.tuning.turns import Turn, Turns
from obatchd.dispatch.tuning.window import Window
from obatchd.dispatch.tuning.worth import Worth
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)
_LOOK_S = 1.0
_IDLE_S = 30.0  # a window is told to operators until its server had free slots for so long
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
    _settings: Current[Settings]
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
        turns = Turns(self._facts, self._clock, self._settings)
        self._worth = Worth(self._queue, self._links, turns, self._interactive, self._clock)
        self._seats = Seats(self._links, self._digests, self.kept, turns)
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
        if seat.found.chosen:
            self._adopt(seat)
        elif self._seats.measures_for(seat.key, link):
            self._search(seat)
        self._use(seat)

    @staticmethod
    def _use(seat: Seat) -> None:
        """Let the server work with the number that is measured, or as many of its slots as serve well."""
        window, present = seat.link.window, seat.server.process_slots
        slots = window.slots if window is not None else seat.found.used_of(present, seat.server.slots)
        seat.turn.used_slots = slots
        if slots != seat.server.slots:
            seat.server.use(slots)
        if window is not None and not window.settled and seat.link.started <= slots:
            window.settle(frozenset(seat.link.offers))

    def _search(self, seat: Seat) -> None:
        """Measure the next number, or see to it that the server gets as many slots."""
        link, found, present = seat.link, seat.found, seat.server.process_slots
        if seat.server.beside_others:
            link.window = None
            self.waits[seat.key.fact] = f"other people's processes use the GPU of {link.server.id}"
            return
        if link.window is not None and link.window.full:
            self._note(seat, link.window)
            link.window = None
        wanted = found.following(seat.server.memory_bytes)
        if seat.turn.trial == seat.key.profile and present not in found.tried:
            wanted = present  # it was given these slots for that
        if wanted is not None and wanted > present and self._seats.turns.against(link, seat.key):
            wanted = found.smaller(seat.server.memory_bytes) or wanted  # that takes no change
        if wanted is None:
            self._choose(seat)
        elif not found.tried or wanted <= present:
            self._measure(seat, wanted if found.tried else seat.server.slots)
        elif self._seats.others_first(seat):
            self._seats.leave(seat.key)
        elif link.usable and not self._refused_lately(seat.turn):
            measure_s = self._measure_s(link, wanted)
            if not self._change(seat, wanted, measure_s=measure_s) and found.gains_from(present):
                self._change(seat, found.good)  # what is left pays for no further step, but for a number known to gain

    def _measure(self, seat: Seat, slots: int) -> None:
        """Measure a number that takes no change, because the server has as many slots or more."""
        link, server, key = seat.link, seat.server, seat.key
        if slots < server.process_slots:
            begun = link.window is not None and link.window.slots == slots
            if not begun and self._refused_lately(seat.turn):
                return
            if begun and not self._queue.more_than(key.profile, 0):
                link.window = None  # the next job is to have all slots
                return
            measure_s = 0.0 if begun else self._measure_s(link, slots)
            if against := self._worth.against_fewer(link, key.profile, measure_s):
                link.window = None
                self._refuse(seat, against)
                if begun:
                    seat.turn.refused_s += _GAVE_WAY_S - _ASK_AGAIN_S
                return
        self.waits.pop(key.fact, None)
        if link.window is None or link.window.slots != slots:
            link.window = Window(slots, settled=server.slots == slots)

    @staticmethod
    def _measure_s(link: Link, slots: int) -> float:
        """How long a window takes at most, about."""
        return min(_WINDOW_S, _WINDOW_ANSWERS * link.mean_s / slots)

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
        """Give a server the number that was found, where it has fewer and that gains something."""
        link = seat.link
        link.window = None
        if not seat.found.gains_from(seat.server.process_slots) or seat.server.beside_others or not link.usable:
            return
        if not self._refused_lately(seat.turn) and not self._seats.others_first(seat):
            self._change(seat, seat.found.chosen)

    def _refused_lately(self, turn: Turn) -> bool:
        return self._clock.monotonic() - turn.refused_s < _ASK_AGAIN_S

    def _refuse(self, seat: Seat, against: str) -> None:
        seat.turn.refused_s = self._clock.monotonic()
        self.waits[seat.key.fact] = against
        self._seats.leave(seat.key)  # another server may

    def _change(self, seat: Seat, slots: int, *, measure_s: float = 0.0) -> bool:
        """Begin a change if it is worth it: the server is emptied, then restarted and loaded by the switcher.

        One that is to be measured for ``measure_s`` may have to be taken back. False: it is not worth it now.
        """
        link, key = seat.link, seat.key
        if self._seats.changes_for(key.profile) or not link.requests_done:  # how long an answer takes is not known yet
            return True
        if against := self._worth.against(link, key, measure_s=measure_s):
            self._refuse(seat, against)
            return False
        self.waits.pop(key.fact, None)
        found = seat.found
        if slots not in found.tried:
            found.begun[slots] = found.begun.get(slots, 0) + 1
            self.kept.keep(key)  # if the daemon ends in this step, its next start uses the good number
        self._seats.steps[link.server.id] = Step(key.profile, slots, found.good, self._clock.monotonic())
        link.window = None
        link.switching_to = key.profile
        _log.info(
            "slots_change", server=link.server.id, model=key.profile.model, old=seat.server.process_slots, new=slots,
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
