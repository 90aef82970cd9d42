"""What the main process spends on choosing requests for a large fleet, for each answer: with families and without.

    python bench/pump.py [--servers 28] [--slots 8] [--answers 1500] [--rounds 9]

No processes, no store, no HTTP: a real dispatcher and queue, and below them workers that take every offer. One answer
at a time ends, on servers in random order, and the dispatcher looks for the next request: that is one *pump*, as on a
fleet whose answers take seconds. Jobs: 5 questions about each of many documents one after another (``ordered``), in any
order (``shuffled``), and prompts that share nothing (``none``), each with ``families`` on and off. The ways take turns,
in processor time; of the rounds the median counts, and ratios are those of one round.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import attrs
import uvloop
from harness import finish, table

from obatchd.dispatch import protocol
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.events import Failed, Finished
from obatchd.dispatch.holds import Holds
from obatchd.dispatch.workers import WorkerLife, WorkerPlace
from obatchd.errors import ObatchError
from obatchd.frames import Drained
from obatchd.jobs.lane import WINDOW_FETCH, Lane, Pending
from obatchd.jobs.model import Profile
from obatchd.jobs.queue import JobQueue
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

PROFILE = Profile("bench", 4096)
QUESTIONS = 5
ANSWER_S = 5.0
GOALS = {"ordered": 1.1, "shuffled": 1.1, "none": 1.02}


@attrs.define(eq=False)
class Port:
    """A server that has its model loaded. Implements :class:`obatchd.dispatch.link.ServerPort`."""

    id: str
    slots: int
    base_url: str = "http://127.0.0.1:1"
    gpu_label: str = "GPU"
    version: str = ""
    token: str = ""
    loaded: Profile | None = PROFILE
    loading: Profile | None = None
    load_s: float | None = 10.0
    in_flight: int = 0
    idle: asyncio.Event = attrs.field(factory=asyncio.Event)
    tuning: None = None
    up: bool = True
    ready: bool = True
    out_of_use: bool = False
    down: str = ""

    def load_options(self, profile: Profile) -> dict[str, Any]:
        return {"num_ctx": profile.context_length}

    def progress(self) -> None:
        """An answer came."""


class Hand:
    """In place of a worker: takes what it is given."""

    pid = 1
    is_full = False

    def listen(self, listener: Drained) -> None:
        """It is never full."""

    def send(self, message: object) -> bool:
        """Nobody reads it."""
        return True

    def kill(self) -> None:
        """It does not end."""


class Life:
    """Keeps a hand at one server, where the daemon keeps a process."""

    def __init__(self, server_id: str, place: WorkerPlace) -> None:
        self.name, self.tried, self._place = f"worker-{server_id}", asyncio.Event(), place

    async def run(self) -> None:
        self._place.started(Hand())
        self.tried.set()
        await asyncio.Event().wait()


class Hands:
    """Makes them. Implements :class:`obatchd.dispatch.workers.WorkerMaker`."""

    def keep(self, server_id: str, place: WorkerPlace) -> WorkerLife:
        return Life(server_id, place)


@attrs.define(eq=False)
class Feeder:
    """Brings the requests of one job in pieces, as from the store. Implements ``LaneFeeder``."""

    families: Sequence[int | None]
    at: int = 0

    def fetch(self, lane: Lane, queue: JobQueue) -> None:
        asyncio.get_running_loop().call_soon(self.bring, lane, queue)

    def bring(self, lane: Lane, queue: JobQueue) -> None:
        piece = self.families[self.at : self.at + WINDOW_FETCH]
        pending = [Pending(line, b'{"prompt":"x"}', family=family) for line, family in enumerate(piece, self.at + 1)]
        self.at += len(piece)
        queue.fetched(lane, pending)

    def ready(self, lane: Lane, pending: Sequence[Pending], queue: JobQueue) -> Sequence[Pending]:
        return pending


class Events:
    """Hears of outcomes. Implements :class:`obatchd.dispatch.events.DispatchEvents`."""

    def finished(self, finished: Finished) -> None: ...
    def answered_for_nobody(self, finished: Finished) -> None: ...
    def failed(self, failed: Failed) -> None: ...
    def hindered(self, job: int, reason: str) -> None: ...
    def model_missing(self, model: str) -> None: ...
    def unservable(self, profile: Profile, error: ObatchError) -> None: ...
    def defective(self, job: int) -> None: ...

    def context_of(self, job: int) -> protocol.JobContext:
        return protocol.JobContext(job, str(job), "", {}, 100)

    def name_of(self, job: int) -> str:
        return str(job)

    async def ensure(self, server: str, model: str) -> list[str]:
        return []

    def task_died(self, name: str, error: BaseException) -> None:
        raise SystemExit(f"{name}: {error}")


def families_of(mix: str, count: int) -> list[int | None]:
    """The family of each of ``count`` requests."""
    if mix == "none":
        return [None] * count
    families: list[int | None] = [1000 + at // QUESTIONS for at in range(count)]
    if mix == "shuffled":
        random.Random(1).shuffle(families)
    return families


async def pumps_us(mix: str, families: str, servers: int, slots: int, answers: int) -> float:
    """Processor time of one answer and the look for the next request."""
    feeder, events = Feeder(families_of(mix, 2 * answers + 8 * servers * slots)), Events()
    queue = JobQueue(feeder)
    settings = Current(Settings.model_validate({"dispatch": {"families": families}}))
    owner: Any = events
    dispatcher = Dispatcher(queue, settings, events, events, Holds(), owner)
    await dispatcher.start([Port(f"gpu{at}", slots) for at in range(servers)], Hands())
    lane = queue.add_lane(Lane(1, 0, 1, PROFILE, "normal", time.time()))
    links = list(dispatcher.links.values())
    for link in links:
        link.note(ANSWER_S, 10, vectors=False)
    queue.extend(lane, len(feeder.families))
    dispatcher.wake()
    for _ in range(5):
        await asyncio.sleep(0)
    at_random = random.Random(2)
    chosen = [at_random.choice(links) for _ in range(answers + servers)]
    for at, link in enumerate(chosen):
        if at == servers:  # the first ones find an empty house
            gc.collect()
            began_s = time.process_time()
        (job, line), offered = next(iter(link.offers.items()))
        item = protocol.ResultItem(job, line, offered.taken.pending.attempt, True, b"{}", ANSWER_S, 10, 10)
        dispatcher.worker_said(link, protocol.Results([item]))
        await asyncio.sleep(0)
    took_s = time.process_time() - began_s
    assert sum(len(link.offers) for link in links) >= servers * slots
    await dispatcher.stop()
    return 1e6 * took_s / answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=28)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--answers", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    costs: dict[tuple[str, str], list[float]] = {}
    for turn in range(arguments.rounds):
        for mix in GOALS:
            for families in ("auto", "off") if turn % 2 else ("off", "auto"):
                run = pumps_us(mix, families, arguments.servers, arguments.slots, arguments.answers)
                costs.setdefault((mix, families), []).append(uvloop.run(run))
    figures, rows = {}, []
    for mix in GOALS:
        on, off = costs[mix, "auto"], costs[mix, "off"]
        figures[f"{mix}_us"], figures[f"{mix}_off_us"] = statistics.median(on), statistics.median(off)
        figures[f"{mix}_ratio"] = statistics.median(one / other for one, other in zip(on, off, strict=True))
        rows.append((mix, f"{figures[f'{mix}_us']:.0f} and {figures[f'{mix}_off_us']:.0f} µs: "
                          f"{figures[f'{mix}_ratio']:.3f}"))  # fmt: skip
    table(f"processor time of an answer, {arguments.servers * arguments.slots} slots: families on and off", rows)
    return finish("pump", figures, {f"{mix}_ratio": ("<=", limit) for mix, limit in GOALS.items()})


if __name__ == "__main__":
    raise SystemExit(main())
