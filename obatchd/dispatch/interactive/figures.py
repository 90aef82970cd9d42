"""What is known of interactive requests of the last ten minutes: how many, how fast, and which crash servers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import attrs

from obatchd.counters import WorkByModel
from obatchd.jobs.model import Profile

LATELY_S = 600.0
_MOST_TIMES = 10_000
_TOLERATED_CRASHES = 1
Clock = Callable[[], float]


@attrs.define(eq=False)
class Figures:
    """Counts, and times to the first token. ``clock`` gives monotonic seconds."""

    _clock: Clock
    answered: int = attrs.field(default=0, init=False)
    mean_s: float = attrs.field(default=1.0, init=False)  # of an answer in its slot
    ended: Counter[str] = attrs.field(factory=Counter, init=False)  # since the daemon began, by outcome
    work: WorkByModel = attrs.field(factory=WorkByModel, init=False)  # of all servers: times to the first token
    _asked_s: dict[Profile, float] = attrs.field(factory=dict, init=False)  # when somebody last asked
    _firsts: deque[tuple[float, float]] = attrs.field(factory=lambda: deque(maxlen=_MOST_TIMES), init=False)

    def asked(self, profile: Profile) -> None:
        self._asked_s[profile] = self._clock()

    def first_token(self, after_s: float, profile: Profile) -> None:
        """An answer begins so long after its question."""
        self._firsts.append((self._clock(), after_s))
        self.work[profile.model].first_token.add_one(after_s)

    def answer(self, duration_s: float) -> None:
        self.answered += 1
        self.mean_s += 0.1 * (duration_s - self.mean_s)

    def lately(self) -> list[Profile]:
        """Profiles that somebody asked for in the last ten minutes, the latest first."""
        since_s = self._clock() - LATELY_S
        if any(asked_s < since_s for asked_s in self._asked_s.values()):
            self._asked_s = {profile: asked_s for profile, asked_s in self._asked_s.items() if asked_s >= since_s}
        return sorted(self._asked_s, key=self._asked_s.__getitem__, reverse=True)

    @property
    def quiet(self) -> bool:
        """Whether nobody asked in the last ten minutes."""
        return not self._asked_s or not self.lately()

    def first_token_p95_s(self) -> float | None:
        """Of nineteen of twenty answers of the last ten minutes, the first token came within this time."""
        since_s = self._clock() - LATELY_S
        while self._firsts and self._firsts[0][0] < since_s:
            self._firsts.popleft()
        times = sorted(after_s for _, after_s in self._firsts)
        return times[min(len(times) - 1, int(0.95 * len(times)))] if times else None


@attrs.define(eq=False)
class Blame:
    """Requests that were in flight in crashes, by digest: one that was in two is refused for ten minutes."""

    _clock: Clock
    _crashes: dict[bytes, tuple[int, float]] = attrs.field(factory=dict, init=False)  # how many, and the latest
    _numbers: dict[int, bytes] = attrs.field(factory=dict, init=False)  # of the leases that these were

    def crashed(self, digest: bytes, number: int) -> int:
        """A server crashed over the request, which is the lease ``number``; how many did lately."""
        now_s = self._clock()
        self._crashes = {one: known for one, known in self._crashes.items() if now_s - known[1] < LATELY_S}
        self._numbers = {one: its for one, its in self._numbers.items() if its in self._crashes} | {number: digest}
        crashes = self._crashes.get(digest, (0, 0.0))[0] + 1
        self._crashes[digest] = crashes, now_s
        return crashes

    def absolved(self, number: int) -> None:
        """A server that crashed over the lease ``number`` was at fault itself."""
        digest = self._numbers.get(number, b"")
        crashes, latest_s = self._crashes.get(digest, (0, 0.0))
        if crashes > 1:
            self._crashes[digest] = crashes - 1, latest_s
        else:
            self._crashes.pop(digest, None)

    def refuses(self, digest: bytes) -> bool:
        crashes, latest_s = self._crashes.get(digest, (0, 0.0))
        return crashes > _TOLERATED_CRASHES and self._clock() - latest_s < LATELY_S

    def cleared(self, digest: bytes) -> None:
        """The request was answered."""
        if self._crashes:
            self._crashes.pop(digest, None)
