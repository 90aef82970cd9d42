"""What belongs together: a server, the search for the profile that it has, and the changes of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import attrs
import msgspec

from obatchd import log
from obatchd.dispatch.link import Link
from obatchd.dispatch.tuning.found import DOES_NOT_FIT, Found, Kept, Key, Versions
from obatchd.dispatch.tuning.ports import Digests, TunableServer
from obatchd.dispatch.tuning.search import best_of
from obatchd.dispatch.tuning.turns import Turn, Turns
from obatchd.jobs.model import Profile

_log = log.get(__name__)


class Step(msgspec.Struct, eq=False):
    """Another number of slots for what a server has loaded, decided and not loaded yet."""

    profile: Profile
    slots: int
    good: int  # goes back to this where the other number does not fit
    began_s: float  # monotonic


class Seat(NamedTuple):
    """A server that can be tuned, with its profile's search."""

    link: Link
    server: TunableServer
    key: Key
    found: Found
    turn: Turn


@attrs.define(eq=False)
class Seats:
    """Of all servers; the tuner decides on their steps, and loads carry those out."""

    _links: Mapping[str, Link]
    _digests: Digests
    kept: Kept
    turns: Turns
    steps: dict[str, Step] = attrs.field(factory=dict, init=False)  # by server
    single: set[Key] = attrs.field(factory=set, init=False)  # models that take one request at a time
    _measures: dict[Key, str] = attrs.field(factory=dict, init=False)  # the server that measures

    def of(self, link: Link, server: TunableServer, profile: Profile) -> Seat:
        key = Key(server.device, profile)
        versions = Versions(server.version, server.driver, self._digests.digest_on(server.id, profile.model))
        start = server.slots if link.server.loaded == profile else server.first_slots(profile)
        found = self.kept.of(key, versions, start, server.memory_bytes)
        return Seat(link, server, key, found, self.turns.of(link))

    def changes_for(self, profile: Profile) -> bool:
        """Whether a server is about to get other slots for this profile."""
        return any(step.profile == profile for step in self.steps.values())

    def others_first(self, seat: Seat) -> bool:
        """Whether another server, which does the same with fewer slots, gains more by other ones."""
        return any(
            other is not seat.link
            and other.usable
            and other.server.loaded == seat.key.profile
            and (server := other.server.tuning) is not None
            and server.device == seat.key.device
            and server.process_slots < seat.server.process_slots
            and seat.found.gains_from(server.process_slots)
            and not server.beside_others
            and not self.turns.rests(other)
            for other in self._links.values()
        )

    def measures_for(self, key: Key, link: Link) -> bool:
        """Whether this server measures for its kind: the first one does, until it has something else to do."""
        owner = self.measuring(key)
        steps = owner is not None and owner.server.id in self.steps
        if owner is None or not (steps or (owner.server.ready and owner.server.loaded == key.profile)):
            self._measures[key] = link.server.id
        return self._measures[key] == link.server.id

    def measuring(self, key: Key) -> Link | None:
        """The server that measures for its kind."""
        return self._links.get(self._measures.get(key, ""))

    def leave(self, key: Key) -> None:
        """Another server may measure."""
        self._measures.pop(key, None)

    def cannot(self, seat: Seat, slots: int, reason: str) -> None:
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
