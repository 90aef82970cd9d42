"""A dispatcher whose servers follow curves, on a clock that the test moves: an hour takes moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from dispatch_support import Port, Rig, settle
from settings_support import reload

from obatchd.dispatch import link, protocol, switching
from obatchd.dispatch.tuning.tuner import Tuner
from obatchd.errors import ServerError
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.model import Profile
from obatchd.simulator.config import Throughput

WALL_S = 1_700_000_000.0
LOAD_S = 10.0


class Clock:
    """Time that the test moves. Implements :class:`obatchd.dispatch.tuning.ports.Clock`."""

    def __init__(self) -> None:
        self.now_s = 10_000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return WALL_S + self.now_s


class Facts(dict[str, str]):
    """Implements :class:`obatchd.dispatch.tuning.ports.FactStore`."""

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def starting_with(self, prefix: str) -> dict[str, str]:
        return {key: value for key, value in self.items() if key.startswith(prefix)}


class TunedPort(Port):
    """A server with slots of ours to choose. Implements :class:`obatchd.dispatch.tuning.ports.TunableServer`."""

    def __init__(self, server_id: str, curves: dict[Profile, Throughput], clock: Clock) -> None:
        super().__init__(server_id, 8)
        self.curves, self.clock = curves, clock
        self.load_s = LOAD_S
        self.tuning = self
        self.version, self.driver, self.device = "0.24.0", "555.1", "L40S"
        self.restarts = 0
        self.memory_bytes = self.vram_bytes = 0
        self.process_slots = 8
        self.fresh = True
        self.beside_others = False
        self.fits: dict[Profile, int] = {}  # most slots
        self.dies_with: set[int] = set()  # numbers of slots with which it ends while it loads
        self.changes: list[tuple[float, int, int]] = []  # time, old and new number of a process that had loaded
        self.changed_for: list[Profile] = []  # the profile of each change
        self.asked: list[Sequence[int]] = []
        self._preferred: Sequence[int] = ()

    def first_slots(self, profile: Profile) -> int:
        return 8

    def use(self, slots: int) -> None:
        self.slots = max(1, min(slots, self.process_slots))

    def prefer(self, slots: Sequence[int]) -> None:
        self._preferred = slots
        self.asked.append(slots)

    async def load(self, profile: Profile) -> None:
        choices, self._preferred = list(self._preferred) or [8], ()
        self.clock.now_s += LOAD_S
        for slots in [*choices, 4, 2, 1]:
            if slots != self.process_slots:
                if not self.fresh:
                    self.changes.append((self.clock.now_s, self.process_slots, slots))
                    self.changed_for.append(profile)
                self.process_slots, self.fresh = slots, True
            if slots in self.dies_with:
                self.loaded, self.restarts, self.is_ready = None, self.restarts + 1, False
                raise ServerError("it ended", code="not_ready")
            if slots <= self.fits.get(profile, 64):
                break
        await super().load(profile)
        self.slots, self.fresh = self.process_slots, False


class Hall(Rig):
    """Servers that answer as their curves say."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        clock: Clock,
        *ports: TunedPort,
        tune_pause_s: float = 3600.0,
        **settings: Any,
    ) -> None:
        monkeypatch.setattr(switching, "time", clock)
        monkeypatch.setattr(link, "time", clock)
        super().__init__(*ports, **{"switch_after_s": 120.0} | settings)
        reload(self.settings, "servers.tune_pause_s", tune_pause_s)
        self.clock, self.facts = clock, Facts()
        self.servers = {port.id: port for port in ports}
        self.waiting = False  # somebody waits for an answer
        self.digest = "sha256:1"
        self.tuner: Tuner = self.dispatcher.tune(self.facts, self, self, clock)
        self._left: dict[str, dict[tuple[int, int], list[float]]] = {port.id: {} for port in ports}
        self._lines = 0
        self.tokens = 0.0

    def digest_on(self, server_id: str, model: str) -> str:
        return self.digest

    def waits(self) -> bool:
        return self.waiting

    def fill(self, job: int, count: int, profile: Profile, *, owner: int = 1, age_s: float = 7200.0) -> Lane:
        """``count`` more requests of a job that was accepted so long ago."""
        lane = self.queue.add_lane(Lane(job, 0, owner, profile, "normal", self.clock.time() - age_s))
        first, self._lines = self._lines + 1, self._lines + count
        self.queue.extend(lane, count, [Pending(line, b'{"id":"x"}') for line in range(first, first + count)])
        return lane

    async def run(self, seconds: float, each: Callable[[], None] = lambda: None, step_s: float = 1.0) -> None:
        """Let time pass; ``each`` is called every step."""
        end_s = self.clock.now_s + seconds
        while self.clock.now_s < end_s:
            self.clock.now_s += step_s
            for port in self.servers.values():
                self._work(port, step_s)
            each()
            self.dispatcher.wake()
            await settle()
            for port in self.servers.values():
                port.fresh, port.is_ready = port.fresh or not port.is_ready, True  # one that ended is there again

    def _work(self, port: TunedPort, step_s: float) -> None:
        worker, left = self.worker(port.id), self._left[port.id]
        for key in [key for key in left if key not in worker.held]:
            del left[key]
        fresh = [key for key in worker.held if key not in left][: max(0, port.slots - len(left))]
        for key in fresh:
            left[key] = [60.0 + key[1] % 80, self.clock.now_s]
        worker.begin(*fresh)
        active = len(left)
        if not active or port.loaded is None:
            return
        share = port.curves[port.loaded].total(active) / active
        done, full = [], active
        for key, state in left.items():
            state[0] -= share * step_s
            if state[0] <= 0:
                took_s = self.clock.now_s - state[1] + state[0] / share
                done.append((key, took_s))
        items = []
        for key, took_s in done:
            tokens = int(60 + key[1] % 80)
            items.append(
                protocol.ResultItem(
                    *key, worker.held.pop(key).attempt, True, b"{}", took_s, 0, tokens, eval_s=took_s, active=full
                )
            )
            worker.started.remove(key)
            del left[key]
            self.tokens += tokens
        if items:
            worker.tell(protocol.Results(items))
