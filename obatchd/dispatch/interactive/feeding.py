"""Which server an interactive request goes to, and the slots that batches leave free for the next one.

A server gets one when it has a free slot. While one waits for that, and on servers with a slot kept free, no request of
a batch waits at the worker: it would take the slot before the main process hears of it. Servers whose answers take
moments get it at once; their workers begin it before all that they hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import attrs

from obatchd.dispatch.interactive.desk import Desk
from obatchd.dispatch.interactive.lease import Lease
from obatchd.dispatch.link import Link, Offered
from obatchd.dispatch.outcomes import LEAST_LIMIT_S
from obatchd.dispatch.protocol import INTERACTIVE, Offer, OfferItem
from obatchd.jobs.lane import Taken
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_SLOTS_PER_KEPT = 16
_RANK = 1


@attrs.define(eq=False)
class Feeding:
    """Fills servers with interactive requests, before :class:`obatchd.dispatch.offering.Offering` does with batches."""

    _queue: JobQueue
    _links: Mapping[str, Link]  # the servers, by id
    _settings: Current[Settings]
    _desk: Desk
    _idle: bool = attrs.field(default=True, init=False)  # no link is marked

    def fill(self) -> None:
        """Offer what can begin, and mark what batches are to leave free."""
        desk = self._desk
        if not desk.waiting and desk.figures.quiet and not self._fixed:
            if not self._idle:
                self._unmark()
            return
        self._idle = False
        by_profile: dict[Profile, list[Link]] = {}
        for link in self._links.values():
            link.awaited = False
            if link.usable and link.server.loaded is not None:
                by_profile.setdefault(link.server.loaded, []).append(link)
            else:
                link.kept_free = 0
        kept = self._to_keep(by_profile)
        for profile, links in by_profile.items():
            self._keep(links, kept.get(profile, 0))
            if not desk.stopped and desk.waiting.owners(profile):
                self._offer(profile, links)
            _clear(links)

    @property
    def _fixed(self) -> int:
        """How many slots an administrator wants kept free, whoever asks; 0 where that is left to us."""
        wanted = self._settings.value.dispatch.interactive_slots
        return wanted if isinstance(wanted, int) else 0

    def _unmark(self) -> None:
        for link in self._links.values():
            link.awaited, link.kept_free = False, 0
        self._idle = True

    def _to_keep(self, by_profile: Mapping[Profile, list[Link]]) -> dict[Profile, int]:
        """How many slots to keep free, by profile. Some slot is always left to batches."""
        auto = self._settings.value.dispatch.interactive_slots == "auto"
        lately = [profile for profile in self._desk.figures.lately() if profile in by_profile]
        kept: dict[Profile, int] = {}
        left = self._fixed
        for profile in lately if auto else dict.fromkeys([*lately, *by_profile]):
            links = by_profile[profile]
            if any(link.is_quick for link in links):
                continue  # the next slot is free in a moment
            slots = sum(link.server.slots for link in links)
            wanted = -(-slots // _SLOTS_PER_KEPT) if auto else left
            kept[profile] = min(wanted, slots - 1)
            left -= kept[profile]
        return kept

    def _keep(self, links: list[Link], wanted: int) -> None:
        """Keep ``wanted`` slots free, over these servers together: of those that are free, or become free next."""
        kept = sum(link.kept_free for link in links)
        for link in links:
            while kept > wanted and link.kept_free:
                link.kept_free -= 1
                kept -= 1
        while kept < wanted:
            link = max(links, key=_to_spare)
            if _to_spare(link) <= 0:
                for each in links:
                    each.awaited = True
                return
            link.kept_free += 1
            kept += 1

    def _offer(self, profile: Profile, links: list[Link]) -> None:
        slots = sum(link.server.slots for link in links)
        held = Counter(
            offered.taken.lane.owner
            for link in links
            if link.people
            for (job, _), offered in link.offers.items()
            if job == INTERACTIVE
        )
        while (lease := self._next(profile, slots, held)) is not None:
            link = _place(links, lease)
            if link is None:
                for each in links:
                    each.awaited = True
                return
            self._send(link, lease)
            held[lease.owner] += 1

    def _next(self, profile: Profile, slots: int, held: Mapping[int, int]) -> Lease | None:
        """The first of the least served owner. One who has his share of the slots has no right of way any more."""
        most = max(1, int(self._settings.value.dispatch.interactive_share * slots))
        owners = self._desk.waiting.owners(profile)
        batches = self._queue.owners(profile) if not self._desk.batches_held else frozenset()
        if len(owners) == 1 and batches <= owners:
            return self._desk.waiting.first(profile, *owners)
        used = sorted((self._queue.used_s(owner), owner) for owner in owners)
        for used_s, owner in used:
            others = (owners | batches) - {owner}
            if held[owner] >= most and any(self._queue.used_s(other) < used_s for other in others):
                continue
            return self._desk.waiting.first(profile, owner)
        return None

    def _send(self, link: Link, lease: Lease) -> None:
        desk, worker, server = self._desk, link.worker, link.server
        assert worker is not None
        link.configure()
        if INTERACTIVE not in link.contexts:
            worker.send(desk.context())
            link.contexts.add(INTERACTIVE)
        desk.waiting.remove(lease)
        pending, left_s = lease.taken.pending, desk.left_s(lease)
        taken = Taken(lease.taken.lane, pending, self._queue.charge_ahead(lease.owner))
        lease.taken, lease.link = taken, link
        lease.offered = Offered(taken, recorded=True)
        link.give((INTERACTIVE, lease.number), lease.offered)
        limit_s = max(left_s, LEAST_LIMIT_S) if left_s < self._settings.value.dispatch.request_timeout_s else None
        item = OfferItem(INTERACTIVE, lease.number, pending.attempt, pending.raw, pending.servers, limit_s)
        able = link.capabilities.get(lease.profile.model, [])
        options = server.load_options(lease.profile)
        link.send(Offer(lease.profile.model, options, [item], able, _RANK, lease.question.stream))
        link.counted()


def _to_spare(link: Link) -> int:
    """Free slots that are not kept yet."""
    return link.server.slots - len(link.offers) - max(0, link.kept_free - link.people)


def _room(link: Link) -> int:
    """How many interactive requests may be sent to a server now."""
    if link.worker is not None and link.worker.is_full:
        return 0
    if link.rests:
        return 1 - len(link.offers)
    if link.is_quick:
        return link.server.slots - link.people
    return link.server.slots - len(link.offers)


def _place(links: list[Link], lease: Lease) -> Link | None:
    """The server that works best and has least to do; of those that it has not failed on, where there are any."""
    fresh = [link for link in links if link.server.id not in lease.servers] or links
    free = [link for link in fresh if _room(link) > 0]
    if not free:
        return None
    return min(
        free, key=lambda link: (link.rests, link.failures > link.server.slots, len(link.offers) / link.server.slots)
    )


def _clear(links: list[Link]) -> None:
    """Take back requests of batches that would begin in a slot which is wanted."""
    for link in links:
        if (link.awaited or link.kept_free) and not link.is_quick and len(link.offers) > link.credit:
            waiting = sum(1 for (job, _), one in link.offers.items() if job != INTERACTIVE and not one.started_s)
            link.recall(min(waiting, len(link.offers) - link.credit))
