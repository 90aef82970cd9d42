"""Models in memory and their slots: what Ollama's scheduler does (server/sched.go of v0.24).

A request for what is loaded goes straight on, whoever waits for another model; everything else queues in order for
the one loader, which waits until the model it must replace has nothing in flight. Each loaded model has
``num_parallel`` slots with a queue in front.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from obatchd.simulator import golog
from obatchd.simulator.cards.load import LoadReporter
from obatchd.simulator.config import Config, FaultBox, ModelSpec
from obatchd.simulator.runner import RunnerGone, RunnerProcess

FOREVER_S = (2**63 - 1) / 1e9  # Go's longest duration, what a negative keep_alive means

_BUSY = "server busy, please try again.  maximum pending requests exceeded"
_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


_FEWEST = 16  # words in common from which a beginning counts: a template is in every prompt


class ServeError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP, while nothing has been sent yet.
        message: Ollama's own words.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class Limits:
    """What the environment of ``serve`` asks for."""

    slots: int
    context_length: int
    max_queue: int
    max_loaded: int
    keep_alive_s: float


@dataclass
class Statistics:
    """What ``GET /simulator/state`` tells."""

    requests: int = 0
    served: int = 0
    in_flight: int = 0  # in a slot
    max_in_flight: int = 0
    queued: int = 0  # waiting for a slot
    max_queued: int = 0
    served_by_slot: list[int] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    unloads: int = 0
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=4000))


class Slots:
    """``count`` numbered slots, given out in order of asking, each with what it computed last.

    Both lines give a request to the free slot with the longest common beginning (0.24: llamarunner/cache.go; 0.33:
    llama-server), and compute the rest of its prompt only.
    """

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._texts = [""] * count
        self._reused = [0] * count
        self._turn = asyncio.Semaphore(count)

    def all_taken(self) -> bool:
        return self._turn.locked()

    async def take(self, text: str = "") -> int:
        """A slot for a prompt of this text: the first of those that have most of it computed."""
        await self._turn.acquire()
        words = {slot: _common(self._texts[slot], text) for slot in sorted(self._free)}
        slot = max(words, key=words.__getitem__)
        self._free.remove(slot)
        self._texts[slot], self._reused[slot] = text, words[slot]
        return slot

    def reused(self, slot: int) -> int:
        """Words of the prompt in a slot that were computed before."""
        return self._reused[slot]

    def give_back(self, slot: int) -> None:
        self._free.append(slot)
        self._turn.release()


def _common(one: str, other: str) -> int:
    """How many words two texts begin with together, where those are enough to count."""
    if one[:_FEWEST] != other[:_FEWEST]:
        return 0
    words = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.split(), other.split(), strict=False)))
    return words if words >= _FEWEST else 0


class Loaded:
    """One model in memory."""

    def __init__(self, spec: ModelSpec, options: dict[str, Any], runner: RunnerProcess, limits: Limits) -> None:
        self.spec = spec
        self.options = options
        self.runner = runner
        self.slots = Slots(limits.slots)
        self.num_ctx = int(options["num_ctx"])
        self.size_bytes = spec.vram_bytes + self.num_ctx * limits.slots * spec.kv_bytes_per_token
        self.vram_bytes = 0
        self.slowness = 1.0
        self.keep_alive_s = limits.keep_alive_s
        self.idle_since_s = time.monotonic()
        self.users = 0
        self.idle = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None

    def serves(self, spec: ModelSpec, options: dict[str, Any]) -> bool:
        return not self.runner.dead and self.spec.digest == spec.digest and self.options == options

    def expires_in_s(self) -> float:
        if self.users or self.keep_alive_s >= FOREVER_S:
            return self.keep_alive_s
        return self.idle_since_s + self.keep_alive_s - time.monotonic()


class Scheduler:
    """All models of one server.

    Args:
        gpu_count: visible GPUs; 0 is the CPU.
        reporter: writes the load of simulated GPUs, where there are any.
    """

    def __init__(self, config: Config, limits: Limits, gpu_count: int, reporter: LoadReporter | None) -> None:
        self.config = config
        self.line = config.line
        self.limits = limits
        self.faults = FaultBox(config.faults, config.seed)
        self.statistics = Statistics(served_by_slot=[0] * limits.slots)
        self.loaded: dict[str, Loaded] = {}
        self._vram_bytes = config.gpu_memory_bytes * gpu_count
        self._reporter = reporter
        self._runners: set[RunnerProcess] = set()  # alive, loaded or not
        self._loader = asyncio.Lock()
        self._pending = 0
        self._producing = 0

    async def acquire(self, spec: ModelSpec, options: dict[str, Any], keep_alive_s: float | None) -> Loaded:
        """The model, loaded with these options; give it back with :meth:`release`.

        Raises:
            ServeError: 503 when too many wait for a load, 500 when it cannot be loaded.
        """
        loaded = self.loaded.get(spec.name)
        if loaded is None or not loaded.serves(spec, options):
            if self._pending >= self.limits.max_queue:
                raise ServeError(503, _BUSY)
            self._pending += 1
            try:
                async with self._loader:
                    loaded = self.loaded.get(spec.name)
                    if loaded is None or not loaded.serves(spec, options):
                        await self._make_room(spec.name)
                        loaded = await self._load(spec, options)
                    loaded.users += 1  # before the next in the queue may evict it
            finally:
                self._pending -= 1
        else:
            loaded.users += 1
        loaded.idle.clear()
        if keep_alive_s is not None:
            loaded.keep_alive_s = keep_alive_s
        return loaded

    def release(self, loaded: Loaded) -> None:
        loaded.users -= 1
        if loaded.users == 0:
            loaded.idle_since_s = time.monotonic()
            loaded.idle.set()
            self._expire(loaded)

    def unload(self, spec: ModelSpec) -> None:
        """Unload when nothing is in flight."""
        if (loaded := self.loaded.get(spec.name)) is not None:
            loaded.keep_alive_s = 0.0
            if loaded.users == 0:
                self._drop(loaded)

    async def take_slot(self, loaded: Loaded, text: str = "") -> int:
        """A slot of ``loaded`` for a prompt of this text, waited for in order; give it back with :meth:`leave_slot`.

        Raises:
            ServeError: the runner died meanwhile.
        """
        counts = self.statistics
        waits = loaded.slots.all_taken()
        counts.queued += waits
        counts.max_queued = max(counts.max_queued, counts.queued)
        try:
            slot = await loaded.slots.take(text)
        finally:
            counts.queued -= waits
        if loaded.runner.dead:
            loaded.slots.give_back(slot)
            raise ServeError(500, _STOPPED)
        counts.in_flight += 1
        counts.max_in_flight = max(counts.max_in_flight, counts.in_flight)
        return slot

    def leave_slot(self, loaded: Loaded, slot: int, *, leaks: bool = False) -> None:
        if not leaks:
            loaded.slots.give_back(slot)
        self.statistics.in_flight -= 1

    def producing(self, change: int) -> None:
        """Count a slot in or out of those that keep the GPU busy."""
        self._producing += change
        if self._reporter is not None:
            wedged = any(loaded.runner.wedged for loaded in self.loaded.values())
            self._reporter.busy(0 if wedged else min(self._producing, self.limits.slots))

    async def close(self) -> None:
        """Kill every runner and wait for its end."""
        for loaded in list(self.loaded.values()):
            self._drop(loaded)
        for runner in list(self._runners):
            runner.kill()
            await runner.ended()

    async def _make_room(self, name: str) -> None:
        while (victim := self._victim(name)) is not None:
            while victim.users:
                await victim.idle.wait()
            self._drop(victim)

    def _victim(self, name: str) -> Loaded | None:
        if name in self.loaded:
            return self.loaded[name]
        if len(self.loaded) < self.limits.max_loaded:
            return None
        return min(self.loaded.values(), key=lambda loaded: (loaded.users > 0, loaded.idle_since_s))

    async def _load(self, spec: ModelSpec, options: dict[str, Any]) -> Loaded:
        start_s = time.monotonic()
        name = spec.name
        line = self.line
        command = f"simulated runner --model sha256-{spec.digest}"
        golog.slog("INFO", line.source("server.go:433", "llama_server.go:433"), line.starting, cmd=command)
        runner = await RunnerProcess.start(name, spec.digest, on_death=self._died)
        self._runners.add(runner)
        try:
            await runner.pause(self.config.load_s)
            if self.faults.strike(frozenset({"load_failure"}), name):
                raise RunnerGone
        except RunnerGone:
            runner.kill()
            raise ServeError(500, f"{line.engine} process has terminated: exit status 2") from None
        except asyncio.CancelledError:  # the one that wanted it has gone; Ollama gives up the load too
            runner.kill()
            raise
        loaded = Loaded(spec, options, runner, self.limits)
        fallback = self.faults.strike(frozenset({"cpu"}), name)
        loaded.slowness = 1.0 if fallback is None else fallback.factor
        loaded.vram_bytes = 0 if fallback else min(loaded.size_bytes, self._vram_bytes)
        self.loaded[name] = loaded
        took_s = time.monotonic() - start_s
        self.statistics.loads.append({"model": name, "num_ctx": loaded.num_ctx, "at_s": time.time()})
        source = line.source("server.go:1432", "llama_server.go:1362")
        golog.slog("INFO", source, f"{line.engine} started in {took_s:.2f} seconds")
        golog.slog("INFO", "sched.go:561", "loaded runners", count=len(self.loaded))
        self._report_memory()
        return loaded

    def _died(self, runner: RunnerProcess) -> None:
        self._runners.discard(runner)
        if any(loaded.runner is runner for loaded in self.loaded.values()):
            line = self.line
            source = line.source("server.go:1299", "llama_server.go:1196")
            golog.slog("WARN", source, f"{line.engine} process no longer running", pid=runner.pid)
            self._report_memory()

    def _expire(self, loaded: Loaded) -> None:
        """Drop it if its time is over, else look again when it will be."""
        loaded.timer = None
        if loaded.users or self.loaded.get(loaded.spec.name) is not loaded:
            return
        left_s = loaded.expires_in_s()
        if left_s <= 0:
            self._drop(loaded)
        elif left_s < FOREVER_S / 2:
            self._call_later(loaded, left_s, self._expire)

    def _call_later(self, loaded: Loaded, delay_s: float, callback: Callable[[Loaded], None]) -> None:
        if loaded.timer is not None:
            loaded.timer.cancel()
        loaded.timer = asyncio.get_running_loop().call_later(delay_s, callback, loaded)

    def _drop(self, loaded: Loaded) -> None:
        if self.loaded.get(loaded.spec.name) is not loaded:
            return
        del self.loaded[loaded.spec.name]
        if loaded.timer is not None:
            loaded.timer.cancel()
        loaded.runner.kill()
        self.statistics.unloads += 1
        self._report_memory()

    def _report_memory(self) -> None:
        if self._reporter is not None:
            alive = [loaded for loaded in self.loaded.values() if not loaded.runner.dead]
            pid = alive[0].runner.pid if alive else None
            self._reporter.memory(sum(loaded.vram_bytes for loaded in alive), pid)
