"""The choice between families is that of its rules, written down plainly, however little of it is computed anew."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from itertools import islice

import pytest
from dispatch_support import SMALL, Port
from places_support import places_at
from settings_support import in_force

from obatchd.dispatch.link import Link, Offered
from obatchd.jobs.lane import Lane, Pending, Taken
from obatchd.jobs.places import AtWork, Kin, Places

SERVERS = ["gpu0", "gpu1", "gpu2"]


class Plain:
    """Sets of all families, made anew for each look."""

    def __init__(self, free: int, warm: Mapping[str, list[Kin]], at_work: Mapping[str, Iterable[Kin]]) -> None:
        self.free = free
        self.warm = {server: list(kin) for server, kin in warm.items()}
        self.here = {server: set(at_work.get(server, ())) for server in SERVERS}

    def choose(self, lane: Lane, server: str) -> int:
        if lane.kinds < self.free:
            return 0
        families = [pending.family for pending in lane.window]
        for job, family in reversed(self.warm.get(server, ())):
            if job == lane.job and family in families:
                return families.index(family)
        taken = {kin for kinds in (*self.here.values(), *self.warm.values()) for kin in kinds}
        nowhere = [family for family in families if family is not None and (lane.job, family) not in taken]
        if not lane.unread and len(families) <= 256:
            longest = max(
                dict.fromkeys(lane.members), key=lambda one: (one in nowhere) * families.count(one), default=0
            )
            if nowhere.count(longest) > 1:
                return families.index(longest)
        awaited = {kin for other, kinds in self.warm.items() if other != server for kin in kinds}
        ranks = {}
        for at, family in enumerate(islice(families, 256)):
            kin = (lane.job, family)
            if family is None or kin not in taken:
                return at
            rank = 2 if kin in self.here[server] else 1 if kin in awaited else 0
            ranks.setdefault(family, (rank, -families.count(family), at))
        return min(ranks.values())[2]

    def began(self, lane: Lane, server: str, family: int | None) -> None:
        warm = self.warm.get(server, [])
        if family is not None:
            self.here[server].add((lane.job, family))
        if family is not None and (lane.job, family) in warm:
            warm.remove((lane.job, family))
        elif warm:
            del warm[0]


def families_of(link: Link) -> list[Kin]:
    taken = [offered.taken for offered in link.offers.values()]
    return [(one.lane.job, one.pending.family) for one in taken if one.pending.family is not None]


@pytest.mark.parametrize("seed", range(60))
def test_the_choice_is_that_of_the_plain_rules(seed: int) -> None:
    chance = random.Random(seed)
    kinds = chance.choice([4, 12, 80])
    lanes = [Lane(job, 0, 1, SMALL, "normal", 0.0) for job in (1, 2)]
    for lane in lanes:
        families = [chance.choice([None, *range(kinds)]) if chance.random() < 0.9 else 7 for _ in range(400)]
        lane.put([Pending(line, b"{}", family=family) for line, family in enumerate(families, 1)])
        lane.unread = chance.choice([0, 10])
    counted = AtWork()
    links = {server: Link(Port(server, 8), in_force(), counted) for server in SERVERS}
    for _ in range(250):
        for link in links.values():
            for key in [key for key in link.offers if chance.random() < 0.3]:
                offered = link.take_back(key)
                assert offered is not None
                link.ended(offered.taken)
        at_work = {server: families_of(link) for server, link in links.items()}
        warm = {server: list(link.warm) for server, link in links.items()}
        free = sum(link.free for link in links.values())
        plain = Plain(free, warm, at_work)
        places = Places(free, {server: kin for server, kin in warm.items() if kin}, counted)
        for server in chance.sample(SERVERS, len(SERVERS)):
            link = links[server]
            for _ in range(link.free):
                lane = chance.choice(lanes)
                if not lane.window:
                    continue
                expected = lane.window[plain.choose(lane, server)]
                pending = lane.pop(server, frozenset(), places)
                assert pending is not None and pending.line == expected.line
                plain.began(lane, server, pending.family)
                if chance.random() < 0.05:
                    lane.put_back(pending)  # it was not admitted after all
                else:
                    link.give((lane.job, pending.line), Offered(Taken(lane, pending, 0.0)))
        if chance.random() < 0.05:
            links[chance.choice(SERVERS)].forget_computed()
    assert all(lane.beginnings == [pending.family for pending in lane.window] for lane in lanes)
    for link in links.values():
        link.take_all()
    assert not counted.of(1) and not counted.of(2) and not any(counted.on(server, 1) for server in SERVERS)


def test_families_of_one_job_are_not_those_of_another() -> None:
    lane = Lane(2, 0, 1, SMALL, "normal", 0.0)
    lane.put([Pending(line, b"{}", family=family) for line, family in enumerate([5, 5, 6, 6], 1)])
    lane.unread = 1
    assert places_at(1, {}, {"gpu0": [(1, 5)]}).choose(lane, "gpu1") == 0
    assert places_at(1, {"gpu1": [(1, 6)]}, {"gpu0": [(2, 5)]}).choose(lane, "gpu1") == 2
