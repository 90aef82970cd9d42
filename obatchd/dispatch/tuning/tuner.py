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
import msgspec

from obatchd import log
from obatchd.dispatch.link import Link
from obatchd.dispatch.tuning.found import DOES_NOT_FIT, SERVER_DIED, Found, Kept, Key, Versions
from obatchd.dispatch.tuning.ports import Clock, Digests, FactStore, InteractiveWork, TunableServer
from obatchd.dispatch.tuning.search import GAIN, best_of
from obatchd.dispatch.tuning.window import Window
from obatchd.dispatch.tuning.worth import Turn, Worth
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


class Step(msgspec.Struct, eq=False):
    """Another number of slots for what a server has loaded, decided and not loaded yet."""

    profile: Profile
    slots: int
    good: int  # goes back to this where the other number does not fit
    began_s: float  # monotonic


class Standing(NamedTuple):
    """How far a search is."""

    found: Found
    server: str  # that measures now, or is about to; empty for none
    slots: int  # that it measures; 0 for none
    answers: int  # seen so far
    waits: str  # why nothing is measured; empty where it is, or where the search is over


class _Seat(NamedTuple):
    """A server that can be tuned, with its profile's search."""

    link: Link
    server: TunableServer
    key: Key
    found: Found
    turn: Turn


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
    waits: dict[str, str] = attrs.field(factory=dict, init=False)  # why no step is made now, by fact
    _worth: Worth = attrs.field(init=False)
    _turns: dict[str, Turn] = attrs.field(factory=dict, init=False)  # by server
    _steps: dict[str, Step] = attrs.field(factory=dict, init=False)  # by server
    _measures: dict[Key, str] = attrs.field(factory=dict, init=False)  # the server that measures
    _single: set[Key] = attrs.field(factory=set, init=False)  # models that take one request at a time
    _looked_s: float = attrs.field(default=float("-inf"), init=False)

    def __attrs_post_init__(self) -> None:
        self.kept = Kept(self._facts)
        self._worth = Worth(self._queue, self._links, self._interactive, self._clock)

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
        if self._steps and self._interactive.waits():
            for link in self._links.values():
                if link.server.id in self._steps and link.loading is None:
                    self._withdraw(link)

    def _look(self, link: Link, server: TunableServer, now_s: float) -> None:
        turn = self._turn(link)
        profile, step = link.server.loaded, self._steps.get(link.server.id)
        if step is not None and link.loading is None:
            if link.switching_to != step.profile:
                self._withdraw(link)  # the server went down meanwhile, and others do its work
            return
        if turn.restarts != server.restarts:
            self._died(link, turn, server)
        if profile is None or link.loading is not None or link.switching_to is not None or not link.server.ready:
            return
        seat = self._seat(link, server, profile)
        if seat.key in self._single:
            return
        if self._queue.more_than(profile, 0) or link.started >= link.server.slots:
            turn.busy_s = now_s
        elif now_s - turn.busy_s > _IDLE_S:
            turn.session = None
        if seat.found.chosen:
            self._adopt(seat)
        elif self._measures_for(seat.key, link):
            self._search(seat)

    def _search(self, seat: _Seat) -> None:
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

    def _note(self, seat: _Seat, window: Window) -> None:
        found = seat.found
        if not found.tried:
            found.mix = window.mix()
        measured = window.speed(found.mix, self._clock.time())
        found.note(measured)
        self.kept.keep(seat.key)
        _log.info(
            "slots_measured", server=seat.link.server.id, model=found.model, slots=window.slots,
            tokens_per_s=round(measured.tokens_per_s, 1), spread_percent=round(100 * measured.spread, 1),
            answers=measured.answers,
        )  # fmt: skip

    def _choose(self, seat: _Seat) -> None:
        found = seat.found
        if not found.tried:
            return
        found.chosen = best_of(found.tried).slots
        self.kept.keep(seat.key)
        self._measures.pop(seat.key, None)
        self.waits.pop(seat.key.fact, None)
        _log.info(
            "slots_chosen", model=found.model, device=found.device, slots=found.chosen,
            tokens_per_s=round(found.tried[found.chosen].tokens_per_s, 1), tried=len(found.tried),
        )  # fmt: skip
        self._adopt(seat)

    def _adopt(self, seat: _Seat) -> None:
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

    def _change(self, seat: _Seat, slots: int, *, measure_s: float = 0.0) -> bool:
        """Begin a change if it is worth it: the server is emptied, then restarted and loaded by the switcher.

        One that is to be measured for ``measure_s`` may have to be taken back. False: it is not worth it now.
        """
        link, key, turn, now_s = seat.link, seat.key, seat.turn, self._clock.monotonic()
        together = any(step.profile == key.profile for step in self._steps.values())
        if together or not link.requests_done:  # how long an answer takes is not known yet
            return True
        if against := self._worth.against(link, turn, key.profile, measure_s=measure_s):
            turn.refused_s = now_s
            self.waits[key.fact] = against
            self._measures.pop(key, None)  # another server may
            return False
        self.waits.pop(key.fact, None)
        found = seat.found
        if slots not in found.tried:
            found.begun[slots] = found.begun.get(slots, 0) + 1
            self.kept.keep(key)  # if the daemon ends in this step, its next start uses the good number
        self._steps[link.server.id] = Step(key.profile, slots, found.good, now_s)
        link.window = None
        link.switching_to = key.profile
        _log.info(
            "slots_change", server=link.server.id, model=key.profile.model, old=link.server.slots, new=slots,
            in_flight=len(link.offers),
        )  # fmt: skip
        return True

    def _withdraw(self, link: Link) -> None:
        step = self._steps.pop(link.server.id)
        if link.switching_to == step.profile:
            link.switching_to = None
        self._turn(link).refused_s = self._clock.monotonic() + _GAVE_WAY_S - _ASK_AGAIN_S
        self._unbegin(link, step)

    def _unbegin(self, link: Link, step: Step) -> None:
        """A step that did not reach its load says nothing of its number."""
        server = link.server.tuning
        if server is not None:
            seat = self._seat(link, server, step.profile)
            left = seat.found.begun.pop(step.slots, 0) - 1
            if left > 0:
                seat.found.begun[step.slots] = left
            self.kept.keep(seat.key)

    # Around each load, for the switcher.

    def prepare(self, link: Link, profile: Profile) -> None:
        """A server is about to load ``profile``: say with how many slots."""
        server = link.server.tuning
        if server is None:
            return
        link.window = None
        seat, present = self._seat(link, server, profile), server.process_slots
        step = self._steps.get(link.server.id)
        if step is not None and step.profile == profile:
            asked = [step.slots, step.good]
        else:
            self._steps.pop(link.server.id, None)
            asked = self._asked(seat, present)
        seat.turn.process_slots, seat.turn.asked_slots = 0 if server.fresh else present, asked[0]
        server.prefer(tuple(dict.fromkeys(asked)))

    def _asked(self, seat: _Seat, present: int) -> list[int]:
        """The slots for a profile that comes to a server, by preference.

        It runs with those that the server has unless they are known not to fit, or its queue pays for a restart.
        """
        good, known = seat.found.good, bool(seat.found.tried)
        if seat.key in self._single:
            return [present]
        if seat.server.fresh or present not in seat.found.fitting(seat.server.memory_bytes):
            return [good]
        if known and present != good and not self._worth.against(seat.link, seat.turn, seat.key.profile):
            return [good]
        return [present, good]

    def loaded(self, link: Link, profile: Profile) -> None:
        """A server has loaded ``profile``."""
        server = link.server.tuning
        if server is None:
            return
        now_s, step = self._clock.monotonic(), self._steps.pop(link.server.id, None)
        seat = self._seat(link, server, profile)
        found, turn, slots = seat.found, seat.turn, server.slots
        if slots != server.process_slots:  # the model takes one request at a time, whatever its server may
            self._single.add(seat.key)
            return
        if not server.beside_others:
            if server.vram_bytes:
                found.vram_bytes[slots] = server.vram_bytes
            if slots != turn.asked_slots:
                self._cannot(seat, turn.asked_slots, DOES_NOT_FIT)
        if not found.tried:
            found.start = slots
        if turn.session != profile:
            turn.session = None
        if turn.process_slots not in (0, slots):
            turn.changed_s, turn.busy_s = now_s, now_s
            turn.session = profile if step is not None else None
            link.watch.begin_again(forget_speed=True)
        if step is not None:
            turn.took_s = now_s - step.began_s
        self.kept.keep(seat.key)

    def not_loaded(self, link: Link, profile: Profile) -> None:
        """A server could not be given ``profile``."""
        server = link.server.tuning
        step = self._steps.pop(link.server.id, None)
        if server is not None:
            server.prefer(())
        if server is None or step is None or step.profile != profile:
            return
        seat = self._seat(link, server, profile)
        turn = seat.turn
        turn.changed_s, turn.session = self._clock.monotonic(), None
        turn.restarts = server.restarts
        if step.slots != step.good:
            self._cannot(seat, step.slots, SERVER_DIED)
        self.kept.keep(seat.key)

    def _cannot(self, seat: _Seat, slots: int, reason: str) -> None:
        """A number is not tried again with these versions; what is known of the others decides."""
        found = seat.found
        found.cannot[slots] = reason
        found.begun.pop(slots, None)
        for other in [o for o in found.tried if o == slots or (reason == DOES_NOT_FIT and o > slots)]:
            del found.tried[other]
        if found.start == slots or (reason == DOES_NOT_FIT and found.start > slots):
            found.start = seat.link.server.slots
        if found.chosen and found.chosen not in found.tried:
            found.chosen = best_of(found.tried).slots if found.tried else 0
        _log.warning(
            "slots_do_not_serve", server=seat.link.server.id, model=found.model, slots=slots, cause=reason,
            good=found.good,
        )  # fmt: skip

    def _died(self, link: Link, turn: Turn, server: TunableServer) -> None:
        """A server ended unasked: where it did so with a number that was being tried, the good one is used again."""
        turn.restarts = server.restarts
        profile, turn.session = turn.session, None
        if profile is None or link.window is None:
            return
        seat, slots = self._seat(link, server, profile), link.window.slots
        link.window = None
        if slots != seat.found.good:
            self._cannot(seat, slots, SERVER_DIED)
            self.kept.keep(seat.key)

    def stop(self) -> None:
        """The daemon ends in good order: that says nothing of numbers which were begun and not measured."""
        self.kept.forgive()

    # What belongs together.

    def _turn(self, link: Link) -> Turn:
        turn = self._turns.get(link.server.id)
        if turn is None:
            turn = self._turns[link.server.id] = Turn()
            turn.restarts = link.server.tuning.restarts if link.server.tuning else 0
        return turn

    def _seat(self, link: Link, server: TunableServer, profile: Profile) -> _Seat:
        key = Key(server.device, profile)
        versions = Versions(server.version, server.driver, self._digests.digest_on(server.id, profile.model))
        start = server.slots if link.server.loaded == profile else server.first_slots(profile)
        found = self.kept.of(key, versions, start)
        return _Seat(link, server, key, found, self._turn(link))

    def _measures_for(self, key: Key, link: Link) -> bool:
        """Whether this server measures for its kind: the first one does, until it has something else to do."""
        owner = self._links.get(self._measures.get(key, ""))
        steps = owner is not None and owner.server.id in self._steps
        if owner is None or not (steps or (owner.server.ready and owner.server.loaded == key.profile)):
            self._measures[key] = link.server.id
        return self._measures[key] == link.server.id

    def stands(self) -> Iterator[Standing]:
        """How far each search is."""
        for found in self.kept.all():
            key = Key(found.device, Profile(found.model, found.context_length))
            link = self._links.get(self._measures.get(key, ""))
            if found.chosen or link is None:
                yield Standing(found, "", 0, 0, "" if found.chosen else self.waits.get(key.fact, _NO_WORK))
                continue
            step, busy_s = self._steps.get(link.server.id), self._turn(link).busy_s
            window = link.window if link.server.loaded == key.profile else None
            if step is not None and step.profile == key.profile:
                yield Standing(found, link.server.id, step.slots, 0, "")
            elif window is not None and self._clock.monotonic() - busy_s <= _IDLE_S:
                yield Standing(found, link.server.id, window.slots, window.answers, "")
            else:
                yield Standing(found, "", 0, 0, self.waits.get(key.fact, _NO_WORK))
