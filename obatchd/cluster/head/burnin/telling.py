"""A run over hosts as its documents: from what each host has told, and what the head knows of those that did not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
from obatchd.documents.burnin import BurninReport, BurninSeries, Host, ListedGpu, ListedRun
from obatchd.errors import NotFoundError


@attrs.define(eq=False)
class Telling:
    """Makes the documents. The latest report is kept until a host has told more."""

    _files: RunFiles
    _local: Burnin
    _known: tuple[object, BurninReport] | None = attrs.field(default=None, init=False)

    async def report(self, run: HostsRun, told: object = None) -> BurninReport:
        """The report of a run. ``told`` changes whenever a host has told more; None: read everything again."""
        key = (run.run, told, msgspec.json.encode(run))
        if told is not None and self._known is not None and self._known[0] == key:
            return self._known[1]
        own = await self._own(run)
        document = await asyncio.to_thread(lambda: over_hosts.build(_whole(run), self._parts(run, own)))
        self._known = key, document
        return document

    async def series(self, run: HostsRun, points: int) -> BurninSeries:
        """How a run went so far."""
        own = await self._own(run)
        return await asyncio.to_thread(lambda: over_hosts.series(_whole(run), self._parts(run, own), points))

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
