"""Which requests go to which server, and which come back from a busy one."""

from __future__ import annotations

from collections.abc import Mapping, Set

import attrs

from obatchd.dispatch import protocol
from obatchd.dispatch.events import DispatchEvents
from obatchd.dispatch.link import Link, Offered
from obatchd.dispatch.outcomes import LEAST_LIMIT_S
from obatchd.dispatch.protocol import OfferItem
from obatchd.jobs.lane import Taken
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings


@attrs.define(eq=False)
class Offering:
    """Fills the servers from the queue."""

    _queue: JobQueue
    _links: Mapping[str, Link]  # the servers, by id
    _settings: Current[Settings]
    _events: DispatchEvents

    def fill(self) -> None:
        by_profile: dict[Profile, list[Link]] = {}
        for link in self._links.values():
            if link.usable and link.server.loaded is not None:
                by_profile.setdefault(link.server.loaded, []).append(link)
            elif link.switching_to is not None and link.offers:
                link.recall(len(link.offers))
        for profile, links in by_profile.items():
            links = _without_failing(links)
            self._isolate(profile, links)
            self._feed(profile, [link for link in links if not link.isolating])

    def _isolate(self, profile: Profile, links: list[Link]) -> None:
        """Give a request that was in several crashes a server of its own, on one server at a time."""
        isolating = (link for link in self._links.values() if link.isolating and link.server.loaded == profile)
        if not self._queue.has_suspects(profile) or any(isolating):
            return
        link = min(links, key=lambda candidate: len(candidate.offers))
        link.isolating = True
        if link.offers:
            link.recall(len(link.offers))
        elif (taken := self._queue.take_suspect(profile)) is not None:
            link.alone = True
            self._offer(link, profile, [taken])

    def _feed(self, profile: Profile, links: list[Link]) -> None:
        rooms = [(link, max(0, link.credit - len(link.offers))) for link in links]
        room = sum(free for _, free in rooms)
        if not room:
            return
        avoid = {link.server.id for link in links}
        if self._queue.more_than(profile, room):
            for link, free in rooms:
                # A fast server is sent many at a time: a frame costs more than its requests.
                if free > (link.server.slots if link.fast else 0):
                    taken = self._queue.take(profile, free, link.server.id, avoid, wary=link.rests > 0)
                    self._offer(link, profile, taken)
            return
        self._spread(profile, links, avoid)
        self._steal(profile)

    def _spread(self, profile: Profile, links: list[Link], avoid: Set[str]) -> None:
        """Share the waiting requests, fewer than there is room for, one by one between the servers with the fewest."""
        batches: dict[str, list[Taken]] = {}
        while links:
            link = min(links, key=lambda c: (len(c.offers) + len(batches.get(c.server.id, ()))) / c.server.slots)
            batch = batches.setdefault(link.server.id, [])
            if len(link.offers) + len(batch) >= link.credit:
                break
            if taken := self._queue.take(profile, 1, link.server.id, avoid, wary=link.rests > 0):
                batch.extend(taken)
            else:
                links = [other for other in links if other is not link]
        for server, batch in batches.items():
            self._offer(self._links[server], profile, batch)

    def _steal(self, profile: Profile) -> None:
        """Where a server has a free slot and nothing waits, take back requests that wait behind a busy server."""
        links = [link for link in self._links.values() if link.usable and link.server.loaded == profile]
        free = sum(max(0, link.server.slots - len(link.offers)) for link in links)
        if not free or self._queue.more_than(profile, 0):
            return
        idle = {link.server.id for link in links if len(link.offers) < link.server.slots}
        for link in sorted(links, key=lambda candidate: candidate.mean_s, reverse=True):
            surplus = len(link.offers) - link.server.slots
            if surplus > 0 and free > 0 and not link.waits_to_avoid(idle):
                link.recall(min(surplus, free))
                free -= surplus

    def _offer(self, link: Link, profile: Profile, batch: list[Taken]) -> None:
        if not batch or link.worker is None:
            for taken in batch:
                self._queue.give_back(taken)
            return
        link.configure()
        settings = self._settings.value.dispatch
        items = []
        for taken in batch:
            lane, pending = taken.lane, taken.pending
            if lane.job not in link.contexts:
                link.contexts.add(lane.job)
                link.worker.send(self._events.context_of(lane.job))
            link.offers[lane.job, pending.line] = Offered(taken)
            left_s = settings.request_total_s - pending.spent_s
            limit_s = max(left_s, LEAST_LIMIT_S) if left_s < settings.request_timeout_s else None
            items.append(
                OfferItem(
                    lane.job, pending.line, pending.attempt, pending.raw, pending.servers, limit_s, pending.prepared
                )
            )
        capabilities = link.capabilities.get(profile.model, [])
        link.worker.send(protocol.Offer(profile.model, link.server.load_options(profile), items, capabilities))
        link.counted()


def _without_failing(links: list[Link]) -> list[Link]:
    """While one of ``links`` answers, let those rest that fail whatever they are given; the others."""
    failing = [link for link in links if link.failures > link.server.slots]
    if not failing or not any(link.requests_done and not link.failures for link in links):
        return links
    for link in failing:
        link.failures = link.server.slots  # one more failure, and it rests again
        link.rest()
    return [link for link in links if link not in failing]
