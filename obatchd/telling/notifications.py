"""Tells submitters that their jobs are over, at least once, over restarts, with bounded tries.

What is owed stands in the store (:mod:`obatchd.jobs.store.owed`) until it is told or given up. One message of an owner
at a time, so that a webhook that hangs holds up its owner alone.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

import aiohttp
from attrs import define, field

from obatchd import crash_points, log
from obatchd.context.addresses import PinnedResolver
from obatchd.errors import NotToldError
from obatchd.jobs.store import DISK_ERRORS, JobRow, Owed, StateStore
from obatchd.jobs.store.owed import PREFIX, owed_of
from obatchd.live.work import Part
from obatchd.settings.tables.people import MAIL
from obatchd.spool.outbox import JobOutbox
from obatchd.tasks import set_within
from obatchd.telling.allowed import address_policy, logged, problem, shown
from obatchd.telling.ways import post, run_command
from obatchd.times import instant
from obatchd.words import counted

_log = log.get(__name__)
_AT_A_TIME = 8
# After each try that failed; then it is given up, seven tries and 17 hours after the end of the job.
_PAUSES_S = (30.0, 120.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0)


@define(eq=False)
class _Owner:
    """What is owed to one owner, the next try first."""

    waiting: list[tuple[float, str, Owed]] = field(factory=list)
    keys: set[str] = field(factory=set)  # of these; a job that is published again owes nothing more
    wake: asyncio.Event = field(factory=asyncio.Event)

    def add(self, owed: Owed) -> None:
        if owed.key not in self.keys:
            self.keys.add(owed.key)
            heapq.heappush(self.waiting, (owed.next_s, owed.key, owed))
            self.wake.set()

    def take(self) -> Owed:
        _, key, owed = heapq.heappop(self.waiting)
        self.keys.discard(key)
        return owed


@define(eq=False)
class Notifications(Part):
    """Sends them. Implements :class:`obatchd.live.work.EndListener`."""

    _owners: dict[int, _Owner] = field(factory=dict, init=False)
    _free: asyncio.Semaphore = field(factory=lambda: asyncio.Semaphore(_AT_A_TIME), init=False)

    def start(self) -> None:
        """Begin with what an earlier run owed."""
        self._work.listen(self)
        self._tasks.start(self._load(PREFIX), "notifications")

    def job_over(self, row: JobRow) -> None:
        self._tasks.start(self._load(f"{PREFIX}{row.job}/"), f"notifications-{row.job}")

    async def _load(self, prefix: str) -> None:
        def read() -> None:
            found.extend(owed_of(self._work.store.state.starting_with(prefix)))

        found: list[Owed] = []
        while not await self._done(read):
            await asyncio.sleep(_PAUSES_S[0])
        for owed in found:
            self._add(owed)

    def _add(self, owed: Owed) -> None:
        if (owner := self._owners.get(owed.owner)) is None:
            owner = self._owners[owed.owner] = _Owner()
            self._tasks.start(self._serve(owed.owner, owner), f"notify-{owed.owner}")
        owner.add(owed)

    async def _serve(self, uid: int, owner: _Owner) -> None:
        while owner.waiting:
            owner.wake.clear()
            delay_s = owner.waiting[0][0] - time.time()
            if delay_s > 0:  # a clock that was set back makes no pause longer than the longest
                await set_within(min(delay_s, _PAUSES_S[-1]), owner.wake)
                continue
            owed = owner.take()
            if await self._tell(owed):
                owner.add(owed)
        del self._owners[uid]

    async def _tell(self, owed: Owed) -> bool:
        """Try once; whether it is to be tried again."""
        state, way = self._work.store.state, logged(owed.to)
        known: list[str | None] = []
        if await self._done(lambda: known.append(state.get(owed.key))) and known == [None]:  # its job was erased
            return False
        async with self._free:
            reason = await self._send(owed)
        if reason and owed.tries < len(_PAUSES_S):
            owed.next_s = time.time() + _PAUSES_S[owed.tries]
            owed.tries += 1
            owed.reason = reason
            _log.warning("notification_failed", job=owed.job, way=way, tries=owed.tries, reason=_without(owed, reason))
            await self._done(state.change, owed.key, owed.encoded())  # unless its job is erased at this moment
            return True
        tries = owed.tries + 1
        if reason:
            _log.error("notification_given_up", job=owed.job, way=way, tries=tries, reason=_without(owed, reason))
            note = f"{_untold(owed)}, and obatchd gave up after {counted(tries, 'try', 'tries')}: {reason}"
            await self._done(self._note, owed.job, note)
        else:
            _log.info("notification_told", job=owed.job, way=way, tries=tries)
            crash_points.reach("notify.after_told")
        while not await self._done(state.unset, owed.key):
            await asyncio.sleep(_PAUSES_S[0])
        return False

    async def _done(self, step: Callable[..., None], *given: str) -> bool:
        """Do a step in a thread; whether the disk let it be done."""
        try:
            await asyncio.to_thread(step, *given)
        except DISK_ERRORS as error:
            _log.error("notification_store_failed", reason=log.reason(error))
            return False
        return True

    async def _send(self, owed: Owed) -> str:
        """Why it could not be sent; nothing where it was."""
        rules = self._work.settings.value.notifications
        if words := problem(owed.to, rules):  # a reload may have changed them since
            return words
        try:
            if owed.to.startswith(MAIL):
                await run_command([*rules.mail_command, owed.to.removeprefix(MAIL)], owed.message, rules.timeout_s)
            else:
                resolver = PinnedResolver(address_policy(rules), aiohttp.ThreadedResolver())
                await post(owed.to, owed.message, rules.timeout_s, resolver)
        except NotToldError as error:
            return error.message
        return ""

    def _note(self, job: str, note: str) -> None:
        state = self._work.store.state
        for row in state.find([job]):
            state.update(row.key, notes=[*row.notes, note])
            JobOutbox(self._work.outbox_of(row)).write_notes([*row.notes, note])


def untold(state: StateStore, job: str) -> list[str]:
    """Notes on the messages about a job that did not arrive yet."""
    return [
        f"{_untold(owed)}, after {counted(owed.tries, 'try', 'tries')}; the next one is at "
        f"{instant(owed.next_s)}{f' ({owed.reason})' if owed.reason else ''}"
        for owed in owed_of(state.starting_with(f"{PREFIX}{job}/"))
        if owed.tries
    ]


def _untold(owed: Owed) -> str:
    return f"nobody could be told through {shown(owed.to)} that the job is over"


def _without(owed: Owed, reason: str) -> str:
    """A reason for the log, without the address."""
    return reason.replace(owed.to.removeprefix(MAIL), "…")
