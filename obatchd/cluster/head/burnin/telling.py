"""A run over hosts as its documents: from what each host has told, and what the head knows of those that did not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

import attrs
import msgspec

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.hosts import HostPart, of_host
from obatchd.burnin.journal.records import Begun, Ended, Event, Record
from obatchd.burnin.report import over_hosts, report
from obatchd.burnin.report.over_hosts import OverHosts
from obatchd.burnin.run.manager import Burnin
from obatchd.burnin.verdict.reasons import HOST_LOST, NOT_BEGUN
from obatchd.cluster.head.burnin.files import HostsRun, Part, RunFiles
from obatchd.documents.burnin.plan import Host
from obatchd.documents.burnin.report import BurninHead, BurninReport, BurninSeries, ListedGpu, ListedRun
from obatchd.errors import NotFoundError

D = TypeVar("D")
_PATIENCE = 10.0  # times the time that a head took, before the next one is made of a run in progress


@attrs.frozen(eq=False)
class _Known(Generic[D]):
    """A document that was made: of what, and from when until when (monotonic)."""

    key: object
    document: D
    begun_s: float
    made_s: float

    def is_recent(self, now_s: float) -> bool:
        return now_s - self.made_s < _PATIENCE * (self.made_s - self.begun_s)


@attrs.define(eq=False)
class Telling:
    """Makes the documents. A day of many GPUs is seconds of work, so the latest head is kept."""

    _files: RunFiles
    _local: Burnin
    _known: _Known[BurninHead] | None = attrs.field(default=None, init=False)
    _drawn: _Known[BurninSeries] | None = attrs.field(default=None, init=False)

    async def report(self, run: HostsRun) -> BurninReport:
        """The report of a run."""
        own = await self._own(run)
        return await asyncio.to_thread(lambda: over_hosts.build(_whole(run), self._parts(run, own)))

    async def head(self, run: HostsRun, told: object = None) -> BurninHead:
        """The head of its report. ``told`` changes whenever a host has told more; None: read everything again.

        Of a run in progress it may be older: those who look again and again are to take no more than a tenth of a core.
        """
        key, known, begun_s = (run.run, told, msgspec.json.encode(run)), self._known, time.monotonic()
        if known is not None and known.document.run == run.run:
            recent = run.ended_s is None and known.is_recent(begun_s)
            if recent or (told is not None and known.key == key):
                return known.document
        head = report.head(await self.report(run))
        self._known = _Known(key, head, begun_s, time.monotonic())
        return head

    async def series(self, run: HostsRun, points: int) -> BurninSeries:
        """How a run went so far; of one in progress it may be older, as a head may be."""
        key, known, begun_s = (run.run, points), self._drawn, time.monotonic()
        if known is not None and known.key == key and run.ended_s is None and known.is_recent(begun_s):
            return known.document
        own = await self._own(run)
        drawn = await asyncio.to_thread(lambda: over_hosts.series(_whole(run), self._parts(run, own), points))
        self._drawn = _Known(key, drawn, begun_s, time.monotonic()) if run.ended_s is None else None
        return drawn

    async def _own(self, run: HostsRun) -> list[Record]:
        """What the head's own machine has recorded, where it is in the run and has begun."""
        if not any(not part.host for part in run.parts):
            return []
        try:
            return await self._local.records(run.run)
        except NotFoundError:
            return []

    def _parts(self, run: HostsRun, own: Sequence[Record]) -> list[HostPart]:
        """Blocks."""
        told = [self._files.records(run.run, part.host) if part.host else own for part in run.parts]
        return [as_part(run, part, records) for part, records in zip(run.parts, told, strict=True)]


def _whole(run: HostsRun) -> OverHosts:
    state = run.state or ("loading" if any(part.loads for part in run.parts) else "preparing")
    return OverHosts(run.plan, run.began_s, run.version, state, run.ended_s, run.stopped or run.state)


def as_part(run: HostsRun, part: Part, told: Sequence[Record]) -> HostPart:
    """One host of a run, with the words of the head for a host that says nothing."""
    records = of_host(told, part.host, part.ahead_s)
    state = report.state_of(records) if records else "waiting"
    if part.state in ("not_begun", "lost"):
        state = part.state
        signal = NOT_BEGUN if part.state == "not_begun" else HOST_LOST
        records = records or _as_known(run, part)
        records += [Event(part.at_s, "", signal, part.reason, "inconclusive", part.action)] if records else []
        records += [Ended(part.at_s, "failed", part.reason)] if records else []
    elif not records:
        records = _as_known(run, part)
    ended = journal.ended(records) if records else None
    reason = part.reason or (ended.text if ended is not None and ended.reason == "failed" else "")
    return HostPart(part.host, state, reason, records)


def _as_known(run: HostsRun, part: Part) -> list[Record]:
    """The beginning of a run on a host that has told nothing, where its GPUs are known."""
    plan = msgspec.structs.replace(run.plan, gpus=[unit.uuid for unit in part.units])
    begun = Begun(run.began_s, plan, part.units, Host(hostname=part.host), "")
    return of_host([begun], part.host) if part.units else []


def listed(run: HostsRun) -> ListedRun:
    """A run in the list of all."""
    return ListedRun(
        run=run.run,
        state=run.state or "active",
        verdict=run.verdict,
        profile=run.plan.profile,
        asked_s=run.plan.duration_s,
        started_at=report.instant(run.began_s),
        ended_at=report.instant_if(run.ended_s),
        end=run.stopped,
        gpus=[
            ListedGpu(
                unit.uuid,
                unit.index,
                unit.name,
                run.verdicts.get(f"{part.host}/{unit.uuid}", ""),
                part.host or msgspec.UNSET,
            )
            for part in run.parts
            for unit in part.units
        ],
        hosts=[part.host for part in run.parts],
    )
