"""One server as the dispatcher knows it: its worker, the requests offered to it, and how it has been doing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Set
from typing import Any, NamedTuple, Protocol

import msgspec

from obatchd.counters import RateMeter, WorkByModel
from obatchd.dispatch import protocol
from obatchd.dispatch.events import Failed
from obatchd.dispatch.tuning.ports import TunableServer
from obatchd.dispatch.tuning.window import Window
from obatchd.dispatch.watchdog import ServerWatch
from obatchd.dispatch.worker import embedding
from obatchd.dispatch.workers import LOCAL, WorkerHandle, WorkerMaker
from obatchd.errors import ObatchError
from obatchd.jobs.lane import Taken
from obatchd.jobs.model import Profile
from obatchd.jobs.places import AtWork, Kin, kept
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

# Answers faster than this would leave a slot empty while the next request travels: such servers get more credit.
_FAST_ANSWER_S = 0.010
_FAST_CREDIT = 4  # times the slots
# A worker that is far away gets the requests that its slots take while an answer and the next offer travel, and more,
# because slots do not become free at equal distances and the head is busy, too: bench/hosts.py, part delay.
_FAR_CREDIT = 2.5
# Requests for vectors share calls: a worker is sent as many for each slot as take this long.
_VECTORS_S = 0.5
_RATE_WINDOW_S = 10
_TOGETHER = 1000  # answers that are added up at once
# The first rest of a server that fails, and the longest: each takes twice as long as the one before.
_FIRST_REST_S = 0.5
_LONGEST_REST_S = 30.0


class ServerPort(Protocol):
    """The part of a server that dispatch uses; :class:`obatchd.servers.server.Server` has it."""

    id: str
    base_url: str
    gpu_label: str
    token: str
    slots: int
    version: str  # of Ollama; empty: not known
    loaded: Profile | None
    loading: Profile | None
    load_s: float | None
    in_flight: int
    idle: asyncio.Event

    @property
    def tuning(self) -> TunableServer | None: ...
    @property
    def up(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    @property
    def out_of_use(self) -> bool: ...
    @property
    def down(self) -> str: ...
    @property
    def starting_runner(self) -> bool: ...
    def load_options(self, profile: Profile) -> dict[str, Any]: ...
    async def load(self, profile: Profile) -> None: ...
    async def unload(self) -> None: ...
    async def drain(self, reason: str) -> bool: ...
    async def restart(self, reason: str) -> None: ...
    async def one_token(self, timeout_s: float) -> None: ...
    async def fallen_back(self) -> str: ...
    def progress(self) -> None: ...
    def fault(self, reason: str) -> None: ...
    def broken(self, reason: str) -> None: ...


class Waker(Protocol):
    """Looks for requests to offer; :class:`obatchd.dispatch.dispatcher.Dispatcher`."""

    def wake(self) -> None:
        """There may be something to offer, or room for it."""


class Refused(NamedTuple):
    """Why a server cannot have a profile, and until when (monotonic) it is not asked again."""

    error: ObatchError
    until_s: float


class Offered(msgspec.Struct, eq=False):
    """One request at a worker."""

    taken: Taken
    started_s: float = 0.0  # set when it has a slot: since the epoch
    began_s: float = 0.0  # the same moment, monotonic
    recorded: bool = False  # the store knows of that


class Link:
    """One server and its worker."""

    def __init__(
        self, server: ServerPort, settings: Current[Settings], at_work: AtWork, workers: WorkerMaker = LOCAL
    ) -> None:
        self.server = server
        self.workers = workers  # knows where its workers run
        self._settings = settings
        self._at_work = at_work  # the families of all servers
        self.worker: WorkerHandle | None = None
        self.configured: protocol.Configure | None = None
        self.offers: dict[tuple[int, int], Offered] = {}  # changed by ``give``, ``take_back`` and ``take_all`` alone
        self.contexts: set[int] = set()
        self.offered = 0  # requests, to this worker, in its life
        self.full = False  # enough waits to be sent to it; known here because a look there takes half a microsecond
        self.recalling = 0  # requests asked back, until the worker has answered
        self.unheard_ticks = 0  # since the worker said anything, while it holds requests
        self.isolating = False  # being emptied for a suspect request, or given to one
        self.alone = False  # a suspect request has this server for itself
        self.switching_to: Profile | None = None
        self.loading: asyncio.Task[None] | None = None
        self.held_until_s = 0.0  # monotonic; no offers before, after a refused connection
        self.crashed_s = float("-inf")  # monotonic
        self.crashed_with: list[tuple[Taken, Failed]] = []  # what was in flight then, until its control
        self.crashed_profile: Profile | None = None
        self.owes_control = False  # it crashed, and has to answer one token before anything else
        self.rests = 0  # since its latest answer
        self.failures = 0  # attempts since then that failed, not through the request's own doing
        self.mean_s = 1.0
        self.choosy = False  # the next request depends on the slot that becomes free, so none waits at the worker
        self.computed: list[Kin] = []  # families of requests that ended here, the latest last
        self.people = 0  # interactive requests that are here
        self.kept_free = 0  # slots that batches leave to interactive requests
        self.awaited = False  # an interactive request gets the next slot that is free here, or it is to be kept free
        self.vectors = False  # the latest answer was vectors
        self.requests_done = 0
        self.tokens_done = 0
        self.work = WorkByModel()  # tokens and times, as the next for the metrics
        self.faults: Counter[tuple[str, str]] = Counter()  # attempts without an answer, by kind and code
        self.attempts_failed = 0  # not through the request's or the model's own doing
        self.refused: dict[Profile, Refused] = {}
        self.preparing: set[Profile] = set()  # whose models are being made sure of, while it goes on working
        self.capabilities: dict[str, list[str]] = {}  # of the models made sure of, by name
        self.prepared: dict[Profile, float] = {}  # until when (monotonic) that holds
        self.token_s = time.monotonic()  # of the latest token or end of an attempt; at first of its own beginning
        self.window: Window | None = None  # takes answers while the server's speed is measured
        self.watch = ServerWatch(settings)
        self.watchdog: Counter[str] = Counter()  # symptoms found and restarts made, by name
        self._configured_of: object = None  # what ``configured`` was made of
        self._tokens = RateMeter(_RATE_WINDOW_S)
        self._metered = 0  # of ``tokens_done``

    @property
    def usable(self) -> bool:
        """Whether offers may be sent now."""
        return (
            self.server.ready
            and self.worker is not None
            and not self.full
            and self.loading is None
            and self.switching_to is None
            and not self.isolating
            and not self.owes_control
            and time.monotonic() >= self.held_until_s
        )

    @property
    def credit(self) -> int:
        """How many requests the worker may hold."""
        if self.rests:
            return 1  # to see whether it answers
        slots = self.server.slots
        if self.kept_free or (self.awaited and not self.is_quick):
            return slots - max(0, self.kept_free - self.people)
        credit = _FAST_CREDIT * slots if self.fast else slots + (not self.choosy) + self._under_way
        together = min(embedding.TOGETHER, int(_VECTORS_S / self.mean_s)) if self.vectors else 0
        return max(credit, together * slots)

    @property
    def _under_way(self) -> int:
        """Requests that would be on their way to a worker that is far away."""
        away_s = self.worker.away_s if self.worker is not None else 0.0
        slots = self.server.slots
        return min(round(_FAR_CREDIT * slots * away_s / self.mean_s), (_FAST_CREDIT - 1) * slots - 1) if away_s else 0

    @property
    def fast(self) -> bool:
        """Whether answers take so little time that the way to and from the worker counts."""
        return self.mean_s < _FAST_ANSWER_S

    @property
    def is_quick(self) -> bool:
        """Whether the next slot is free in a moment, so that it costs more than it gains to keep one free."""
        return self.fast or self.vectors

    @property
    def free_for_batches(self) -> int:
        """Slots that are free and not kept so."""
        return max(0, min(self.server.slots, self.credit) - len(self.offers))

    @property
    def started(self) -> int:
        """Requests that occupy a slot."""
        return sum(1 for offered in self.offers.values() if offered.started_s)

    @property
    def free(self) -> int:
        """Slots without a request."""
        return max(0, self.server.slots - len(self.offers))

    @property
    def families(self) -> int:
        """How many families have requests here, of jobs in which several requests begin alike."""
        taken = (offered.taken for offered in self.offers.values())
        kin = {(one.lane.job, one.pending.family) for one in taken if one.lane.kindred}
        return sum(family is not None for _, family in kin)

    @property
    def warm(self) -> list[Kin]:
        """The families that free slots computed last, the latest last, as far as that can be told from here: Ollama
        gives a request to the free slot that has most of its beginning."""
        self.computed = kept(self.computed, self.free)
        return self.computed

    def give(self, key: tuple[int, int], offered: Offered) -> None:
        """A request comes here."""
        self.people += key[0] == protocol.INTERACTIVE
        self.offers[key] = offered
        if (family := offered.taken.pending.family) is not None:
            self._at_work.came(self.server.id, offered.taken.lane.job, family)
        if self.computed:
            self.computed = kept(self.computed, self.free)

    def take_back(self, key: tuple[int, int]) -> Offered | None:
        """A request leaves; None where it is not here."""
        offered = self.offers.pop(key, None)
        if offered is None:
            return None
        self.people -= key[0] == protocol.INTERACTIVE
        if (family := offered.taken.pending.family) is not None:
            self._at_work.went(self.server.id, offered.taken.lane.job, family)
        return offered

    def take_all(self) -> dict[tuple[int, int], Offered]:
        """All requests leave."""
        gone = dict(self.offers)
        for key in gone:
            self.take_back(key)
        return gone

    def ended(self, taken: Taken) -> None:
        """A request gave up its slot, which keeps what it computed last."""
        family = taken.pending.family
        if family is None:
            if self.computed:
                self.computed = kept(self.computed, self.free - 1)
            return
        kin = (taken.lane.job, family)
        self.computed = [*(other for other in self.computed if other != kin), kin]

    def forget_computed(self) -> None:
        """The slots have nothing computed any more: their process has ended, or the model is loaded anew."""
        self.computed = []

    async def load(self, profile: Profile) -> None:
        """Load ``profile``; raises what the server raises."""
        self.forget_computed()
        await self.server.load(profile)

    def waits_to_avoid(self, servers: Set[str]) -> bool:
        """Whether a request waits here because it failed on one of ``servers``: it would come back."""
        waiting = (offered.taken.pending.servers for offered in self.offers.values() if not offered.started_s)
        return any(not servers.isdisjoint(earlier) for earlier in waiting)

    def configure(self) -> None:
        """Tell the worker its server; does nothing when it knows already."""
        server, limits = self.server, self._settings.value.dispatch
        known = (server.base_url, server.slots, server.version, limits)
        if self.configured is not None and known == self._configured_of:
            return  # as nearly always: nothing else of a server changes
        self._configured_of = known
        timeouts = (limits.connect_timeout_s, limits.stall_s, limits.request_timeout_s)
        message = protocol.Configure(
            server.id, server.gpu_label, server.base_url, server.token, server.slots, *timeouts, server.version
        )
        if self.worker is not None and message != self.configured:
            self.configured = message
            self.worker.send(message)

    def send(self, offer: protocol.Offer) -> None:
        """Send requests, which are here already, to the worker."""
        assert self.worker is not None
        self.worker.send(offer)
        self.offered += len(offer.items)
        self.full = self.worker.is_full

    def differs(self, told: protocol.Progress) -> bool:
        """Whether the worker holds other requests than it should: something between it and here got lost, or doubled.

        That is exact, because messages keep their order: what the worker said before is known here, and what it does
        not know of yet are offers that are under way to it. A ping tells those from offers that will never come.
        """
        if told.held < 0:
            return False
        under_way = self.offered - told.got
        return told.offered != told.got_then or told.held + under_way != len(self.offers)

    def recall(self, count: int) -> None:
        """Ask for up to ``count`` requests back that have no slot yet."""
        if count > self.recalling and self.worker is not None:
            self.recalling = count
            self.worker.send(protocol.Recall(count))

    def hold(self, hold_s: float) -> None:
        """Be offered nothing for ``hold_s``, and give back requests that have not begun."""
        self.held_until_s = max(self.held_until_s, time.monotonic() + hold_s)
        self.recall(len(self.offers))

    def rest(self) -> bool:
        """Be offered nothing for a while, each time for longer until it answers; False where it rests already.

        A server that fails would otherwise get more than others, because its slots are free at once.
        """
        if time.monotonic() < self.held_until_s:
            return False
        self.hold(min(_FIRST_REST_S * 2**self.rests, _LONGEST_REST_S))
        self.rests = min(self.rests + 1, 16)
        return True

    def counted(self) -> None:
        """Let the server know how many requests it has."""
        self._meter()
        self.work.fold(_TOGETHER)
        self.server.in_flight = len(self.offers)
        if self.offers:
            self.server.idle.clear()
        else:
            if self.alone:
                self.isolating = self.alone = False
            self.server.idle.set()

    def note(self, duration_s: float, tokens: int, *, vectors: bool) -> None:
        """Account for an answer."""
        self.rests = self.failures = 0
        self.vectors = vectors
        self.requests_done += 1
        self.mean_s += max(0.1, 1 / self.requests_done) * (duration_s - self.mean_s)
        self.tokens_done += tokens

    def tokens_per_s(self) -> float:
        """Answer tokens per second over the last ten seconds."""
        self._meter()
        return self._tokens.per_s()

    def _meter(self) -> None:
        """Answers come many in a frame, and the meter takes their tokens together."""
        if (fresh := self.tokens_done - self._metered) > 0:
            self._metered = self.tokens_done
            self._tokens.add(fresh)
