"""Judges whether a server that answers its health checks still does its work.

Ollama's ``/api/version``, ``/api/ps`` and even its runner's ``/health`` go on answering while inference is wedged
(ollama llama/runner, ``health`` takes no lock), so only the tokens of a server tell. Everything here is a
decision over observations and finished answers; the action is for :mod:`obatchd.dispatch.recovery`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from obatchd.jobs.model import Profile
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

# A long prompt keeps the GPU busy and gives no token: silence beside a busy GPU counts for a fraction.
_PREFILL_PATIENCE = 4
# Waiting for a slot below these is noise: 0.04 s were measured on answers of one second with every slot free.
_LEAST_WAIT_S = 0.25
_LEAST_WAIT_SHARE = 0.05
_LEAST_ANSWERS = 5
_LEAST_TOKENS = 8  # of an answer whose speed says something
_SPEED_WEIGHT = 0.1
_KNOWN_AFTER = 10  # answers after which a speed counts


class Symptom(StrEnum):
    """Faults of a server that answers."""

    STALLED = "stalled"  # no token from any slot
    GPU_IDLE = "gpu_idle"  # requests in flight and nothing computes
    SLOTS_LEAKING = "slots_leaking"  # it works on fewer requests than it has slots
    SLOW = "slow"  # far below its own history
    CPU_FALLBACK = "cpu_fallback"  # the model is no longer wholly in VRAM


class Observation(NamedTuple):
    """A server at one moment.

    ``computes`` is false while it has no model, is being given one, or its runner is being started again: a slow
    load is no fault. ``active`` requests occupy a slot; ``token_s`` is when the latest token or answer came.
    ``utilisation_percent`` is None where nobody knows it: CPU and remote servers, some slices.
    """

    now_s: float  # monotonic, like every time here
    computes: bool
    active: int
    token_s: float
    utilisation_percent: int | None


class TimedAnswer(NamedTuple):
    """A finished answer. ``active`` is the least number of requests at the server at its start and its end."""

    at_s: float
    profile: Profile | None
    slots: int
    active: int
    took_s: float
    wait_s: float  # inside the server, for a slot
    tokens: int
    eval_s: float  # generating


class _Speed(msgspec.Struct):
    """Tokens per second of one request while every slot is busy, and the best of them."""

    mean: float = 0.0
    best: float = 0.0
    answers: int = 0

    def add(self, tokens_per_s: float) -> None:
        self.answers += 1
        weight = max(_SPEED_WEIGHT, 1 / self.answers)
        self.mean += weight * (tokens_per_s - self.mean)
        if self.answers >= _KNOWN_AFTER:
            self.best = max(self.best, self.mean)


class ServerWatch:
    """The history of one server that its faults show in."""

    def __init__(self, settings: Current[Settings]) -> None:
        self._settings = settings
        self.slow_remedies = 0  # how often in a row it was found slow; 0 again when it reaches its speed
        self._quiet_from_s = 0.0  # silence is counted from here at the earliest
        self._idle_from_s = 0.0  # the same for the GPU
        self._waits = 0
        self._waits_from_s = self._waits_until_s = 0.0
        self._speeds: dict[tuple[Profile | None, int], _Speed] = {}  # by profile and slots
        self._slow_from_s: float | None = None
        self._slow_until_s = 0.0

    def answered(self, answer: TimedAnswer) -> None:
        if answer.wait_s > max(_LEAST_WAIT_S, _LEAST_WAIT_SHARE * answer.took_s):
            if not self._waits:
                self._waits_from_s = answer.at_s
            self._waits += 1
            self._waits_until_s = answer.at_s
        elif answer.active >= answer.slots:
            self._waits = 0  # every slot was asked for and this request had one at once
        # The fewer requests run side by side, the faster is each: only those of a full server are comparable.
        if answer.active >= answer.slots and answer.tokens >= _LEAST_TOKENS and answer.eval_s > 0:
            self._timed(answer)

    def _timed(self, answer: TimedAnswer) -> None:
        speed = self._speeds.setdefault((answer.profile, answer.slots), _Speed())
        speed.add(answer.tokens / answer.eval_s)
        if speed.answers < _KNOWN_AFTER:
            return
        if speed.mean >= self._settings.value.watchdog.slow_factor * speed.best:
            self._slow_from_s = None
            self.slow_remedies = 0
        else:
            self._slow_until_s = answer.at_s
            if self._slow_from_s is None:
                self._slow_from_s = answer.at_s

    def look(self, seen: Observation) -> Symptom | None:
        """What is wrong now; each symptom is given once and only again after as long a time as at first."""
        limits, stall_s = self._settings.value.watchdog, self._settings.value.dispatch.stall_s
        if not seen.computes or not seen.active:
            self._quiet_from_s = self._idle_from_s = seen.now_s
        else:
            idle = seen.utilisation_percent is not None and seen.utilisation_percent <= limits.idle_gpu_percent
            busy = seen.utilisation_percent is not None and not idle
            if not idle:
                self._idle_from_s = seen.now_s
            if seen.now_s - max(self._quiet_from_s, seen.token_s) >= stall_s * (_PREFILL_PATIENCE if busy else 1):
                self._quiet_from_s = self._idle_from_s = seen.now_s
                return Symptom.STALLED
            if seen.now_s - max(self._idle_from_s, seen.token_s) >= limits.idle_gpu_s:
                self._idle_from_s = seen.now_s
                return Symptom.GPU_IDLE
        if self._waits >= _LEAST_ANSWERS and self._waits_until_s - self._waits_from_s >= limits.leak_s:
            self._waits = 0
            return Symptom.SLOTS_LEAKING
        if self._slow_from_s is not None and self._slow_until_s - self._slow_from_s >= limits.slow_s:
            self._slow_from_s = None
            return Symptom.SLOW
        return None

    def begin_again(self, *, forget_speed: bool = False) -> None:
        """The server was dealt with: counts against it no longer hold; its best speed does, if not ``forget_speed``."""
        self._waits, self._slow_from_s = 0, None
        for speed in self._speeds.values():
            speed.mean, speed.answers = 0.0, 0
            if forget_speed:
                speed.best = 0.0
