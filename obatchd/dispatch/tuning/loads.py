"""The slots of each load: with how many it is to be, and what follows from how many it was."""

from __future__ import annotations

import attrs

from obatchd.dispatch.link import Link
from obatchd.dispatch.tuning.found import DOES_NOT_FIT, SERVER_DIED
from obatchd.dispatch.tuning.ports import Clock, TunableServer
from obatchd.dispatch.tuning.seats import Seat, Seats
from obatchd.dispatch.tuning.turns import Turn
from obatchd.dispatch.tuning.worth import Worth
from obatchd.jobs.model import Profile


@attrs.define(eq=False)
class Loads:
    """Around each load, for the switcher."""

    _seats: Seats
    _worth: Worth
    _clock: Clock

    def prepare(self, link: Link, profile: Profile) -> None:
        """A server is about to load ``profile``: say with how many slots."""
        server = link.server.tuning
        if server is None:
            return
        link.window = None
        seat, present = self._seats.of(link, server, profile), server.process_slots
        server.use(present)  # so that fewer of them after the load are those of a model
        step = self._seats.steps.get(link.server.id)
        if step is not None and step.profile == profile:
            asked = [step.slots, step.good]
        else:
            self._seats.steps.pop(link.server.id, None)
            asked = self._asked(seat, present)
        seat.turn.process_slots, seat.turn.asked_slots = 0 if server.fresh else present, asked[0]
        if not server.fresh and asked[0] != present:
            self._seats.turns.changes(link, seat.key)
        server.prefer(tuple(dict.fromkeys(asked)))

    def _asked(self, seat: Seat, present: int) -> list[int]:
        """The slots for a profile that comes to a server, by preference.

        It runs with those that the server has unless they are known not to fit, or its queue pays for a restart.
        """
        good = seat.found.good
        if seat.key in self._seats.single:
            return [present]
        if seat.server.fresh or present not in seat.found.fitting(seat.server.memory_bytes):
            return [good]
        pays = bool(seat.found.tried) and seat.found.gains_from(present)
        if pays and not self._seats.changes_for(seat.key.profile) and not self._worth.against(seat.link, seat.key):
            return [good]
        return [present, good]

    def loaded(self, link: Link, profile: Profile) -> None:
        """A server has loaded ``profile``."""
        server = link.server.tuning
        if server is None:
            return
        now_s, step = self._clock.monotonic(), self._seats.steps.pop(link.server.id, None)
        seat = self._seats.of(link, server, profile)
        found, turn, slots = seat.found, seat.turn, server.slots
        if slots != server.process_slots:  # the model takes one request at a time, whatever its server may
            self._seats.single.add(seat.key)
            return
        if not server.beside_others:
            if server.vram_bytes:
                found.vram_bytes[slots] = server.vram_bytes
            if slots != turn.asked_slots:
                self._seats.cannot(seat, turn.asked_slots, DOES_NOT_FIT)
        same = turn.process_slots == slots
        turn.used_slots = slots if step else found.used_of(slots, turn.used_slots if same else slots)
        server.use(turn.used_slots)
        if not found.tried:
            found.start = turn.used_slots
        turn.trial = profile if step is not None else None
        if step is not None or turn.process_slots not in (0, slots):
            self._seats.turns.changes(link, seat.key)
            turn.busy_s = now_s
            link.watch.begin_again(forget_speed=True)
        if step is not None:
            turn.took_s = now_s - step.began_s
        self._seats.kept.keep(seat.key)

    def not_loaded(self, link: Link, profile: Profile) -> None:
        """A server could not be given ``profile``."""
        server = link.server.tuning
        step = self._seats.steps.pop(link.server.id, None)
        if server is not None:
            server.prefer(())
        if server is None or step is None or step.profile != profile:
            return
        seat = self._seats.of(link, server, profile)
        turn = seat.turn
        self._seats.turns.changes(link, seat.key)
        turn.trial = None
        turn.restarts = server.restarts
        if step.slots != step.good:
            self._seats.cannot(seat, step.slots, SERVER_DIED)
        self._seats.kept.keep(seat.key)

    def died(self, link: Link, turn: Turn, server: TunableServer) -> None:
        """A server ended unasked: where it did so with a number that was being tried, the good one is used again."""
        turn.restarts = server.restarts
        profile, turn.trial = turn.trial, None
        if profile is None or link.window is None:
            return
        seat, slots = self._seats.of(link, server, profile), link.window.slots
        link.window = None
        if slots == server.process_slots and slots != seat.found.good:
            self._seats.cannot(seat, slots, SERVER_DIED)
            self._seats.kept.keep(seat.key)
