"""Regular work: releasing files that finished jobs no longer need, and publishing again after a reboot."""

from __future__ import annotations

import asyncio
import contextlib
import time

from obatchd import log
from obatchd.delivery.late import note_change
from obatchd.documents.alarms import DropChanged
from obatchd.engine.engine import Engine
from obatchd.engine.erasure import erase
from obatchd.jobs.model import JobState
from obatchd.jobs.store import DISK_ERRORS, JobRow
from obatchd.jobs.store.integrity import delete_set_aside
from obatchd.live.work import Part
from obatchd.spool.outbox import JobOutbox
from obatchd.spool.prune import delete_tree, empty_trash, prune, prune_refused
from obatchd.times import boot_id

_log = log.get(__name__)
_PERIOD_S = 60.0
_PRUNE_S = 600.0
_TOGETHER = 500
_DAY_S = 86400.0
_YEAR_S = 365 * _DAY_S


def _is_torn(box: JobOutbox) -> bool:
    return box.directory.is_dir() and box.valid_summary() is None


class Housekeeping(Part):
    """Runs beside the engine and never in its way. A step that the disk refuses is tried again a minute later."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.work)
        self._engine = engine
        self._booted = False
        self._pruned_s = float("-inf")
        self._compared = 0  # the greatest key of those whose drops were compared in this turn
        self._not_erased: dict[str, str] = {}  # jobs that could not be, with the reason
        self._wake = asyncio.Event()

    def settings_changed(self) -> None:
        """Look with other bounds now."""
        self._pruned_s = float("-inf")
        self._wake.set()

    def start(self) -> None:
        self._tasks.start(self._run(), "housekeeping")

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                if not self._booted:
                    await self._after_boot()
                    await asyncio.to_thread(self._engine.store.remove_unused)
                    await asyncio.to_thread(empty_trash, self._engine.layout)
                    self._booted = True
                await self._keep_bounds()
            except DISK_ERRORS as error:
                _log.error("housekeeping_failed", reason=log.reason(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PERIOD_S):
                    await self._wake.wait()

    async def _after_boot(self) -> None:
        """After a reboot, a summary that was renamed but not flushed may be empty: publish such jobs again.

        A job without any directory in the outbox was taken away by its owner.
        """
        state, boot = self._engine.store.state, boot_id()
        if state.get("boot_id") == boot:
            return
        for row in await asyncio.to_thread(state.finished_before, float("inf"), -1):
            box = JobOutbox(self._engine.work.outbox_of(row))
            if await asyncio.to_thread(_is_torn, box):
                await self._again(row)
        await asyncio.to_thread(state.set, "boot_id", boot)

    async def _again(self, row: JobRow) -> None:
        engine = self._engine
        segment = await asyncio.to_thread(engine.store.of, row)
        _, indexed = await asyncio.to_thread(segment.job_progress, row.key)
        _log.warning("job_published_again", job=row.job, from_store=indexed, reason="its summary.json was incomplete")
        if indexed:
            engine.resumption.republish(row)
            return
        # Its segment was damaged too: only the input is left.
        row.state, row.finished_s, row.summary = JobState.RUNNING, None, None
        await asyncio.to_thread(engine.store.state.update, row.key, state=JobState.RUNNING, finished_s=None)
        await engine.intake.begin([row])

    async def _keep_bounds(self) -> None:
        engine, disk = self._engine, self._engine.settings.value.disk
        await self._compare(await asyncio.to_thread(self._page))
        while rows := await asyncio.to_thread(self._due):
            await self._compare(rows)
            await asyncio.to_thread(self._release, rows)
        in_use = {live.row.segment for live in engine.jobs.values()}
        await asyncio.to_thread(engine.store.trim, in_use)
        await asyncio.to_thread(delete_set_aside, engine.layout.work, time.time() - disk.keep_done_s)
        while await asyncio.to_thread(engine.store.state.forget_released, time.time() - _YEAR_S, _TOGETHER):
            continue
        if disk.retention_days:
            await asyncio.to_thread(self._erase_old, time.time() - disk.retention_days * _DAY_S)
        if disk.prune_outbox_s and time.monotonic() - self._pruned_s > _PRUNE_S:
            await asyncio.to_thread(prune, engine.layout, time.time() - disk.prune_outbox_s)
            self._pruned_s = time.monotonic()

    def _erase_old(self, before_s: float) -> None:
        engine, reached, failed = self._engine, 0, dict[str, str]()
        while rows := engine.store.state.ended_before(before_s, _TOGETHER, reached):
            failed |= {row.job: log.reason(error) for row, error in erase(engine.layout, engine.store, rows)}
            reached = rows[-1].key
        for job, reason in failed.items():
            if job not in self._not_erased:  # tried again every minute, and told once
                _log.error("job_not_erased", job=job, reason=reason, remedy="obatchd tries again")
        self._not_erased = failed
        prune_refused(engine.layout, before_s)

    def _page(self) -> list[JobRow]:
        """The next jobs whose drops are compared, in turns: as many as cost a moment once a minute."""
        rows = self._engine.store.state.finished_before(float("inf"), _TOGETHER, self._compared)
        self._compared = rows[-1].key if len(rows) == _TOGETHER else 0
        return rows

    async def _compare(self, rows: list[JobRow]) -> None:
        """See whether somebody goes on writing to the drops of jobs that are over."""
        for alarm in await asyncio.to_thread(self._changed, rows):
            self._engine.work.announcer.announce(alarm)

    def _changed(self, rows: list[JobRow]) -> list[DropChanged]:
        engine, alarms = self._engine, list[DropChanged]()
        for row in rows:
            before = row.notes
            alarm = note_change(row, engine.layout)
            if row.notes is not before:
                engine.store.state.update(row.key, notes=row.notes)
                JobOutbox(engine.work.outbox_of(row)).write_notes(row.notes)
            if alarm is not None:
                alarms.append(alarm)
        return alarms

    def _due(self) -> list[JobRow]:
        """Jobs done long enough ago, or too large together, whose input and store are given up."""
        disk, state = self._engine.settings.value.disk, self._engine.store.state
        rows = state.finished_before(time.time() - disk.keep_done_s, _TOGETHER)
        return rows or state.finished_beyond(disk.keep_done_bytes, _TOGETHER)

    def _release(self, rows: list[JobRow]) -> None:
        for row in rows:
            with contextlib.suppress(OSError):
                delete_tree(self._engine.layout.job_dir(row.job))
            self._engine.store.release(row)
            _log.info("job_released", job=row.job)
