"""The way in for interactive requests: takes questions, hands out leases, and decides how each goes on or ends."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from obatchd import log
from obatchd.dispatch import records
from obatchd.dispatch.events import Finished
from obatchd.dispatch.holds import DRAINING, PAUSED, STOPPING, Holds
from obatchd.dispatch.interactive.figures import Blame, Clock, Figures
from obatchd.dispatch.interactive.lease import Ended, Lease, Question, Read
from obatchd.dispatch.interactive.waiting import Waiting
from obatchd.dispatch.link import Link, Waker
from obatchd.dispatch.protocol import INTERACTIVE, CancelOne, JobContext, Tokens
from obatchd.documents import excerpt
from obatchd.documents.status import InteractiveState
from obatchd.errors import InteractiveError, ObatchError
from obatchd.jobs.formats.lines import read_whole
from obatchd.jobs.formats.request import Request
from obatchd.jobs.lane import Pending, Taken
from obatchd.jobs.model import Profile, RequestRefused
from obatchd.jobs.queue import JobQueue
from obatchd.ollama import faults
from obatchd.ollama.faults import Cause, Fault
from obatchd.settings.current import Current
from obatchd.settings.job import FrozenSettings
from obatchd.settings.settings import Settings

_log = log.get(__name__)
_MOST_SERVERS = 2  # are offered one request
_MOST_BYTES = 256 * 1024**2  # of requests that wait
_MOST_NUMBER = 2**31 - 1  # a line of a key; one bit more marks repeated requests
_LOOK_S = 0.25
_LEAST_RETRY_S, _LONGEST_RETRY_S, _STOP_RETRY_S = 1.0, 60.0, 30.0
_STOPS = (STOPPING, DRAINING, PAUSED)  # the other holds are about what is written, and nothing is written here


class Desk:
    """Everything about interactive requests but the choice of their servers (:mod:`.feeding`)."""

    def __init__(
        self,
        queue: JobQueue,
        links: Mapping[str, Link],
        settings: Current[Settings],
        holds: Holds,
        waker: Waker,
        clock: Clock = time.monotonic,
    ) -> None:
        self.waiting = Waiting()
        self.figures = Figures(clock)
        self._blame = Blame(clock)
        self._queue = queue
        self._links = links
        self._settings = settings
        self._holds = holds
        self._waker = waker
        self._clock = clock
        self._leases: dict[int, Lease] = {}  # by number; all that wait or are at a worker
        self._owners: Counter[int] = Counter()  # of those
        self._number = 0
        self._looked_s = 0.0
        self._closed = False

    def ask(self, question: Question, owner: int) -> Lease:
        """Take a question of ``owner`` (a uid), who pays for it as for a request of a job; it waits for a slot.

        Raises InteractiveError, whose ``retry_after_s`` says when it may be taken: ``stopping``, ``draining``,
        ``paused``, ``no_server``, ``queue_full``; or None where it never will: ``poison``, ``not_supported``,
        ``model``, or the code of a line that is no request.
        """
        self._refuse_stopped()
        read = question.read or read_question(question.raw)
        if question.read is not None:
            question = msgspec.structs.replace(question, read=None)
        lease = Lease(self, self._next_number(), question, self._profile_of(read.request), owner, read.digest)
        if self._blame.refuses(lease.digest):
            words = "servers crashed over this request; it is refused for ten minutes"
            raise InteractiveError(words, code="poison")
        self._refuse_full(lease)
        now_s = self._clock()
        lease.asked_s, lease.ends_s = now_s, now_s + (question.timeout_s or float("inf"))
        if owner not in self._owners:
            self._queue.join(owner, self._owners.keys())
        self._owners[owner] += 1
        self._leases[lease.number] = lease
        self.waiting.add(lease)
        self.figures.asked(lease.profile)
        self._waker.wake()
        return lease

    def waits(self, profile: Profile | None = None) -> bool:
        """Whether an interactive request waits for a slot, for ``profile`` or at all: then nothing else is tried."""
        return bool(self.waiting) if profile is None else bool(self.waiting.owners(profile))

    @property
    def stopped(self) -> bool:
        """Whether no interactive request may begin."""
        return self._closed or any(reason in self._holds.reasons for reason in _STOPS)

    @property
    def batches_held(self) -> bool:
        """Whether nothing of a batch may begin."""
        return bool(self._holds.reasons)

    def left_s(self, lease: Lease) -> float:
        """How long it may still take."""
        return lease.ends_s - self._clock()

    def state(self) -> InteractiveState | UnsetType:
        """For the status; nothing while there are none."""
        reserved = sum(link.kept_free for link in self._links.values())
        if self.figures.quiet and not self._leases and not reserved:
            return UNSET
        begun = sum(1 for lease in self._leases.values() if lease.offered is not None and lease.offered.started_s)
        p95_s = self.figures.first_token_p95_s()
        return InteractiveState(
            waiting=len(self._leases) - begun,
            in_flight=begun,
            answered=self.figures.answered,
            first_token_p95_s=None if p95_s is None else round(p95_s, 3),
            reserved_slots=reserved,
        )

    def context(self) -> JobContext:
        """What all interactive requests share: the settings of a job that has none of its own."""
        frozen = FrozenSettings.of(self._settings.value)
        return excerpt(JobContext, frozen, job=INTERACTIVE, name="interactive")

    def _next_number(self) -> int:
        self._number = self._number % _MOST_NUMBER + 1
        return self._number

    def _profile_of(self, request: Request) -> Profile:
        settings = self._settings.value
        if not (model := request.model or settings.model or ""):
            raise InteractiveError("it names no model, and the settings name none", code="model")
        return Profile.of(model, request.context_length or settings.context_length)

    def _refuse_stopped(self) -> None:
        if self.stopped:
            code = next((reason for reason in _STOPS if reason in self._holds.reasons), STOPPING)
            words = self._holds.told or "obatchd stops; ask again when it is back"
            raise InteractiveError(words, code=code, retry_after_s=_STOP_RETRY_S)
        down = [f"{link.server.id}: {link.server.down}" for link in self._links.values() if link.server.down]
        if down and len(down) == len(self._links):
            raise InteractiveError(f"no server works; {down[0]}", code="no_server", retry_after_s=_STOP_RETRY_S)

    def _refuse_full(self, lease: Lease) -> None:
        most, waiting = self._settings.value.dispatch.interactive_queue, len(self.waiting)
        mine = self.waiting.of_owner(lease.owner)
        size_bytes = self.waiting.size_bytes + len(lease.question.raw)
        if waiting < most and mine < max(1, most // 2) and (not waiting or size_bytes <= _MOST_BYTES):
            return
        slots = sum(link.server.slots for link in self._links.values() if link.server.ready)
        after_s = waiting * self.figures.mean_s / max(1, slots)
        raise InteractiveError(
            f"too many interactive requests wait ({waiting}, {mine} of them of this owner); ask again later",
            code="queue_full",
            retry_after_s=min(max(after_s, _LEAST_RETRY_S), _LONGEST_RETRY_S),
        )

    # From the holder of a lease.

    def closed(self, lease: Lease) -> None:
        self.figures.ended["abandoned"] += 1
        lease.end(Ended(False, code="closed", message="nobody waits for the answer any more"))
        if lease.link is None:
            self._forget(lease)
            self._waker.wake()
        elif not lease.abandoned:
            lease.abandoned = True
            if lease.link.worker is not None:
                lease.link.worker.send(CancelOne(INTERACTIVE, lease.number))

    # From dispatch.

    def look(self) -> None:
        """End those whose time is up while they wait; those at a server its worker ends."""
        now_s = self._clock()
        if not self.waiting or now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        for lease in [lease for lease in self.waiting if lease.ends_s <= now_s]:
            words = f"no slot became free within the {lease.question.timeout_s:g} s that the request gave"
            self._end(lease, Ended(False, code=Cause.TIMEOUT.code, message=words))

    def held(self, reason: str) -> None:
        """Dispatch is held; some reasons end what waits."""
        if reason in _STOPS:
            self._end_waiting(reason)

    def stop(self) -> None:
        """The daemon ends: so do all leases."""
        self._closed = True
        for lease in list(self._leases.values()):
            self._end(lease, self._stop_of())

    def unservable(self, profile: Profile, error: ObatchError) -> None:
        """No server can have ``profile``."""
        for lease in [lease for lease in self.waiting if lease.profile == profile]:
            self._end(lease, Ended(False, code=error.code, message=error.message))

    def tokens(self, message: Tokens) -> None:
        for item in message.items:
            lease = self._leases.get(item.line)
            if lease is None or lease.abandoned or item.attempt != lease.taken.pending.attempt:
                continue
            self._began(lease)
            lease.heard(item)

    def finished(self, finished: Finished) -> None:
        """A server answered it, or refused it for good."""
        lease = self._leases.get(finished.line)
        if lease is None:
            return
        if not finished.succeeded:
            self._end(lease, _failure(finished.record, again=False))
            return
        if not lease.abandoned:
            self._began(lease)
        self.figures.answer(finished.duration_s)
        self._blame.cleared(lease.digest)
        self._end(lease, Ended(True, finished.record))

    def failed(self, taken: Taken, fault: Fault, record: bytes, server: str) -> None:
        """An attempt ended in a fault of its server: another one is asked, unless somebody saw a part of the answer."""
        pending = taken.pending
        lease = self._leases.get(pending.line)
        if lease is None:
            return
        lease.link = lease.offered = None
        crashes = self._blame.crashed(lease.digest, lease.number) if fault.kind == faults.CRASH else 0
        servers = [*pending.servers, server]
        if lease.abandoned:
            self._forget(lease)
        elif crashes >= _MOST_SERVERS:
            _log.warning("interactive_poison", crashes=crashes, server=server, model=lease.profile.model)
            self._end(lease, _failure(records.crashed_again(record, crashes), again=False))
        elif lease.seen or len(servers) >= _MOST_SERVERS or fault.code == Cause.TIMEOUT.code or self.stopped:
            self._end(lease, _failure(record, again=True))
        else:
            again = Pending(pending.line, pending.raw, pending.attempt + 1, servers)
            lease.taken = Taken(taken.lane, again, 0.0)
            self.waiting.add(lease, first=True)

    def crashed(self, taken: Taken) -> dict[str, float]:
        lease = self._leases.get(taken.pending.line)
        return lease.crashed if lease is not None else {}

    def take_back(self, taken: Taken, fault: Fault | None) -> None:
        """A worker gave a request back, could not begin with it, or was cut short by ``fault``: nobody is to blame."""
        lease = self._leases.get(taken.pending.line)
        if lease is None:
            self._queue.withdraw(taken)
            return
        began_s = lease.offered.began_s if lease.offered is not None else 0.0
        lease.link = lease.offered = None
        if began_s and lease.abandoned:
            self._queue.charge(taken, time.monotonic() - began_s)
        else:
            self._queue.withdraw(taken)
        if lease.abandoned:
            self._forget(lease)
        elif lease.seen:
            self._end(lease, _failure(_cut_short(taken.pending, fault), again=True))
        elif self.stopped:
            self._end(lease, self._stop_of())
        else:
            lease.taken = Taken(taken.lane, taken.pending, 0.0)
            self.waiting.add(lease, first=True)

    def absolved(self, number: int) -> None:
        """A server that crashed over a request was at fault itself."""
        self._blame.absolved(number)

    def _began(self, lease: Lease) -> None:
        if not lease.first_token_s:
            lease.first_token_s = self._clock()
            self.figures.first_token(lease.first_token_s - lease.asked_s, lease.profile)

    def _end_waiting(self, reason: str) -> None:
        for lease in list(self.waiting):
            self._end(lease, self._stop_of())

    def _stop_of(self) -> Ended:
        code = next((reason for reason in _STOPS if reason in self._holds.reasons), STOPPING)
        words = self._holds.told or "obatchd stops; ask again when it is back"
        return Ended(False, code=code, message=words, retry_after_s=_STOP_RETRY_S)

    def _end(self, lease: Lease, ended: Ended) -> None:
        self._forget(lease)
        if lease.ended is None:
            self.figures.ended["succeeded" if ended.succeeded else "failed"] += 1
        lease.end(ended)

    def _forget(self, lease: Lease) -> None:
        """It neither waits nor is at a server any more."""
        if self._leases.pop(lease.number, None) is None:
            return
        self._owners[lease.owner] -= 1
        if not self._owners[lease.owner]:
            del self._owners[lease.owner]
        if lease.waits:
            self.waiting.remove(lease)


def read_question(raw: bytes) -> Read:
    """Read ``raw``, which takes 10 ms a MB where pictures are in it, so that large ones should be read in a thread.

    Raises InteractiveError where it is no request.
    """
    try:
        request = read_whole(raw)
    except RequestRefused as error:
        raise InteractiveError(error.reason, code=error.code) from None
    except (ValueError, RecursionError) as error:
        raise InteractiveError(f"it is no request: {error}", code="bad_json") from None
    if request.urls or request.files:
        raise InteractiveError("an interactive request cannot name urls or files", code="not_supported")
    return Read(request, hashlib.sha256(raw).digest())


def _cut_short(pending: Pending, fault: Fault | None) -> bytes:
    fault = fault or Cause.SERVER_WITHDRAWN.fault("its server was taken out of use")
    fault = fault._replace(message=f"the answer was cut short: {fault.message}")
    return records.lost(pending.raw, pending.line, pending.attempt, pending.servers, fault)


def _failure(record: bytes, *, again: bool) -> Ended:
    document: dict[str, Any] = msgspec.json.decode(record)
    return Ended(False, record, document["code"], document["message"], again)
