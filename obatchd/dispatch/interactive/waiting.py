"""Interactive requests that wait for a slot, by profile and owner, and with batches what servers are wanted for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Set

import attrs

from obatchd.dispatch.holds import Holds
from obatchd.dispatch.interactive.lease import Lease
from obatchd.jobs.lane import Lane
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue


@attrs.define(eq=False)
class Waiting:
    """Each owner's requests in their order."""

    size_bytes: int = attrs.field(default=0, init=False)  # of the requests
    _of: dict[Profile, dict[int, deque[Lease]]] = attrs.field(factory=dict, init=False)
    _counts: Counter[int] = attrs.field(factory=Counter, init=False)  # by owner

    def __bool__(self) -> bool:
        return bool(self._of)

    def __len__(self) -> int:
        return self._counts.total()

    def __iter__(self) -> Iterator[Lease]:
        return (lease for owners in self._of.values() for leases in owners.values() for lease in leases)

    def of_owner(self, owner: int) -> int:
        return self._counts[owner]

    def add(self, lease: Lease, *, first: bool = False) -> None:
        """At the end, or before all others of its owner."""
        leases = self._of.setdefault(lease.profile, {}).setdefault(lease.owner, deque())
        (leases.appendleft if first else leases.append)(lease)
        lease.waits = True
        self._counts[lease.owner] += 1
        self.size_bytes += len(lease.question.raw)

    def remove(self, lease: Lease) -> None:
        owners = self._of[lease.profile]
        leases = owners[lease.owner]
        leases.remove(lease)
        lease.waits = False
        self._counts[lease.owner] -= 1
        self.size_bytes -= len(lease.question.raw)
        if not leases:
            del owners[lease.owner]
            del self._counts[lease.owner]
        if not owners:
            del self._of[lease.profile]

    def profiles(self) -> list[Profile]:
        return list(self._of)

    def owners(self, profile: Profile) -> Set[int]:
        return self._of.get(profile, {}).keys()

    def first(self, profile: Profile, owner: int) -> Lease:
        return self._of[profile][owner][0]

    def count(self, profile: Profile) -> int:
        return sum(map(len, self._of.get(profile, {}).values()))


@attrs.define(eq=False)
class Demand:
    """What servers are wanted for, by people and by batches, for :class:`obatchd.dispatch.switching.ProfileSwitcher`.

    While batches are held up, only people want anything.
    """

    _queue: JobQueue
    _waiting: Waiting
    _holds: Holds

    def profiles(self) -> list[Profile]:
        """Profiles that requests wait for, the one that should be served first in front."""
        people = self._waiting.profiles()
        batches = [] if self._holds.reasons else self._queue.profiles()
        if not people:
            return batches
        if len(people) > 1:
            people.sort(key=self.claim)
        return [*people, *(profile for profile in batches if profile not in people)]

    def is_interactive(self, profile: Profile) -> bool:
        """Whether somebody waits for an answer that needs ``profile``."""
        return bool(self._waiting.owners(profile))

    def more_than(self, profile: Profile, count: int) -> bool:
        """Whether more than ``count`` requests wait for ``profile``."""
        count -= self._waiting.count(profile)
        return count < 0 or (not self._holds.reasons and self._queue.more_than(profile, count))

    def has_suspects(self, profile: Profile) -> bool:
        return not self._holds.reasons and self._queue.has_suspects(profile)

    def claim(self, profile: Profile) -> tuple[float, int, tuple[int, int]]:
        """How strong the claim of ``profile`` is (less is stronger): people come first, the least served of them."""
        owners = self._waiting.owners(profile)
        if not owners:
            return self._queue.claim(profile)
        return float("-inf"), int(1000 * min(self._queue.used_s(owner) for owner in owners)), (0, 0)

    def lanes_of_profile(self, profile: Profile) -> list[Lane]:
        """Every registered lane whose requests need ``profile``."""
        return self._queue.lanes_of_profile(profile)
