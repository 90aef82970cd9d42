"""Keeps every slot of every server busy: takes the messages of the rest of the daemon, and those of the workers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from obatchd import log
from obatchd.child import End
from obatchd.dispatch import protocol
from obatchd.dispatch.controls import Controls
from obatchd.dispatch.events import CrashListener, DispatchEvents, Failed, ModelStore
from obatchd.dispatch.holds import STOPPING, Holds
from obatchd.dispatch.interactive.desk import Desk
from obatchd.dispatch.interactive.feeding import Feeding
from obatchd.dispatch.interactive.routing import Routed
from obatchd.dispatch.interactive.waiting import Demand
from obatchd.dispatch.keeper import WorkerKeeper
from obatchd.dispatch.link import Link, ServerPort
from obatchd.dispatch.offering import Offering
from obatchd.dispatch.outcomes import OutcomeHandler
from obatchd.dispatch.switching import ProfileSwitcher
from obatchd.dispatch.trials import Suspicion, Trials
from obatchd.dispatch.tuning.ports import Clock, Digests, FactStore, InteractiveWork
from obatchd.dispatch.tuning.tuner import Tuner
from obatchd.dispatch.workers import LOCAL, WorkerLife, WorkerMaker
from obatchd.jobs.queue import JobQueue
from obatchd.ollama.faults import Cause, Fault
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskOwner, TaskSet, set_within
from obatchd.words import counted

_log = log.get(__name__)
_MOVED_S = 10.0  # a worker gives up its attempts within moments


class Dispatcher:
    """Matches the queue to the servers.

    ``holds`` are reasons for which nothing new is offered. ``owner`` is told when a part of dispatch ends by a defect:
    requests would wait for a worker, or for a server between two profiles, for ever. ``desk`` takes the requests of
    people who wait.
    """

    def __init__(
        self,
        queue: JobQueue,
        settings: Current[Settings],
        events: DispatchEvents,
        models: ModelStore,
        holds: Holds,
        owner: TaskOwner,
    ) -> None:
        self._settings = settings
        self.links: dict[str, Link] = {}
        self.desk = Desk(queue, self.links, settings, holds, self)
        self._people = Feeding(queue, self.links, settings, self.desk)
        events = Routed(events, self.desk)
        self._trials = Trials(queue, events)
        self.suspicion = self._trials.suspicion
        self._outcomes = OutcomeHandler(queue, settings, events, self, self._trials, self.desk)
        self._offering = Offering(queue, self.links, settings, events, self._outcomes)
        self._tasks = TaskSet(owner)
        self._controls = Controls(self.links, settings, self._trials, self, self._tasks)
        self._keeper = WorkerKeeper(self.links, self, self._tasks)
        self._queue = queue
        demand = Demand(queue, self.desk.waiting, holds)
        self._switcher = ProfileSwitcher(demand, self.links, settings, models, events, self, self._tasks)
        self.holds = holds
        self._pumping = False
        self._closing = False
        self._given_up = asyncio.Event()
        holds.listen(self)
        queue.listen(self)

    async def start(self, servers: Iterable[ServerPort], workers: WorkerMaker = LOCAL) -> None:
        """Attach the servers that there are at first, and give their workers a moment to come."""
        await self._keeper.start([self._attach(server, workers) for server in servers])

    def attach(self, server: ServerPort, workers: WorkerMaker = LOCAL) -> None:
        """Give a server work from now on, by workers that ``workers`` makes; nobody waits for the first one."""
        self._attach(server, workers)
        self.wake()

    def _attach(self, server: ServerPort, workers: WorkerMaker) -> WorkerLife:
        if server.id in self.links:
            raise ValueError(f"{server.id} is attached already")
        link = self.links[server.id] = Link(server, self._settings, self._offering.at_work, workers)
        return self._keeper.attach(link)

    async def detach(self, server: ServerPort) -> None:
        """Give a server no more work, let others answer what it holds at once, and wait for the end of its worker.

        That costs no attempt. Whoever wants its answers empties it first (``vacate``).
        """
        link = self.links.pop(server.id, None)
        if link is None:
            return
        _log.info("server_detached", server=server.id, requests=len(link.offers))
        if link.loading is not None:
            link.loading.cancel()
        self._outcomes.gone(link, Cause.SERVER_WITHDRAWN.fault(f"server {server.id} is not obatchd's any more"))
        self.wake()
        await self._keeper.detach(link)

    async def stop(self) -> None:
        """End every worker; requests that they still hold stay pending in the store."""
        self._closing = True
        await self._tasks.stop()
        if self._switcher.tuner is not None:
            self._switcher.tuner.stop()
        for link in self.links.values():
            self._outcomes.interrupted(link)
        self.desk.stop()

    def settings_changed(self) -> None:
        """Tell the workers of their time-outs, and of what interactive requests share."""
        for link in self.links.values():
            link.contexts.discard(protocol.INTERACTIVE)
            link.configure()

    def tune(self, facts: FactStore, digests: Digests, interactive: InteractiveWork, clock: Clock = time) -> Tuner:
        """Find the best slots of servers whose slots are ours to choose; ``facts`` has what was found before."""
        tuner = Tuner(self._queue, self.links, self._settings, facts, digests, interactive, clock)
        self._switcher.tuner = tuner
        return tuner

    def listen_to_crashes(self, listener: CrashListener) -> None:
        """Tell of each request that was in flight in a crash of a server, and when another server answers it."""
        self._outcomes.crash_listener = listener

    # Control.

    def held(self, reason: str) -> None:
        """Take back requests that wait at the workers; those in flight end."""
        if reason == STOPPING:
            self._outcomes.stop()
        self.desk.held(reason)
        for link in self.links.values():
            link.recall(len(link.offers))

    def released(self, reason: str) -> None:
        self.wake()

    def queue_filled(self) -> None:
        self.wake()

    def server_changed(self, server: ServerPort) -> None:
        """A server became ready or stopped being so."""
        link = self.links.get(server.id)
        if link is not None and not server.ready:
            link.forget_computed()
            link.recall(len(link.offers))
        self.wake()

    def job_cancelled(self, job: int) -> None:
        """Abandon every request at the workers."""
        for link in self.links.values():
            if link.worker is not None and job in link.contexts:
                link.worker.send(protocol.Cancel(job))
        self.wake()

    def give_up(self, link: Link, fault: Fault, hold_s: float) -> None:
        """End the requests of a server that does no work; it gets nothing new for ``hold_s`` or until ``release``."""
        link.hold(hold_s)  # ends by release, or by the tick
        if link.worker is not None:
            link.worker.send(protocol.GiveUp(*fault))

    async def empty(self, link: Link, timeout_s: float) -> bool:
        """Give a server nothing new until ``release``; whether its requests ended within ``timeout_s``."""
        link.hold(float("inf"))
        return await set_within(timeout_s, link.server.idle)

    async def vacate(self, link: Link, patience_s: float, reason: str) -> None:
        """Wait ``patience_s`` for the requests of a server that gets nothing new, then let others answer the rest.

        That costs no attempt, and the end of the server then counts as no crash.
        """
        if await set_within(patience_s, link.server.idle):
            return
        _log.info("requests_moved", server=link.server.id, requests=len(link.offers), reason=reason)
        self.give_up(link, Cause.SERVER_WITHDRAWN.fault(reason), 0.0)
        await set_within(_MOVED_S, link.server.idle)

    def release(self, link: Link) -> None:
        """Offer to a server again that was held."""
        link.held_until_s = 0.0
        self.wake()

    def suspect(self, job: int, known: Mapping[int, Suspicion]) -> None:
        """Suspicions against requests of a job, by line, from an earlier run."""
        self.suspicion.update({(job, line): suspicion for line, suspicion in known.items() if suspicion.crashes})

    def forget_job(self, job: int) -> None:
        """The job is over."""
        self._trials.forget(job)
        self._outcomes.refusals.forget_job(job)
        for link in self.links.values():
            if job in link.contexts:
                link.contexts.discard(job)
                if link.worker is not None:
                    link.worker.send(protocol.Forget(job))

    def in_flight(self) -> dict[int, int]:
        """Requests that have a slot, by job key."""
        offers = (offer for link in self.links.values() for offer in link.offers.items())
        return Counter(job for (job, _), offered in offers if offered.started_s)

    def running(self) -> dict[str, list[tuple[int, float]]]:
        """Of each server, the requests that have a slot: the key of their job, and their beginning (monotonic)."""
        return {
            name: [(job, offered.began_s) for (job, _), offered in link.offers.items() if offered.started_s]
            for name, link in self.links.items()
        }

    @property
    def held_up(self) -> str:
        """Why no job gets on; empty where one can."""
        return self.holds.told or self.stranded

    @property
    def stranded(self) -> str:
        """Why no server can have work; empty where one can, or is about to."""
        if not self.links:
            return "there is no server yet"
        reasons = [f"{link.server.id}: {link.server.down}" for link in self.links.values() if link.server.down]
        if not reasons or len(reasons) < len(self.links):
            return ""
        none = f"none of {counted(len(reasons), 'server')} works" if reasons[1:] else "no server works"
        return f"{none}; {reasons[0]}"

    def busy(self) -> bool:
        return any(link.offers for link in self.links.values())

    async def until_idle(self, timeout_s: float) -> None:
        """Wait until nothing is at a worker, for ``timeout_s`` at most or until ``give_up_waiting``."""

        async def idle() -> None:
            for link in list(self.links.values()):  # some may come and go meanwhile
                await link.server.idle.wait()

        waits = [asyncio.create_task(idle()), asyncio.ensure_future(self._given_up.wait())]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        if left := sum(link.started for link in self.links.values()):
            _log.warning("drain_ended", in_flight=left, reason="they are asked again at the next start")

    def give_up_waiting(self) -> None:
        self._given_up.set()

    def unrecorded_starts(self) -> list[Failed]:
        """Attempts that run and that the store does not know of yet; each is given once."""
        starts = []
        for link in self.links.values():
            for (job, line), offered in link.offers.items():
                if offered.started_s and not offered.recorded:
                    offered.recorded = True
                    attempt = offered.taken.pending.attempt
                    starts.append(Failed(job, line, attempt, link.server.id, offered.started_s, ""))
        return starts

    def wake(self) -> None:
        """Look for something to offer, once, at the end of this turn of the loop."""
        if not self._pumping and not self._closing:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        self._outcomes.look()
        self.desk.look()
        held = bool(self.holds.reasons)
        if self._closing or (held and (self.desk.stopped or not self.desk.waiting)):
            return
        self._controls.look()
        self._tune(held=held)
        self._switcher.look()
        self._offering.try_emptied(held=held)
        self._people.fill()
        if not held:
            self._offering.fill()

    def _tune(self, *, held: bool) -> None:
        tuner = self._switcher.tuner
        try:
            if tuner is not None:
                tuner.give_way()
                if not held:
                    tuner.look()
        except Exception:  # noqa: BLE001 - logged; a defect here must cost speed, not the work of all servers
            _log.exception("tuning_ended")
            self._switcher.tuner = None

    # Events of the workers.

    def worker_lost(self, link: Link, end: End) -> None:
        if end.host:  # preempted, cut off, dead: no request had a part in that, however often it happens
            words = f"host {end.host} was lost, and the worker of server {link.server.id} with it"
            self._outcomes.gone(link, Cause.HOST_LOST.fault(words))
        else:
            self._outcomes.worker_lost(link, end.words)
        self.wake()

    def worker_said(self, link: Link, message: protocol.ToMain) -> None:
        link.unheard_ticks = 0
        match message:
            case protocol.Results():
                link.token_s = time.monotonic()
                for item in message.items:
                    self._outcomes.result(link, item)
                if any(item.succeeded for item in message.items):
                    link.server.progress()
                link.counted()
                self.wake()
            case protocol.Started():
                now_s, began_s = time.time(), time.monotonic()
                for key in message.keys:
                    if (offered := link.offers.get(key)) is not None:
                        offered.started_s, offered.began_s = now_s, began_s
            case protocol.Tokens():
                link.token_s = time.monotonic()
                self.desk.tokens(message)
            case protocol.Returned():
                self._returned(link, message)
            case protocol.Progress():
                self._progressed(link, message)
            case protocol.Hello():
                link.configure()

    def _progressed(self, link: Link, told: protocol.Progress) -> None:
        if told.tokens:
            link.token_s = time.monotonic()
            link.server.progress()
        if link.worker is not None and link.differs(told):  # nobody else would ever notice
            _log.error(
                "worker_out_of_step", server=link.server.id, pid=link.worker.pid, offered=link.offered, got=told.got,
                held=told.held, missed=told.offered - told.got_then, expected=len(link.offers),
            )  # fmt: skip
            link.worker.kill()

    def _returned(self, link: Link, message: protocol.Returned) -> None:
        link.recalling = 0
        for key in message.keys:
            if (offered := link.take_back(key)) is not None:
                self._outcomes.requeue(offered.taken)
        link.counted()
        self.wake()
