"""A fleet on a simulated clock below the real dispatcher, whose slots keep what they computed last."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable

import attrs
from dispatch_support import SMALL, FakeWorker, Key, Rig, settle

from obatchd.jobs.lane import Lane, Pending

Kind = tuple[int, int | None]  # job and family


@attrs.define
class Slot:
    """One slot of a server."""

    computed: Kind | None = None
    key: Key | None = None


@attrs.define
class Begun:
    """A request that got a slot."""

    key: Key
    server: str
    at_s: float
    took_s: float
    warm: bool


@attrs.define
class Fleet:
    """The servers of a rig. A worker begins its requests in order; Ollama gives each the free slot that knows most."""

    rig: Rig
    answer_s: Callable[[Key], float] = lambda key: 1.0
    cold_s: float = 4.0  # to compute a beginning
    warm_s: float = 0.2  # to compute the rest
    now_s: float = 0.0
    begun: list[Begun] = attrs.field(factory=list)
    slot_s: Counter[int] = attrs.field(factory=Counter)  # by owner
    idle_s: float = 0.0  # of slots, while requests waited
    _lanes: dict[int, Lane] = attrs.field(factory=dict)
    _families: dict[Key, int | None] = attrs.field(factory=dict)
    _slots: dict[str, list[Slot]] = attrs.field(factory=dict)
    _ends: list[tuple[float, int, str, Slot]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._slots = {name: [Slot() for _ in range(port.slots)] for name, port in self.rig.ports.items()}

    async def add(self, job: int, families: Iterable[int | None], owner: int = 1) -> Lane:
        lane = self.rig.queue.add_lane(Lane(job, 0, owner, SMALL, "normal", 1000.0))
        self._lanes[job] = lane
        pending = [Pending(line, b"{}", family=family) for line, family in enumerate(families, 1)]
        self._families |= {(job, one.line): one.family for one in pending}
        self.rig.queue.extend(lane, len(pending), pending)
        self.rig.dispatcher.wake()
        await settle()
        return lane

    async def run(self, until_s: float = float("inf")) -> None:
        """Let requests begin and end until then, or until all have ended."""
        await self._begin()
        while self._ends and self._ends[0][0] <= until_s:
            at_s, _, server, slot = heapq.heappop(self._ends)
            if self.rig.queue.total():
                self.idle_s += (at_s - self.now_s) * self._free()
            self.now_s = at_s
            key, slot.key = slot.key, None
            assert key is not None
            took_s = next(begun.took_s for begun in reversed(self.begun) if begun.key == key)
            self._worker(server).end(key, took_s=took_s)
            await settle()
            await self._begin()

    def families_of(self, server: str) -> list[Kind]:
        """What the slots of a server work on."""
        return [slot.computed for slot in self._slots[server] if slot.key is not None and slot.computed is not None]

    @property
    def cold(self) -> int:
        """Requests of families whose beginning had to be computed."""
        return sum(not one.warm for one in self.begun if self._families[one.key] is not None)

    @property
    def order(self) -> list[int]:
        """Lines in the order in which they began."""
        return [one.key[1] for one in self.begun]

    def _worker(self, server: str) -> FakeWorker:
        return self.rig.worker(server)

    def _free(self) -> int:
        return sum(slot.key is None for slots in self._slots.values() for slot in slots)

    async def _begin(self) -> None:
        for server, slots in self._slots.items():
            worker = self._worker(server)
            at_work = {slot.key for slot in slots}
            for key in [key for key in worker.held if key not in at_work]:
                free = [slot for slot in slots if slot.key is None]
                if not free:
                    break
                kind = (key[0], self._families[key])
                slot = next((slot for slot in free if slot.computed == kind), free[0])
                warm = slot.computed == kind and kind[1] is not None
                took_s = (self.warm_s if warm else self.cold_s) + self.answer_s(key)
                slot.computed, slot.key = kind, key
                self.slot_s[self._lanes[key[0]].owner] += took_s  # type: ignore[assignment]
                self.begun.append(Begun(key, server, self.now_s, took_s, warm))
                heapq.heappush(self._ends, (self.now_s + took_s, len(self.begun), server, slot))
                worker.begin(key)
        await settle()
