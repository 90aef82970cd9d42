"""Consequences of the end of an attempt: an outcome, another attempt, a strike, a suspicion."""

from __future__ import annotations

import asyncio
import time

import attrs
import msgspec

from obatchd import log
from obatchd.dispatch import records
from obatchd.dispatch.events import INTERRUPTED, CrashListener, DispatchEvents, Failed, Finished
from obatchd.dispatch.link import Link, Offered, Waker
from obatchd.dispatch.protocol import ResultItem
from obatchd.dispatch.refusals import Refusals
from obatchd.dispatch.watchdog import TimedAnswer
from obatchd.jobs.lane import Pending, Taken
from obatchd.jobs.queue import JobQueue
from obatchd.ollama import faults
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)
_HOLD_S = 0.5  # a server that refused a connection is offered nothing
_ONE_CRASH_S = 1.0  # failures this close together are one crash
_SUSPECT_CRASHES = 2
LEAST_LIMIT_S = 0.1  # an attempt with less time left than this is not worth a try


class Suspicion(msgspec.Struct):
    """How often a request was in flight when its server crashed, and how often it was alone then.

    ``servers`` are those that crashed, with the time of the latest crash (monotonic).
    """

    crashes: int = 0
    alone: int = 0
    servers: dict[str, float] = {}


@attrs.define(eq=False)
class OutcomeHandler:
    """Draws the consequences for the request and for the server."""

    _queue: JobQueue
    _settings: Current[Settings]
    _events: DispatchEvents
    _waker: Waker
    suspicion: dict[tuple[int, int], Suspicion] = attrs.field(factory=dict, init=False)
    crash_listener: CrashListener = attrs.field(factory=CrashListener, init=False)
    refusals: Refusals = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.refusals = Refusals(self._queue)

    def result(self, link: Link, item: ResultItem) -> None:
        key = (item.job, item.line)
        offered = link.offers.get(key)
        if offered is None or offered.taken.pending.attempt != item.attempt:
            return  # a late answer of an attempt that was given up
        del link.offers[key]
        self._queue.charge(offered.taken, item.duration_s)
        if item.succeeded:
            offered.taken.lane.turned_away = False
            for taken in self.refusals.after_answer(offered.taken.lane.profile):
                self.requeue(taken)
            link.note(item.duration_s, item.response_tokens, vectors=item.vectors)
            link.watch.answered(
                TimedAnswer(
                    link.token_s, link.server.loaded, link.server.slots, item.active, item.duration_s, item.wait_s,
                    item.response_tokens, item.eval_s,
                )
            )  # fmt: skip
            link.server.progress()
            self._clear(key, offered.taken, link)
            self._finish(offered.taken, item.record, item.duration_s, succeeded=True, tokens=item.response_tokens)
            return
        fault = faults.Fault(item.fault, item.code, item.message)
        # A message about a request or an answer may quote it: its owner reads that in errors.jsonl.
        quotes = fault.kind in (faults.REQUEST, faults.ANSWER)
        _log.info(
            "attempt_failed", job=item.job, line=item.line, attempt=item.attempt, server=link.server.id,
            gpu=link.server.gpu_label, fault=fault.kind, code=fault.code, reason="" if quotes else fault.message[:300],
        )  # fmt: skip
        self._failed_attempt(link, key, offered, fault, item.record, item.duration_s)

    def _clear(self, key: tuple[int, int], taken: Taken, link: Link) -> None:
        """A request that was in flight in crashes is answered: it was not its fault, where it came from elsewhere."""
        if (suspicion := self.suspicion.get(key)) is not None:
            for server, crashed_s in suspicion.servers.items():
                if server != link.server.id:
                    self.crash_listener.cleared(server, str(taken.lane.profile), crashed_s, link.server.id)

    def worker_lost(self, link: Link, reason: str) -> None:
        """A worker is gone: requests with a slot have failed, waiting ones go back."""
        server = link.server.id
        offers, link.offers = link.offers, {}
        for key, offered in offers.items():
            if offered.started_s:
                fault = faults.Fault(faults.SERVER, "worker_lost", f"the worker of {server} {reason}")
                pending = offered.taken.pending
                record = records.lost(pending.raw, pending.line, pending.attempt, [*pending.servers, server], fault)
                spent_s = time.monotonic() - offered.began_s
                self._failed_attempt(link, key, offered, fault, record, spent_s)
            else:
                self.requeue(offered.taken)
        link.counted()

    def interrupted(self, link: Link) -> None:
        """The daemon ends: without this the next start would count a crash against requests that it cuts short."""
        for (job, line), offered in link.offers.items():
            if offered.recorded:
                attempt = offered.taken.pending.attempt
                self._events.failed(Failed(job, line, attempt, link.server.id, offered.started_s, INTERRUPTED))

    def requeue(self, taken: Taken) -> None:
        """Put a request back: in front of its lane, or among the suspects that are tried alone."""
        suspicion = self.suspicion.get((taken.lane.job, taken.pending.line))
        if suspicion is not None and suspicion.crashes >= _SUSPECT_CRASHES:
            self._queue.set_aside(taken)
        else:
            self._queue.give_back(taken)

    def look(self) -> None:
        """Put requests back that were turned away and have waited."""
        for taken in self.refusals.while_idle():
            self.requeue(taken)

    def _failed_attempt(
        self, link: Link, key: tuple[int, int], offered: Offered, fault: faults.Fault, record: bytes, took_s: float
    ) -> None:
        taken, pending = offered.taken, offered.taken.pending
        if fault.kind == faults.REQUEST:
            link.server.progress()
            self._finish(taken, record, 0.0, succeeded=False)
            return
        if fault.kind != faults.ANSWER:  # the message of which may quote it
            self._events.hindered(taken.lane.job, f"{link.server.id}: {fault.message}")
        if fault.kind == faults.NOBODY:
            self._hold(link)
            self.requeue(Taken(taken.lane, pending, 0.0))
            return
        if fault.kind == faults.FOREIGN:
            self._turned_away(link, key, taken, fault, record, took_s)
            return
        link.failures += 1
        if fault.code == "connection_lost":
            # The process may be dead without our knowing it yet: new requests would be lost there as well, and a
            # suspect that is tried alone would be blamed for a crash that was over before it came.
            self._hold(link)
        alone = fault.kind == faults.CRASH and link.alone
        link.attempts_failed += fault.kind != faults.ANSWER
        self._strike(link, taken, fault)
        kind = "crash_alone" if alone else fault.kind
        began_s = offered.started_s or time.time()
        self._events.failed(Failed(*key, pending.attempt, link.server.id, began_s, kind, took_s))
        suspicion = self._suspect(key, taken, fault, link, alone=alone)
        settings = self._settings.value.dispatch
        if suspicion.alone >= settings.poison_crashes:
            record = records.poisoned(record, suspicion.crashes, suspicion.alone)
        elif (spent_s := pending.spent_s + took_s) + LEAST_LIMIT_S > settings.request_total_s:
            record = records.out_of_time(record, spent_s)
        elif pending.attempt < settings.max_attempts:
            servers = [*pending.servers, link.server.id]
            again = Pending(pending.line, pending.raw, pending.attempt + 1, servers, spent_s, pending.prepared)
            self.requeue(Taken(taken.lane, again, 0.0))
            return
        self._finish(taken, record, 0.0, succeeded=False)

    def _turned_away(
        self, link: Link, key: tuple[int, int], taken: Taken, fault: faults.Fault, record: bytes, took_s: float
    ) -> None:
        """Not Ollama answered: the server rests, and the request waits. Attempts are not counted, their time is."""
        link.attempts_failed += 1
        taken.lane.turned_away = True
        if link.rest():  # those in flight together are turned away together
            link.server.fault(f"{fault.code}: {fault.message[:200]}")
        pending = msgspec.structs.replace(taken.pending, spent_s=taken.pending.spent_s + took_s)
        if pending.spent_s + LEAST_LIMIT_S > self._settings.value.dispatch.request_total_s:
            record = records.out_of_time(record, pending.spent_s)
        elif times := self.refusals.count(key, link):
            record = records.singled_out(record, times)
        else:
            self.refusals.postpone(key, Taken(taken.lane, pending, 0.0), link)
            return
        self._finish(taken, record, 0.0, succeeded=False)

    def _hold(self, link: Link) -> None:
        link.hold(_HOLD_S)
        asyncio.get_running_loop().call_later(_HOLD_S, self._waker.wake)

    def _strike(self, link: Link, taken: Taken, fault: faults.Fault) -> None:
        """One strike for one fault of a server, however many of its requests it took along."""
        now_s = time.monotonic()
        together = fault.kind == faults.CRASH and now_s - link.crashed_s < _ONE_CRASH_S
        if fault.kind == faults.CRASH:
            link.crashed_s = now_s
        if fault.kind == faults.LOAD:
            link.server.loaded = None  # make sure of the model again before anything else is offered
            if fault.code == "model_not_found":
                self._events.model_missing(taken.lane.profile.model)
        if fault.code not in ("worker_lost", "server_hung") and fault.kind != faults.ANSWER and not together:
            link.server.fault(f"{fault.code}: {fault.message[:200]}")

    def _suspect(
        self, key: tuple[int, int], taken: Taken, fault: faults.Fault, link: Link, *, alone: bool
    ) -> Suspicion:
        suspicion = self.suspicion.get(key) or Suspicion()
        if fault.kind == faults.CRASH:
            self.suspicion[key] = suspicion
            suspicion.crashes += 1
            suspicion.alone += alone
            if fault.code != "server_hung":  # the watchdog deals with that one
                suspicion.servers[link.server.id] = link.crashed_s
                self.crash_listener.crashed(link.server.id, str(taken.lane.profile), link.crashed_s)
        return suspicion

    def _finish(self, taken: Taken, record: bytes, duration_s: float, *, succeeded: bool, tokens: int = 0) -> None:
        lane, line = taken.lane, taken.pending.line
        self.suspicion.pop((lane.job, line), None)
        self.refusals.forget((lane.job, line))
        self._events.finished(Finished(lane.job, line, lane.number, succeeded, record, duration_s, tokens))
