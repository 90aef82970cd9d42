"""All that a page shows at a glance, in one document that is made at most once a second for each caller.

A page asks every two seconds. With a thousand jobs its document has a megabyte, of which next to nothing changes. So
each new text of a job gets a number, by which it is known; the list of the newest jobs is read again where somebody
wrote into their index; and the whole is put together where a part of it is another one.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Hashable
from typing import Any, NamedTuple

import msgspec
from attrs import define, field

from obatchd.control.answer import encoded
from obatchd.control.auth import Caller
from obatchd.control.operations import Burnin, GpuOperations, HostOperations, Look
from obatchd.delivery.documents import finished_document, job_document
from obatchd.documents.status import Overview
from obatchd.engine.engine import Engine
from obatchd.live.job import LiveJob

_MOST_IN_WORK = 1000  # jobs that are shown however old they are
_MOST_KEPT = 5000  # jobs whose JSON is kept, because it stays the same for most of them
_OLD_S = 1.0
_KEPT_S = 5.0  # so long a look is there for the next one, which may be the same
_BEGUN_S = 3.0  # so long at most the JSON of a job that has begun is kept
_FREE_BYTES, _FREE_INODES = 64 * 1024**2, 1000  # what a log line takes of a disk is no news


class _Whose(NamedTuple):
    """What was asked for."""

    uid: int
    is_administrator: bool
    jobs: int
    mine: bool


class _Job(NamedTuple):
    """A job as JSON."""

    mark: Hashable  # what it shows
    number: int  # another one for each text
    document: msgspec.Raw


class _Newest(NamedTuple):
    """The list of the newest jobs."""

    written: Hashable  # the state of the index when it was read
    jobs: list[tuple[int, str, tuple[Any, ...]]]


class _Sent(msgspec.Struct, tag_field="schema", tag=1):
    """An :class:`~obatchd.documents.status.Overview`, of parts that are JSON already."""

    revision: str
    uid: int
    administrator: bool
    status: msgspec.Raw
    gpus: msgspec.Raw
    jobs: list[msgspec.Raw]
    next: str | None


assert _Sent.__struct_fields__ == Overview.__struct_fields__


@define(eq=False)
class HostOverviews:
    """Implements :class:`obatchd.control.operations.Overviews`, which says what its method does."""

    _engine: Engine
    _host: HostOperations
    _gpus: GpuOperations
    _burnin: Burnin
    _latest: dict[_Whose, tuple[float, Look]] = field(factory=dict, init=False)  # with when they were made
    _jobs: dict[int, _Job] = field(factory=dict, init=False)  # by key
    _newest: dict[tuple[int | None, int], _Newest] = field(factory=dict, init=False)  # by owner and number
    _number: int = field(default=0, init=False)  # of the latest text of a job
    _run: bytes = field(factory=lambda: os.urandom(8), init=False)  # numbers begin anew with each

    def look(self, caller: Caller, jobs: int, *, mine: bool, fresh: bool) -> Look:
        now_s, whose = time.monotonic(), _Whose(caller.uid, caller.is_administrator, jobs, mine)
        made_s, latest = self._latest.get(whose, (-_OLD_S, None))
        if latest is None or fresh or now_s - made_s >= _OLD_S:
            self._latest = {one: made for one, made in self._latest.items() if now_s - made[0] < _KEPT_S}
            latest = self._made(caller, whose, latest)
            self._latest[whose] = now_s, latest
        return latest

    def _made(self, caller: Caller, whose: _Whose, before: Look | None) -> Look:
        status = self._host.status(caller, jobs=0)
        status.burnin = self._burnin.brief()
        status.disk.free_bytes -= status.disk.free_bytes % _FREE_BYTES
        if status.disk.free_inodes > 0:
            status.disk.free_inodes -= status.disk.free_inodes % _FREE_INODES
        jobs, after = self._listed(None if caller.is_administrator and not whose.mine else caller.uid, whose.jobs)
        status_now, gpus = msgspec.Raw(encoded(status)), msgspec.Raw(encoded(self._gpus.all()))
        digest = hashlib.blake2b(
            repr((*whose, after, [job.number for job in jobs])).encode(), digest_size=12, key=self._run
        )
        for part in (status_now, gpus):
            digest.update(part)
        revision = digest.hexdigest()
        if before is not None and before.revision == revision:
            return before
        documents = [job.document for job in jobs]
        sent = _Sent(revision, whose.uid, whose.is_administrator, status_now, gpus, documents, after)
        return Look(revision, msgspec.json.encode(sent))

    def _listed(self, owner: int | None, limit: int) -> tuple[list[_Job], str | None]:
        """The jobs, newest first, and the last of the newest ones where there are older ones."""
        engine, in_flight = self._engine, self._engine.dispatcher.in_flight()
        newest = self._newest_of(owner, limit + 1)
        after = newest[limit - 1][1] if len(newest) > limit else None
        seen = [live for live in engine.jobs.values() if owner is None or live.row.owner == owner]
        held_up = engine.dispatcher.held_up  # which looks at every server
        found = {live.key: self._in_work(live, in_flight.get(live.key, 0), held_up) for live in seen[:_MOST_IN_WORK]}
        marks = {key: mark for key, _, mark in newest[:limit] if key not in found}
        unknown = [key for key, mark in marks.items() if key not in self._jobs or self._jobs[key].mark != mark]
        for row in engine.store.state.with_keys(unknown):
            self._keep(row.key, marks[row.key], encoded(finished_document(row, engine.layout)))
        found |= {key: self._jobs[key] for key in marks if key in self._jobs}
        if len(self._jobs) > _MOST_KEPT:
            self._jobs.clear()
        return [found[key] for key in sorted(found, reverse=True)], after

    def _newest_of(self, owner: int | None, limit: int) -> list[tuple[int, str, tuple[Any, ...]]]:
        """As the index has them; it is read again where somebody wrote into it."""
        state = self._engine.store.state
        written, known = state.written(), self._newest.get((owner, limit))
        if known is None or known.written != written:
            self._newest = {whose: one for whose, one in self._newest.items() if one.written == written}
            known = self._newest[owner, limit] = _Newest(written, state.newest(owner, limit))
        return known.jobs

    def _in_work(self, live: LiveJob, in_flight: int, held_up: str) -> _Job:
        """A job in work: most of many wait, and look as they did a second ago."""
        mark = (
            # What a job that has begun has cost goes on for itself.
            live.turn is None and time.monotonic() // _BEGUN_S,
            live.finished, live.requests, live.indexed, live.paused, live.publishing, live.ending, in_flight, live.turn,
            live.hindrance, held_up, live.energy_j, len(live.row.notes), live.requests_per_s(), live.tokens_per_s(),
        )  # fmt: skip
        kept = self._jobs.get(live.key)
        if kept is None or kept.mark != mark:
            return self._keep(live.key, mark, encoded(job_document(live, in_flight, held_up)))
        return kept

    def _keep(self, key: int, mark: Hashable, document: bytes) -> _Job:
        text, kept = msgspec.Raw(document), self._jobs.get(key)
        if kept is not None and kept.document == text:
            self._jobs[key] = kept._replace(mark=mark)
        else:
            self._number += 1
            self._jobs[key] = _Job(mark, self._number, text)
        return self._jobs[key]
