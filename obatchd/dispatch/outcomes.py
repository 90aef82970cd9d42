"""Consequences of the end of an attempt: an outcome, another attempt, a strike, a suspicion."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

import attrs
import msgspec

from obatchd import log
from obatchd.dispatch import records
from obatchd.dispatch.events import INTERRUPTED, CrashListener, DispatchEvents, Failed, Finished
from obatchd.dispatch.link import Link, Offered, Waker
from obatchd.dispatch.protocol import INTERACTIVE, ResultItem
from obatchd.dispatch.refusals import Refusals
from obatchd.dispatch.trials import Trials
from obatchd.dispatch.watchdog import TimedAnswer
from obatchd.jobs.lane import Pending, Taken
from obatchd.jobs.model import place_of
from obatchd.jobs.queue import JobQueue
from obatchd.ollama import faults
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

_log = log.get(__name__)

_HOLD_S = 0.5  # a server that refused a connection is offered nothing
_ONE_CRASH_S = 1.0  # failures this close together are one crash
_JUST_BEFORE_S = 10.0  # what fails so shortly before the daemon is told to stop was stopped with it
LEAST_LIMIT_S = 0.1  # an attempt with less time left than this is not worth a try


class InteractiveOutcomes(Protocol):
    """Goes on with interactive requests; :class:`obatchd.dispatch.interactive.desk.Desk`."""

    def failed(self, taken: Taken, fault: faults.Fault, record: bytes, server: str) -> None:
        """An attempt of one ended in a fault of its server, or in an answer that is no good."""

    def crashed(self, taken: Taken) -> dict[str, float]:
        """The servers that crashed over one, with the time (monotonic)."""
        ...

    def take_back(self, taken: Taken, fault: faults.Fault | None) -> None:
        """One that was offered has not begun, or was cut short by ``fault``; neither is a fault of its own."""


@attrs.define(eq=False)
class OutcomeHandler:
    """Draws the consequences for the request and for the server."""

    _queue: JobQueue
    _settings: Current[Settings]
    _events: DispatchEvents
    _waker: Waker
    trials: Trials
    _interactive: InteractiveOutcomes
    _stopping: bool = attrs.field(default=False, init=False)
    _lately: deque[tuple[float, Link, Failed]] = attrs.field(factory=deque, init=False)  # with the time, monotonic
    crash_listener: CrashListener = attrs.field(factory=CrashListener, init=False)
    refusals: Refusals = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.refusals = Refusals(self._queue)

    def result(self, link: Link, item: ResultItem) -> None:
        key = (item.job, item.line)
        offered = link.offers.get(key)
        if offered is None or offered.taken.pending.attempt != item.attempt:
            return  # a late answer of an attempt that was given up
        link.take_back(key)
        link.ended(offered.taken)
        slot_s = item.duration_s + item.beside_s
        self._queue.charge(offered.taken, slot_s)
        if item.succeeded:
            offered.taken.lane.turned_away = False
            for taken in self.refusals.after_answer(offered.taken.lane.profile):
                self.requeue(taken)
            link.note(item.duration_s, item.response_tokens, vectors=item.vectors)
            lane = offered.taken.lane
            waited_s = 0.0
            if item.attempt == 1 and lane.accepted_s:
                waited_s = (offered.started_s or time.time() - item.duration_s) - lane.accepted_s
            link.work.recent.extend(  # as obatchd.counters has them
                (lane.profile.model, item.prompt_tokens, item.response_tokens, item.duration_s, item.eval_s, waited_s)
            )
            if link.window is not None:
                link.window.add(item, slot_s, link.kept_free)
            link.watch.answered(
                TimedAnswer(
                    link.token_s, link.server.loaded, link.server.slots, item.active, slot_s, item.wait_s,
                    item.response_tokens, item.eval_s,
                )
            )  # fmt: skip
            self._clear(key, offered.taken, link)
            self._finish(offered.taken, item.record, item.duration_s, succeeded=True, item=item, server=link.server.id)
            return
        fault = faults.Fault(item.fault, item.code, item.message)
        if item.prompt_tokens or item.response_tokens:  # an answer that is no good
            work = link.work[offered.taken.lane.profile.model]
            work.prompt_tokens += item.prompt_tokens
            work.response_tokens += item.response_tokens
        # A message about a request or an answer may quote it: its owner reads that in errors.jsonl.
        quotes = fault.kind in (faults.REQUEST, faults.ANSWER)
        _log.info(
            "attempt_failed", job=self._events.name_of(item.job), **place_of(item.line), attempt=item.attempt,
            server=link.server.id, gpu=link.server.gpu_label, fault=fault.kind, code=fault.code,
            reason="" if quotes else fault.message[:300],
        )  # fmt: skip
        self._failed_attempt(link, key, offered, fault, item.record, item.duration_s)

    def _clear(self, key: tuple[int, int], taken: Taken, link: Link) -> None:
        """A request that was in flight in crashes is answered: it was not its fault, where it came from elsewhere."""
        servers: dict[str, float] = {}
        if key[0] == INTERACTIVE:
            servers = self._interactive.crashed(taken)
        elif (suspicion := self.trials.suspicion.get(key)) is not None:
            servers = suspicion.servers
        for server, crashed_s in servers.items():
            if server != link.server.id:
                self.crash_listener.cleared(server, str(taken.lane.profile), crashed_s, link.server.id)
        self.trials.answered(taken)

    def worker_lost(self, link: Link, reason: str) -> None:
        """A worker is gone: requests with a slot have failed, waiting ones go back."""
        server = link.server.id
        for key, offered in link.take_all().items():
            if offered.started_s:
                fault = faults.Fault(
                    faults.SERVER, "worker_lost", f"obatchd's process that works with server {server} {reason}"
                )
                pending = offered.taken.pending
                record = records.lost(pending.raw, pending.line, pending.attempt, [*pending.servers, server], fault)
                spent_s = time.monotonic() - offered.began_s
                self._failed_attempt(link, key, offered, fault, record, spent_s)
            else:
                self.requeue(offered.taken)
        link.counted()

    def gone(self, link: Link, fault: faults.Fault) -> None:
        """A worker is gone, or its server is, and nobody is to blame: whatever it held goes back as if not offered."""
        self.trials.not_controlled(link)
        jobs: set[int] = set()
        for key, offered in link.take_all().items():
            if offered.started_s:
                link.faults[fault.kind, fault.code] += 1
                jobs.add(key[0])
            if offered.recorded and key[0] != INTERACTIVE:
                self._interrupted(link, key, offered)
            self.requeue(offered.taken, fault)
        for job in jobs:
            self._events.hindered(job, f"{link.server.id}: {fault.message}")
        link.counted()

    def interrupted(self, link: Link) -> None:
        """The daemon ends: without this the next start would count a crash against requests that it cuts short."""
        for key, offered in link.offers.items():
            if offered.recorded:
                self._interrupted(link, key, offered)

    def _interrupted(self, link: Link, key: tuple[int, int], offered: Offered) -> None:
        """The store knows of an attempt that was cut short: it is to count it neither as a crash nor at all."""
        attempt = offered.taken.pending.attempt
        self._events.failed(Failed(*key, attempt, link.server.id, offered.started_s, INTERRUPTED))

    def stop(self) -> None:
        """The daemon is told to stop, perhaps with all servers: what fails from now on is cut short by that, and no
        attempt, and so is what failed just before in a crash or on a server that is gone."""
        self._stopping = True
        for failed_s, link, failed in self._lately:
            gone = failed.fault == faults.CRASH or not link.server.ready
            if gone and time.monotonic() - failed_s < _JUST_BEFORE_S:
                self._events.failed(msgspec.structs.replace(failed, fault=INTERRUPTED))

    def admitted(self, batch: list[Taken]) -> list[Taken]:
        """Those of ``batch`` that may be tried; the others fail for what they or their like did to servers."""
        if not self.trials.open:
            return batch
        admitted = []
        for taken in batch:
            record = self.trials.sentence(taken, self._settings.value.dispatch.poison_crashes)
            if record is None:
                admitted.append(taken)
            else:
                self._queue.withdraw(taken)
                self._finish(taken, record, 0.0, succeeded=False)
        if len(admitted) < len(batch):
            self._waker.wake()
        return admitted

    def requeue(self, taken: Taken, fault: faults.Fault | None = None) -> None:
        """Put a request back: in front of its lane, or among the suspects that are tried alone.

        ``fault`` cut it short, where it may have begun: whoever has seen a part of an answer is told.
        """
        if taken.lane.job == INTERACTIVE:
            self._interactive.take_back(taken, fault)
        elif self.trials.is_suspect(taken):
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
        link.faults[fault.kind, fault.code] += 1
        if fault.kind == faults.REQUEST:
            link.server.progress()
            self._finish(taken, record, 0.0, succeeded=False)
            return
        if fault.kind != faults.ANSWER:  # the message of which may quote it
            self._events.hindered(taken.lane.job, f"{link.server.id}: {fault.message}")
        if fault.kind == faults.NOBODY:
            self._hold(link)
            self.requeue(Taken(taken.lane, pending, 0.0), fault)
            return
        began_s = offered.started_s or time.time()
        failed = Failed(*key, pending.attempt, link.server.id, began_s, fault.kind, took_s)
        if self._stopping:
            self._events.failed(msgspec.structs.replace(failed, fault=INTERRUPTED))
            self.requeue(Taken(taken.lane, pending, 0.0), fault)
            return
        if taken.lane.job == INTERACTIVE:
            self._failed_interactive(link, taken, failed, fault, record)
            return
        if fault.kind == faults.FOREIGN:
            self._turned_away(link, key, taken, fault, record, took_s)
            return
        link.failures += 1
        if fault.code == "connection_lost":
            # The process may be dead without our knowing it yet: new requests would be lost there as well.
            self._hold(link)
        link.attempts_failed += fault.kind != faults.ANSWER
        self._strike(link, taken, fault)
        self._events.failed(failed)
        self._remember(link, failed)
        if fault.kind == faults.CRASH:
            self._suspect(taken, failed, fault, link, record)
        settings = self._settings.value.dispatch
        if (spent_s := pending.spent_s + took_s) + LEAST_LIMIT_S > settings.request_total_s:
            record = records.out_of_time(record, spent_s)
        elif pending.attempt - self.trials.uncounted(taken) < settings.max_attempts:
            servers = [*pending.servers, link.server.id]
            kept = (pending.prepared, pending.known_settings, pending.family)
            again = Pending(pending.line, pending.raw, pending.attempt + 1, servers, spent_s, *kept)
            self.requeue(Taken(taken.lane, again, 0.0))
            return
        self._finish(taken, record, 0.0, succeeded=False)

    def _failed_interactive(self, link: Link, taken: Taken, failed: Failed, fault: faults.Fault, record: bytes) -> None:
        """The server is dealt with as for a request of a batch; the request itself has rules of its own."""
        link.attempts_failed += fault.kind != faults.ANSWER
        if fault.kind == faults.FOREIGN:
            if link.rest():
                link.server.fault(f"{fault.code}: {fault.message[:200]}")
        else:
            link.failures += 1
            if fault.code == "connection_lost":
                self._hold(link)
            self._strike(link, taken, fault)
        if fault.kind == faults.CRASH:
            link.crashed_with.append((taken, failed))
            self._tell_of_crash(self._interactive.crashed(taken), taken, fault, link)
        self._interactive.failed(taken, fault, record, link.server.id)

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
            if not together:
                link.crashed_s = now_s
            # Whether the server or what it worked on is at fault shows when it has answered one token.
            link.owes_control, link.crashed_profile = True, taken.lane.profile
            link.recall(len(link.offers))
            together = together or link.alone  # no strike for what a suspect did
        if fault.kind == faults.LOAD:
            link.server.loaded = None  # make sure of the model again before anything else is offered
            if fault.code == "model_not_found":
                self._events.model_missing(taken.lane.profile.model)
        if fault.code not in ("worker_lost", "server_hung") and fault.kind != faults.ANSWER and not together:
            link.server.fault(f"{fault.code}: {fault.message[:200]}")

    def _remember(self, link: Link, failed: Failed) -> None:
        now_s = time.monotonic()
        self._lately.append((now_s, link, failed))
        while self._lately and now_s - self._lately[0][0] >= _JUST_BEFORE_S:
            self._lately.popleft()

    def _suspect(self, taken: Taken, failed: Failed, fault: faults.Fault, link: Link, record: bytes) -> None:
        suspicion = self.trials.crashed(link, taken, failed, record, alone=link.alone)
        self._tell_of_crash(suspicion.servers, taken, fault, link)

    def _tell_of_crash(self, servers: dict[str, float], taken: Taken, fault: faults.Fault, link: Link) -> None:
        if fault.code != "server_hung":  # the watchdog deals with that one
            servers[link.server.id] = link.crashed_s
            self.crash_listener.crashed(link.server.id, str(taken.lane.profile), link.crashed_s)

    def _finish(
        self, taken: Taken, record: bytes, duration_s: float, *, succeeded: bool, item: ResultItem | None = None,
        server: str = "",
    ) -> None:  # fmt: skip
        lane, line = taken.lane, taken.pending.line
        self.trials.finished(taken)
        self.refusals.forget((lane.job, line))
        tokens = (item.response_tokens, item.prompt_tokens) if item else (0, 0)
        self._events.finished(Finished(lane.job, line, lane.number, succeeded, record, duration_s, *tokens, server))
