"""Which requests go to which server, and which come back from a busy one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Set

import attrs

from obatchd import log
from obatchd.dispatch import protocol
from obatchd.dispatch.events import DispatchEvents
from obatchd.dispatch.link import Link, Offered
from obatchd.dispatch.outcomes import LEAST_LIMIT_S, OutcomeHandler
from obatchd.dispatch.protocol import OfferItem
from obatchd.dispatch.workers import WorkerHandle
from obatchd.frames import FULL_BYTES
from obatchd.jobs.lane import Taken
from obatchd.jobs.model import Profile
from obatchd.jobs.places import AtWork, Places
from obatchd.jobs.queue import JobQueue
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)
_PATIENCE_S = 60.0  # requests that are to be tried alone let all others go first for so long


@attrs.define(eq=False)
class Offering:
    """Fills the servers from the queue."""

    _queue: JobQueue
    _links: Mapping[str, Link]  # the servers, by id
    _settings: Current[Settings]
    _events: DispatchEvents

    _outcomes: OutcomeHandler
    at_work: AtWork = attrs.field(factory=AtWork, init=False)  # the families of the requests that the links have
    _waited_s: dict[Profile, float] = attrs.field(factory=dict, init=False)  # since when requests are to be tried alone

    def try_emptied(self, *, held: bool) -> None:
        """Give servers that were emptied for a suspect one, before anybody else gets them, unless dispatch is held."""
        for link in self._links.values():
            if link.isolating and not link.offers:
                link.isolating = False
                if not held and link.usable and link.server.loaded is not None:
                    self._isolate(link.server.loaded, [link])

    def fill(self) -> None:
        by_profile: dict[Profile, list[Link]] = {}
        for link in self._links.values():
            if link.usable and link.server.loaded is not None:
                by_profile.setdefault(link.server.loaded, []).append(link)
            elif link.switching_to is not None and link.offers:
                link.recall(len(link.offers))
        for profile, links in by_profile.items():
            links = _without_failing(links)
            if not self._queue.has(profile):  # as where people alone ask
                self._waited_s.pop(profile, None)
                for link in links:
                    link.choosy = False
                self._steal(profile)
                continue
            suspects = self._queue.has_suspects(profile, self._outcomes.trials.undecided)
            overdue = self._overdue(profile, suspects=suspects)
            if overdue:
                self._isolate(profile, links)
            self._feed(profile, [link for link in links if not link.isolating])
            if suspects and not overdue and not self._acquittal_near(profile):
                self._isolate(profile, [link for link in links if not link.offers])

    def _overdue(self, profile: Profile, *, suspects: bool) -> bool:
        """Whether requests that are to be tried alone have let all others go first for long enough."""
        if not suspects:
            self._waited_s.pop(profile, None)
            return False
        now_s = time.monotonic()
        return now_s - self._waited_s.setdefault(profile, now_s) >= _PATIENCE_S

    def _acquittal_near(self, profile: Profile) -> bool:
        """Whether a request is at work beside whose answer nobody would be accused any more."""
        links = (link for link in self._links.values() if link.server.loaded == profile)
        return any(offered.taken.lane.accused for link in links for offered in link.offers.values())

    def _isolate(self, profile: Profile, links: list[Link]) -> None:
        """Give a request that may crash its server one of its own, on one server at a time.

        The server is the one whose latest crash is longest ago, so that no single one is the judge.
        """
        isolating = any(link.isolating and link.server.loaded == profile for link in self._links.values())
        if not links or isolating or not self._queue.has_suspects(profile, self._outcomes.trials.undecided):
            return
        link = min(links, key=lambda candidate: (len(candidate.offers), candidate.crashed_s))
        link.isolating = True
        if link.offers:
            link.recall(len(link.offers))
        elif (taken := self._queue.take_suspect(profile, self._outcomes.trials.undecided)) is not None:
            self._waited_s.pop(profile, None)
            link.alone = True
            self._offer(link, profile, [taken])

    def _places(self, rooms: list[tuple[Link, int]]) -> Places | None:
        """Where the families of requests at hand are; None where no slot is free."""
        free, warm = 0, {}
        for link, room in rooms:
            if room:
                free += min(room, link.free)
            if link.computed:
                warm[link.server.id] = link.warm[:]
        return Places(free, warm, self.at_work) if free else None

    def _feed(self, profile: Profile, links: list[Link]) -> None:
        choosy = self._settings.value.dispatch.families != "off" and self._queue.shares_beginnings(profile)
        rooms = []
        for link in links:
            link.choosy = choosy
            rooms.append((link, max(0, link.credit - len(link.offers))))
        room = sum(free for _, free in rooms)
        if not room:
            return
        places = self._places(rooms) if choosy else None
        avoid = {link.server.id for link in links}
        if self._queue.more_than(profile, room):
            for link, free in rooms:
                # A fast server is sent many at a time: a frame costs more than its requests.
                if free > (link.server.slots if link.fast else 0):
                    taken = self._queue.take(
                        profile, free, link.server.id, avoid, wary=link.rests > 0, places=None if link.fast else places
                    )
                    self._offer(link, profile, taken)
            return
        if self._queue.more_than(profile, 0):
            self._spread(profile, links, avoid, places)
        self._steal(profile)

    def _spread(self, profile: Profile, links: list[Link], avoid: Set[str], places: Places | None) -> None:
        """Share the waiting requests, fewer than there is room for, one by one between the servers with the fewest."""
        batches: dict[str, list[Taken]] = {}
        while links:
            link = min(links, key=lambda c: (len(c.offers) + len(batches.get(c.server.id, ()))) / c.server.slots)
            batch = batches.setdefault(link.server.id, [])
            room = len(link.offers) + len(batch) < link.credit
            if room and (
                taken := self._queue.take(profile, 1, link.server.id, avoid, wary=link.rests > 0, places=places)
            ):
                batch.extend(taken)
            else:
                links = [other for other in links if other is not link]
        for server, batch in batches.items():
            self._offer(self._links[server], profile, batch)

    def _steal(self, profile: Profile) -> None:
        """Where a server has a free slot and nothing waits, take back requests that wait behind a busy server."""
        links = [link for link in self._links.values() if link.usable and link.server.loaded == profile]
        if not any(len(link.offers) > link.server.slots for link in links):
            return
        free = sum(link.free_for_batches for link in links)
        if not free or self._queue.more_than(profile, 0):
            return
        idle = {link.server.id for link in links if link.free_for_batches}
        for link in sorted(links, key=lambda candidate: candidate.mean_s, reverse=True):
            surplus = len(link.offers) - link.server.slots
            if surplus > 0 and free > 0 and not link.waits_to_avoid(idle):
                link.recall(min(surplus, free))
                free -= surplus

    def _offer(self, link: Link, profile: Profile, batch: list[Taken]) -> None:
        batch = self._sendable(self._outcomes.admitted(batch))
        if link.worker is not None:
            link.full = link.worker.is_full  # others may share its way
        if not batch or link.worker is None or link.full:
            for taken in reversed(batch):
                self._outcomes.requeue(taken)
            link.counted()
            return
        link.configure()
        settings = self._settings.value.dispatch
        items = []
        for taken in self._introduced(link, link.worker, batch):
            lane, pending = taken.lane, taken.pending
            link.give((lane.job, pending.line), Offered(taken))
            left_s = settings.request_total_s - pending.spent_s
            limit_s = max(left_s, LEAST_LIMIT_S) if left_s < settings.request_timeout_s else None
            items.append(
                OfferItem(
                    lane.job,
                    pending.line,
                    pending.attempt,
                    pending.raw,
                    pending.servers,
                    limit_s,
                    pending.prepared,
                    pending.family,
                )
            )
        capabilities = link.capabilities.get(profile.model, [])
        if items:
            link.send(protocol.Offer(profile.model, link.server.load_options(profile), items, capabilities))
        link.counted()

    def _sendable(self, batch: list[Taken]) -> list[Taken]:
        """As many of ``batch`` as one message may hold, whose last request may be large; the others go back."""
        size_bytes = 0
        for count, taken in enumerate(batch):
            if size_bytes > FULL_BYTES:
                for other in reversed(batch[count:]):
                    self._outcomes.requeue(other)
                return batch[:count]
            size_bytes += len(taken.pending.raw) + len(taken.pending.prepared)
        return batch

    def _introduced(self, link: Link, worker: WorkerHandle, batch: list[Taken]) -> list[Taken]:
        """Make the jobs of ``batch`` known to a worker; the requests that may follow, because it knows theirs.

        The others go back: no message can hold the settings of their job, or these are so large that they have to leave
        first.
        """
        unknown = {taken.lane.job for taken in batch} - link.contexts
        if not unknown:
            return batch
        for job in sorted(unknown):
            if not link.full and self._introduce(worker, job):
                link.contexts.add(job)
                link.full = worker.is_full
        for taken in reversed(batch):
            if link.full or taken.lane.job not in link.contexts:
                self._outcomes.requeue(taken)
        return [] if link.full else [taken for taken in batch if taken.lane.job in link.contexts]

    def _introduce(self, worker: WorkerHandle, job: int) -> bool:
        """Make a job known to a worker. One whose settings no message can hold ends by that, and keeps up nobody."""
        try:
            worker.send(self._events.context_of(job))
        except Exception:  # noqa: BLE001 - logged; the defect of one job must not keep the requests of all others
            _log.exception("job_not_offered", key=job)
            self._events.defective(job)
            return False
        return True


def _without_failing(links: list[Link]) -> list[Link]:
    """While one of ``links`` answers, let those rest that fail whatever they are given; the others."""
    failing = [link for link in links if link.failures > link.server.slots]
    if not failing or not any(link.requests_done and not link.failures for link in links):
        return links
    for link in failing:
        link.failures = link.server.slots  # one more failure, and it rests again
        link.rest()
    return [link for link in links if link not in failing]
