"""Who is at fault for a crash: one request, a cause that many requests share, or the server.

A crash takes along whatever is in flight, and says nothing about which of it was the cause. So:

* The server has to answer one token before it gets anything again (:mod:`obatchd.dispatch.controls`). One that does
  not is at fault, whatever it was working on: nothing counts against a request then.
* A request that was in two crashes is tried alone; one that crashes its server alone ``poison_crashes`` times is
  poison.
* The settings that requests of a lane share (schema, options, tools) are *accused* by a crash. From then on such
  requests go one at a time and alone, after all others, until one of them is answered. When a few different ones have
  crashed their servers alone and none was answered, the cause is condemned, and the rest of the lane fails with it.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import attrs
import msgspec

from obatchd import log
from obatchd.dispatch import records
from obatchd.dispatch.events import INTERRUPTED, DispatchEvents, Failed
from obatchd.dispatch.link import Link
from obatchd.dispatch.protocol import INTERACTIVE
from obatchd.jobs.formats.request import shared_settings
from obatchd.jobs.lane import Taken
from obatchd.jobs.model import written_line
from obatchd.jobs.queue import JobQueue
from obatchd.ollama import faults
from obatchd.ollama.faults import Cause, Fault

_log = log.get(__name__)
_SUSPECT_CRASHES = 2
_CONDEMNED_BY = 3  # different requests that crashed their servers alone
_SAME_PROMPT = Fault(
    faults.REQUEST, "poison", "another repeat of this prompt crashed servers while it ran alone on them"
)
FORMAT_CRASHES, SETTINGS_CRASH = "format_crashes", "settings_crash"

Key = tuple[int, int]  # job and line


class Suspicion(msgspec.Struct):
    """How often a request was in flight when its server crashed, and how often it was alone then.

    ``servers`` are those that crashed, with the time of the latest crash (monotonic). ``uncounted`` attempts do not
    count towards ``max_attempts``: those that ended in a crash.
    """

    crashes: int = 0
    alone: int = 0
    servers: dict[str, float] = {}
    uncounted: int = 0
    record: bytes = b""  # of the latest attempt that ended in a crash; empty where an earlier run saw it


class _Cause(NamedTuple):
    """The settings that requests share: those of a lane's job, and what the requests add, as JSON."""

    job: int
    lane: int
    settings: bytes


@attrs.define(eq=False)
class Trials:
    """What is known against requests and causes."""

    _queue: JobQueue
    _events: DispatchEvents
    suspicion: dict[Key, Suspicion] = attrs.field(factory=dict, init=False)
    undecided: set[Key] = attrs.field(factory=set, init=False)  # crashed alone; their servers' controls decide
    _proven: set[_Cause] = attrs.field(factory=set, init=False)  # a request with these settings was answered
    _condemned: dict[_Cause, Fault] = attrs.field(factory=dict, init=False)
    _evidence: dict[_Cause, set[int]] = attrs.field(factory=dict, init=False)  # lines that crashed alone
    _alone: Counter[Key] = attrs.field(factory=Counter, init=False)  # crashes of a repeated prompt, by job and its line

    def crashed(self, link: Link, taken: Taken, failed: Failed, record: bytes, *, alone: bool) -> Suspicion:
        """A request was in flight when its server crashed; its attempt ``failed`` with this record."""
        key = (taken.lane.job, taken.pending.line)
        suspicion = self.suspicion.setdefault(key, Suspicion())
        suspicion.crashes += 1
        suspicion.uncounted += 1
        suspicion.record = record
        link.crashed_with.append((taken, failed))
        cause, lane = _cause(taken), taken.lane
        if cause.settings not in lane.condemned:
            self._queue.accuse(lane, cause.settings)
            if lane.answered and shared_settings(lane.answered) == cause.settings:
                self._proven.add(cause)
            if cause not in self._proven:
                self._evidence.setdefault(cause, set())
        if alone:
            self.undecided.add(key)
        return suspicion

    def answered(self, taken: Taken) -> None:
        """A request is answered, and so is every doubt about what it shares with others; ``finished`` comes next."""
        taken.lane.answered = taken.pending.raw
        if self._alone:
            self._alone.pop(_prompt(taken), None)
        if taken.lane.accused:
            cause = _cause(taken)
            self._queue.acquit(taken.lane, cause.settings)
            self._proven.add(cause)
            self._evidence.pop(cause, None)

    def finished(self, taken: Taken) -> None:
        self.suspicion.pop((taken.lane.job, taken.pending.line), None)

    def uncounted(self, taken: Taken) -> int:
        """How many of a request's attempts do not count."""
        suspicion = self.suspicion.get((taken.lane.job, taken.pending.line))
        return 0 if suspicion is None else suspicion.uncounted

    def is_suspect(self, taken: Taken) -> bool:
        """Whether a request has to be tried alone."""
        suspicion = self.suspicion.get((taken.lane.job, taken.pending.line))
        return suspicion is not None and suspicion.crashes >= _SUSPECT_CRASHES

    @property
    def open(self) -> bool:
        """Whether anything is known against anybody."""
        return bool(self.suspicion or self._condemned or self._alone)

    def sentence(self, taken: Taken, poison_crashes: int) -> bytes | None:
        """The record with which a request fails instead of being tried again; None where it may be tried."""
        pending = taken.pending
        suspicion = self.suspicion.get((taken.lane.job, pending.line))
        if taken.lane.condemned and (fault := self._condemned.get(_cause(taken))) is not None:
            return records.lost(pending.raw, pending.line, pending.attempt - 1, pending.servers, fault)
        if suspicion is None or suspicion.alone < poison_crashes:
            if self._alone[_prompt(taken)] < poison_crashes:
                return None
            return records.lost(pending.raw, pending.line, pending.attempt - 1, pending.servers, _SAME_PROMPT)
        seen = Cause.RUNNER_DIED.fault("an earlier run of the daemon saw it")
        record = suspicion.record or records.lost(pending.raw, pending.line, pending.attempt - 1, pending.servers, seen)
        return records.poisoned(record, suspicion.crashes, suspicion.alone)

    def controlled(self, link: Link) -> None:
        """A server that crashed works: what crashed it alone is to blame."""
        for taken, failed in link.crashed_with:
            key = (taken.lane.job, taken.pending.line)
            if key in self.undecided and (suspicion := self.suspicion.get(key)) is not None:
                suspicion.alone += 1
                if written_line(taken.pending.line)[1]:
                    self._alone[_prompt(taken)] += 1
                self._events.failed(msgspec.structs.replace(failed, fault="crash_alone"))
                self._add_evidence(_cause(taken), taken)
            self.undecided.discard(key)
        link.crashed_with.clear()

    def not_controlled(self, link: Link) -> None:
        """A server that crashed is at fault itself: what was in flight there is not."""
        for taken, failed in link.crashed_with:
            key = (taken.lane.job, taken.pending.line)
            suspicion = self.suspicion.get(key)
            if suspicion is not None:
                suspicion.crashes -= 1
            if suspicion is not None or key[0] == INTERACTIVE:
                self._events.failed(msgspec.structs.replace(failed, fault=INTERRUPTED))
            self.undecided.discard(key)
        link.crashed_with.clear()

    def _add_evidence(self, cause: _Cause, taken: Taken) -> None:
        if (lines := self._evidence.get(cause)) is None:
            return  # some such request was answered
        lines.add(_prompt(taken)[1])
        if len(lines) < _CONDEMNED_BY:
            return
        del self._evidence[cause]
        self._queue.acquit(taken.lane, cause.settings)
        fault = self._fault(taken, len(lines))
        taken.lane.condemned.add(cause.settings)
        self._condemned[cause] = fault
        _log.error(
            "cause_condemned", job=self._events.name_of(taken.lane.job), model=taken.lane.profile.model,
            code=fault.code, crashes=len(lines), settings=",".join(self._shared(taken)) or "none",
        )  # fmt: skip

    def _shared(self, taken: Taken) -> list[str]:
        """The names of the settings that requests of a cause share."""
        context, own = self._events.context_of(taken.lane.job), taken.pending.settings
        names = set(msgspec.json.decode(own)) if own else set()
        names |= {"format"} if context.format else set()
        names |= {"options"} if context.options else set()
        names |= {"system_message"} if context.system_message else set()
        return sorted(names)

    def _fault(self, taken: Taken, requests: int) -> Fault:
        shared = self._shared(taken)
        named = " and ".join([*shared, f"the model {taken.lane.profile.model}"])
        words = (
            f"the requests of this job with the same {named} crash their servers: {requests} of them did, each alone "
            "on a server that answers other requests, and none was answered. The rest is not tried"
        )
        code = FORMAT_CRASHES if {"format", "response_format"} & set(shared) else SETTINGS_CRASH
        return Fault(faults.REQUEST, code, words)

    def forget(self, job: int) -> None:
        """The job is over."""
        for key in [key for key in self.suspicion if key[0] == job]:
            del self.suspicion[key]
        self.undecided = {key for key in self.undecided if key[0] != job}
        for key in [key for key in self._alone if key[0] == job]:
            del self._alone[key]
        self._proven = {cause for cause in self._proven if cause.job != job}
        for causes in (self._evidence, self._condemned):
            for cause in [cause for cause in causes if cause.job == job]:
                del causes[cause]


def _prompt(taken: Taken) -> Key:
    """The prompt of a request: several have the same where a job is answered more than once."""
    return taken.lane.job, written_line(taken.pending.line)[0]


def _cause(taken: Taken) -> _Cause:
    return _Cause(taken.lane.job, taken.lane.number, taken.pending.settings)
