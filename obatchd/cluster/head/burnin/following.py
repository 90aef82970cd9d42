"""One run over hosts while it goes on: begins it on each, fetches what they record, and says when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from obatchd import log
from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Begun, Bucket, Ended, Gap, Record
from obatchd.burnin.run.manager import Burnin
from obatchd.cluster import plain
from obatchd.cluster.desks import ToldRecords
from obatchd.cluster.head.asking import ask, lied
from obatchd.cluster.head.burnin.files import HostsRun, Part, PartState, RunFiles
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.trust import lie
from obatchd.cluster.session import Session
from obatchd.errors import ClusterError, NotFoundError, ObatchError, ServerError

_log = log.get(__name__)
_ANSWER_S = 15.0  # longest wait for an answer of a host
BEGIN_S = 60.0  # a host that has been away for so long takes no part
LOST_S = 600.0  # nobody waits longer for a host that is away when all others are over
STOPPED_S = 20.0  # the same, once the run was stopped
_SKEW_S = 1.0  # a smaller change of the difference of clocks is not written down
_MOST_LINES = 1_000_000  # of one host: a month of eight GPUs has fewer
_MOST_ANSWERS = 200  # of one host in one look, so that nobody waits long for another one
_MOST_EPOCH_S = 2e11  # within the years that have four digits
_MOST_SPAN_S = 1e8
_BRING_BACK = "Bring the host back (obatchctl hosts says why it is away), then run the burn-in again."
_AGAIN = "Put that right on the host, and run the burn-in again; nothing was found against the GPU itself."


class Following:
    """Looks at all hosts of a run; ``run`` shows what is known. The caller saves it."""

    def __init__(self, run: HostsRun, files: RunFiles, hosts: Mapping[str, JoinedHost], local: Burnin) -> None:
        self.run = run
        self._files = files
        self._hosts = hosts
        self._local = local
        self._heard_s = {part.host: time.monotonic() for part in run.parts}
        self._lines: dict[str, int] = {}  # of the copy of each host
        self._elapsed_s: dict[str, float] = {}  # of load

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        """Of load, on the host that is furthest."""
        brief = self._local.brief()
        own = brief.elapsed_s if brief is not None and brief.run == self.run.run else 0.0
        return max([float(own), *self._elapsed_s.values()])

    @property
    def loads(self) -> list[str]:
        """Of the present phase."""
        return next((part.loads for part in self.run.parts if part.loads), [])

    @property
    def is_over(self) -> bool:
        """Whether no host is waited for."""
        return all(part.is_final for part in self.run.parts)

    @property
    def is_told(self) -> bool:
        """Whether no host has anything more to tell, not even one that was lost."""
        return all(part.state in ("over", "not_begun") for part in self.run.parts)

    def told(self) -> object:
        """Another value whenever a host has told more; None while the head's own machine tells more all along."""
        own = next((part for part in self.run.parts if not part.host), None)
        return None if own is not None and not own.is_final else tuple(sorted(self._lines.items()))

    # --- looking ----------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Do with each host what is due. A host that was lost is looked for, too: it may have gone on meanwhile."""
        due = [part for part in self.run.parts if part.state in ("waiting", "begun", "lost")]
        await asyncio.gather(*(self._look_at(part) if part.host else self._look_here(part) for part in due))

    async def _look_here(self, part: Part) -> None:
        if part.state == "waiting":
            try:
                await self._local.start_part(part.asked, self.run.plan)
            except ObatchError as error:
                self._is(part, "not_begun", error.message, _AGAIN)
                return
            self._is(part, "begun")
        active = self._local.active
        if active is not None and active.plan.run == self.run.run:
            part.loads = active.present_loads
            if self.run.stopped:
                active.stop(self.run.stopped)
            return
        try:
            over = journal.ended(await self._local.records(self.run.run)) is not None
        except ObatchError as error:
            self._is(part, "lost", error.message, _AGAIN)
            return
        if over:
            self._is(part, "over")

    async def _look_at(self, part: Part) -> None:
        host = self._hosts.get(part.host)
        if host is None or host.session is None:
            self._is_away(part, host.reason if host is not None else "it was forgotten")
            return
        try:
            if part.state == "waiting" and self.run.stopped:
                self._is(part, "not_begun", f"{part.host} had not begun when the run was stopped")
                return
            if part.state == "waiting":
                await _call(host.session, "start", asked=part.asked, whole=self.run.plan)
                self._is(part, "begun")
            if self.run.stopped:
                await _call(host.session, "stop", run=self.run.run, why=self.run.stopped)
            over = await self._fetch(part, host)
        except ServerError as error:
            self._is_away(part, error.message)
        except NotFoundError as error:
            if error.code == "no_method" or part.state == "waiting":
                self._is(part, "not_begun", f"{part.host}: {error.message}", _AGAIN)
            else:
                self._is(part, "lost", f"{part.host} knows nothing of the run any more: {error.message}", _AGAIN)
        except ObatchError as error:
            self._refused(part, error)
        except OSError as error:
            del self._lines[part.host]  # what of it was written is looked at again
            _log.error("burnin_not_written", run=self.run.run, reason=log.reason(error))
        else:
            self._heard_s[part.host] = time.monotonic()
            self._is(part, "over" if over else "begun")

    def _refused(self, part: Part, error: ObatchError) -> None:
        if part.state == "waiting":
            self._is(part, "not_begun", f"{part.host}: {error.message}", _AGAIN)
        else:
            self._is_away(part, error.message)

    async def _fetch(self, part: Part, sender: JoinedHost) -> bool:
        """Copy the records that are new; whether the last one is there."""
        run, host, over = self.run.run, part.host, False
        if host not in self._lines:
            await self._take_stock(host)
        for _ in range(_MOST_ANSWERS):
            told = await ask(sender, "burnin.records", ToldRecords, _ANSWER_S, run=run, first=self._lines[host])
            if told.life != part.life:  # its process began anew, and the last ones may never have reached its disk
                part.life = told.life
                if self._lines[host]:
                    await asyncio.to_thread(self._files.forget, run, host)
                    self._lines[host], self._elapsed_s[host] = 0, 0.0
                    continue
            if abs(told.clock_s - time.time() - part.ahead_s) > _SKEW_S:
                part.ahead_s = round(told.clock_s - time.time(), 1)
            part.loads = told.loads
            try:
                records = _checked(told, run, is_first=not self._lines[host])
                await asyncio.to_thread(self._files.append, run, host, told.lines)
            except ClusterError as untrue:
                raise lied(sender, untrue) from None
            self._lines[host] += len(told.lines)
            over = self._count(host, records) or over
            if not told.lines or self._lines[host] >= min(told.total, _MOST_LINES):
                break
        return over

    async def _take_stock(self, host: str) -> None:
        """Of what an earlier head has copied."""
        self._lines[host] = await asyncio.to_thread(self._files.count, self.run.run, host)
        self._elapsed_s[host] = 0.0
        self._count(host, await asyncio.to_thread(self._files.records, self.run.run, host))

    def _count(self, host: str, records: list[Record]) -> bool:
        """The load in new records; whether the last one of a run is among them."""
        self._elapsed_s[host] += sum(r.span_s for r in records if isinstance(r, Bucket) and not r.between)
        return any(isinstance(record, Ended) for record in records)

    # --- what is told -----------------------------------------------------------------------------------------------

    def _is_away(self, part: Part, why: str) -> None:
        quiet_s = self._quiet_s(part)
        words = why if why.startswith(f"host {part.host} is away") else f"{part.host} is away: {why}"
        if part.state == "waiting" and (quiet_s > BEGIN_S or self.run.stopped):
            self._is(part, "not_begun", words, _BRING_BACK)
        elif part.state == "begun":
            waits = self.run.stopped or not any(
                self._is_at_work(other) for other in self.run.parts if other is not part
            )
            if waits and quiet_s > (STOPPED_S if self.run.stopped else LOST_S):
                text = f"{words}. It has told nothing for {quiet_s / 60:.0f} min; its part may have gone on there"
                self._is(part, "lost", text, _BRING_BACK)
            else:
                part.reason, part.loads = f"{words}; its part of the run goes on there", []

    def _is_at_work(self, part: Part) -> bool:
        return not part.is_final and (not part.host or self._quiet_s(part) <= LOST_S)

    def _quiet_s(self, part: Part) -> float:
        return time.monotonic() - self._heard_s[part.host]

    def _is(self, part: Part, state: PartState, reason: str = "", action: str = "") -> None:
        part.reason, part.action = reason, action
        if part.state == state:
            return
        part.state, part.at_s = state, time.time()
        if state != "begun":
            part.loads = []
        if reason:
            _log.warning("hosts_burnin_part", run=self.run.run, host=part.host or "here", state=state, reason=reason)
        else:
            _log.info("hosts_burnin_part", run=self.run.run, host=part.host or "here", state=state)


def _checked(told: ToldRecords, run: str, *, is_first: bool) -> list[Record]:
    """The records in an answer. Raises ClusterError (``untrue``) where no host can have recorded that."""
    records = journal.decoded(told.lines)
    begun = records[0] if records else None
    if any(b"\n" in line for line in told.lines):
        raise lie("a record of several lines")
    if is_first and told.lines and not (isinstance(begun, Begun) and begun.plan.run == run):
        raise lie(f"its records of burn-in {run} do not begin as a run does")
    plain.check(records)
    for record in records:
        times = (record.from_s, record.until_s) if isinstance(record, Gap) else (record.at_s,)
        span_s = record.span_s if isinstance(record, Bucket) else 0.0
        if not (all(0 <= at_s <= _MOST_EPOCH_S for at_s in times) and 0 <= span_s <= _MOST_SPAN_S):
            raise lie(f"a record of burn-in {run} has a time that cannot be")
    return records


async def _call(session: Session[Any], method: str, **arguments: Any) -> None:
    await session.call(f"burnin.{method}", type(None), _ANSWER_S, **arguments)
