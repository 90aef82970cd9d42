"""``skip_done``: requests that were answered before get that answer again, without asking a model.

The same means: same owner, same model by its digest, same request but for its id and the fields that only come back,
and same settings of the job. Earlier jobs are looked through as long as they are kept (``disk.keep_done_s``); nothing
is remembered beside them, so that nobody else pays for this.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
from attrs import define

from obatchd import log
from obatchd.dispatch.events import Finished
from obatchd.dispatch.protocol import context_sha256
from obatchd.documents.jobs import EarlierSummary
from obatchd.intake.feeder import read_requests
from obatchd.intake.preparation import may_name_sources
from obatchd.jobs.formats import parse_request
from obatchd.jobs.model import Outcome, id_at, place_of, repeated_id, written_line
from obatchd.jobs.store import DISK_ERRORS, JobRow
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.live.work import Work
from obatchd.spool.outbox import JobOutbox

_log = log.get(__name__)
_TOGETHER = 1024  # answers copied between two commits
_WANTED_LIMIT = 200_000  # requests looked for in one pass through the earlier jobs: bounds memory
_JOBS_LIMIT = 100_000
_SOURCES = b'"sources":['
_encode = msgspec.json.Encoder(order="sorted").encode


class Wanted(msgspec.Struct, array_like=True):
    """A request without a result: its place, and the fields that its record takes from it."""

    line: int
    lane: int
    id: str
    input: dict[str, Any]


class _Model(msgspec.Struct):
    model: str = ""


_model = msgspec.json.Decoder(_Model)


def fingerprint(raw: bytes, context: str, model_digest: str, *, number: int = 0, links: bool = False) -> bytes | None:
    """The key of a request: two with the same key must get the same answer; None where that cannot be told.

    A request that names sources outside itself is never the same: they may have changed. ``links`` in it do so, too.
    Answer ``number`` to a repeated prompt is the same as that of the same number or, where the prompt gives a seed, as
    the answer with the same seed.
    """
    if may_name_sources(raw, links):
        return None
    try:
        request = parse_request(raw)
    except (ValueError, RecursionError):
        return None
    # The model stands in the digest; a name may be spelt in several ways.
    options, seed = request.options, request.options.get("seed", -1)
    if number and seed >= 0:
        options, number = options | {"seed": seed + (number - 1) * request.n}, 0
    same = msgspec.structs.replace(
        request, id=None, model=None, priority=None, context_length=None, input={}, notes=[], again=(), options=options
    )
    return hashlib.sha256(_encode([context, model_digest, number, same])).digest()


@define(eq=False)
class Reuse:
    """Finds earlier answers."""

    _work: Work
    _models: Models

    async def answers(self, live: LiveJob) -> AsyncIterator[list[Finished]]:
        """Results for requests of ``live`` that have none and were answered before, some at a time.

        A disk that refuses ends the search: the other answers are computed.
        """
        try:
            lanes = await asyncio.to_thread(lambda: self._work.store.of(live.row).lanes(live.key))
            digests = {row.lane: await self._models.digest(live.profile_of(row).model) for row in lanes}
            known = {lane: digest for lane, digest in digests.items() if digest}
            pending = self._pending(live, known)
            context = self._work.settings.value.context
            links = context.enabled and context.from_links
            while wanted := await asyncio.to_thread(self._take, pending, context_sha256(live.context()), known, links):
                earlier = await asyncio.to_thread(self._earlier_jobs, live)
                found = self._found(live, wanted, earlier, set(known.values()))
                while batch := await asyncio.to_thread(list, islice(found, _TOGETHER)):
                    yield batch
        except DISK_ERRORS as error:
            _log.error("earlier_answers_not_read", job=live.row.job, reason=log.reason(error))

    def _pending(self, live: LiveJob, lanes: dict[int, str]) -> Iterator[tuple[int, int, bytes]]:
        """(line, lane, bytes) of the job's requests without a result."""
        segment = self._work.store.of(live.row)
        path = self._work.request_file(live.row)
        for lane in lanes:
            reached = 0
            while rows := segment.pending(live.key, lane, reached, _TOGETHER):
                requests, changed = read_requests(path, rows, {})
                for request in requests:
                    yield request.line, lane, request.raw
                reached = max([request.line for request in requests] + [row.line for row in changed])

    @staticmethod
    def _take(
        pending: Iterator[tuple[int, int, bytes]], context: str, digests: dict[int, str], links: bool
    ) -> dict[bytes, list[Wanted]]:
        wanted: dict[bytes, list[Wanted]] = {}
        for line, lane, raw in islice(pending, _WANTED_LIMIT):
            key = fingerprint(raw, context, digests[lane], number=written_line(line)[1], links=links)
            if key is not None:
                request = parse_request(raw)
                wanted.setdefault(key, []).append(Wanted(line, lane, id_at(line, request.id), request.input))
        return wanted

    def _earlier_jobs(self, live: LiveJob) -> list[JobRow]:
        only = live.row.settings.skip_done
        rows = self._work.store.state.finished_before(time.time() + 1, _JOBS_LIMIT)
        mine = [row for row in rows if row.owner == live.row.owner and row.key != live.key]
        return [row for row in reversed(mine) if only is True or row.job == only]

    def _found(
        self, live: LiveJob, wanted: dict[bytes, list[Wanted]], earlier: Sequence[JobRow], digests: set[str]
    ) -> Iterator[Finished]:
        for row in earlier:
            if not wanted:
                return
            summary = JobOutbox(self._work.outbox_of(row)).valid_summary() or EarlierSummary()
            context = summary.settings.get("context_sha256")
            # Where servers had different models by one name, no answer says here which of them gave it.
            models = {name: str(facts.digest) for name, facts in summary.models.items() if not facts.digests}
            if context and digests & set(models.values()):
                for line, key, record in self._answered(row, context, models):
                    for one in wanted.pop(key, ()):
                        yield Finished(live.key, one.line, one.lane, True, _copied(record, one, row.job, line), 0.0)

    def _answered(self, row: JobRow, context: str, models: dict[str, str]) -> Iterator[tuple[int, bytes, bytes]]:
        """(line, fingerprint, record) of the successes of an earlier job."""
        segment = self._work.store.of(row)
        try:
            descriptor = os.open(self._work.request_file(row), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # released meanwhile
        try:
            for line, outcome, record in segment.results(row.key):
                digest = models.get(_model.decode(record).model)
                if outcome is Outcome.SUCCEEDED and digest and _SOURCES not in record:
                    place = segment.place(row.key, line)
                    raw = place.read(descriptor) if place is not None else None
                    key = fingerprint(raw, context, digest, number=written_line(line)[1]) if raw else None
                    if key is not None:
                        yield line, key, record
        finally:
            os.close(descriptor)


def _copied(record: bytes, wanted: Wanted, job: str, line: int) -> bytes:
    """The record of an earlier answer as that of this request; it took no time and no attempt."""
    document = msgspec.json.decode(record, type=dict[str, msgspec.Raw])
    for name in ("input", "repeat", "beside_s"):
        document.pop(name, None)
    own: dict[str, Any] = {"id": wanted.id, **place_of(wanted.line), "attempts": 0, "servers": [], "duration_s": 0.0}
    written, number = written_line(line)
    own |= {"copied_from": f"{job}/{repeated_id(str(written), number)}"}
    own |= {"input": wanted.input} if wanted.input else {}
    return msgspec.json.encode({**document, **own})
