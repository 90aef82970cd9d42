"""Requests that wait, grouped by their needs: the queue holds them and hands them out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence, Set

import msgspec

from obatchd.jobs.formats.request import shared_settings
from obatchd.jobs.model import PRIORITY_CLASS, Profile
from obatchd.jobs.places import Places

WINDOW_LOW = 256  # requests in memory below which a lane wants more
WINDOW_FETCH = 1024
WINDOW_BYTES = 4 * 1024**2  # the same where requests are long
# Requests of a lane that were turned away in front of servers: with so many nothing more of it is read.
POSTPONED = 8192
POSTPONED_BYTES = 512 * 1024**2
_AGEING_S = 3600.0
_LOOK_AHEAD = 8  # requests


class Pending(msgspec.Struct, array_like=True):
    """A request ready to be offered."""

    line: int
    raw: bytes
    attempt: int = 1
    servers: list[str] = []  # of its earlier attempts
    spent_s: float = 0.0  # on them
    prepared: bytes = b""  # the preparer's text of its sources, for the worker; empty where it names none
    known_settings: bytes | None = None  # ``settings``, when somebody has asked for them
    family: int | None = None  # of the job's requests with the same long beginning

    @property
    def settings(self) -> bytes:
        """The settings that it may share with others: read once, because each free slot may ask a whole window."""
        if self.known_settings is None:
            self.known_settings = shared_settings(self.raw)
        return self.known_settings


class Lane(msgspec.Struct, eq=False):
    """Requests of one job for one profile and priority class, in input order."""

    job: int
    number: int
    owner: int
    profile: Profile
    priority: str
    accepted_s: float
    window: deque[Pending] = msgspec.field(default_factory=deque)
    members: dict[int, int] = {}  # of each family, its requests in the window
    known_beginnings: list[int | None] | None = None  # ``beginnings``, while requests are chosen by them
    kindred: bool = False  # a family was met that had several there
    related: int = 0  # requests there that have a family
    cursor: int = 0  # greatest line that was ever put into the window
    gaps: tuple[int, int] = (0, 0)  # requests without a result that an earlier run left lie between these lines
    unread: int = 0  # requests without a result that are only in the store
    preparing: int = 0  # requests that wait for their sources before they come into the window
    postponed: int = 0  # requests that were turned away in front of a server, and wait outside the window
    postponed_bytes: int = 0
    fetching: bool = False
    turned_away: bool = False  # one of its requests was, in front of a server, and none was answered since
    order: tuple[int, int] = (0, 0)
    base_class: int = 0
    # Settings that requests share (``shared_settings``): those that were in flight in a crash, those that crash all.
    accused: set[bytes] = msgspec.field(default_factory=set)
    condemned: set[bytes] = msgspec.field(default_factory=set)
    answered: bytes = b""  # the latest request with an answer
    trials: int = 0  # how often one of the accused was tried alone

    def __post_init__(self) -> None:
        self.order = (self.job, self.number)
        self.base_class = PRIORITY_CLASS[self.priority]

    def begin_after(self, line: int) -> None:
        """Take those behind ``line`` first: to find the few requests left before it, all before it must be looked at,
        which takes half a second for half a million."""
        self.cursor, self.gaps = line, (0, line)

    def is_accused(self, pending: Pending) -> bool:
        """Whether a request has to be tried alone because of its settings."""
        return bool(self.accused) and pending.settings in self.accused

    def put(self, pending: Sequence[Pending]) -> None:
        """Requests come into the window, behind those that are there."""
        self.window.extend(pending)
        self.known_beginnings = None
        self._joined(pending)

    def put_back(self, pending: Pending) -> None:
        """A request comes back in front of the window."""
        self.window.appendleft(pending)
        self.known_beginnings = None
        self._joined((pending,))

    def remove(self, pending: Pending) -> None:
        """A request leaves the window, wherever it stands."""
        self.window.remove(pending)
        self.known_beginnings = None
        self._left(pending)

    def pop(self, server: str, servers: Set[str], places: Places | None = None) -> Pending | None:
        """Take the first request of the window that is not accused and not left for another one of ``servers``; where
        ``places`` of families are given, and neither stands in the way, the one that they choose for ``server``.
        """
        window, others = self.window, len(servers) > 1
        if window and not self.accused and not (others and window[0].servers):  # as for nearly all
            if places is None:
                pending = window.popleft()
                self.known_beginnings = None
                if pending.family is not None:
                    self._left(pending)
                return pending
            at = places.choose(self, server) if self.related else 0
            if others and window[at].servers and _left_for_others(window[at].servers, server, servers):
                at = 0
            return self._take(at, server, places)
        for position in range(len(window) if self.accused else min(len(window), _LOOK_AHEAD)):
            pending = window[position]
            if not (others and _left_for_others(pending.servers, server, servers)) and not self.is_accused(pending):
                return self._take(position, server, places)
        return None

    def _take(self, at: int, server: str, places: Places | None) -> Pending:
        if at:
            pending = self.window[at]
            del self.window[at]
        else:
            pending = self.window.popleft()
        if self.known_beginnings is not None:
            del self.known_beginnings[at]
        if pending.family is not None:
            self._left(pending)
        if places is not None:
            places.began(self, server, pending.family)
        return pending

    def _joined(self, pending: Iterable[Pending]) -> None:
        for one in pending:
            if (family := one.family) is not None:
                count = self.members[family] = self.members.get(family, 0) + 1
                self.kindred = self.kindred or count > 1
                self.related += 1

    def _left(self, pending: Pending) -> None:
        if (family := pending.family) is None:
            return
        count = self.members[family] - 1
        self.related -= 1
        if count:
            self.members[family] = count
        else:
            del self.members[family]

    @property
    def beginnings(self) -> list[int | None]:
        """The families of the requests of the window, in their order."""
        if self.known_beginnings is None:
            self.known_beginnings = [pending.family for pending in self.window]
        return self.known_beginnings

    @property
    def kinds(self) -> int:
        """How many beginnings the requests of the window have: of its families, and of each without one its own."""
        return len(self.members) + len(self.window) - self.related

    @property
    def waiting(self) -> int:
        return len(self.window) + self.unread

    @property
    def wants_fetch(self) -> bool:
        if self.unread <= 0 or self.fetching or len(self.window) + self.preparing >= WINDOW_LOW:
            return False
        if self.postponed >= POSTPONED or self.postponed_bytes >= POSTPONED_BYTES:
            return False
        return sum(len(pending.raw) for pending in self.window) < WINDOW_BYTES

    def priority_class(self, now_s: float) -> int:
        """The lane's class, one more per hour since its job was accepted; none less where the clock was set back."""
        return self.base_class + max(0, int((now_s - self.accepted_s) / _AGEING_S))


class Taken(msgspec.Struct, array_like=True):
    """A request on its way to a server. ``charge_s`` was charged to its owner in advance."""

    lane: Lane
    pending: Pending
    charge_s: float


def _left_for_others(tried: Sequence[str], server: str, servers: Set[str]) -> bool:
    """Whether ``server`` had the last of these attempts, or any while another one of ``servers`` had none."""
    return bool(tried) and (server == tried[-1] or (server in tried and not servers <= {*tried}))
