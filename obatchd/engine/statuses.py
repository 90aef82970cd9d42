"""Keeps ``status.json`` of every job current, and looks at disk, backlog, deadlines and energy every second."""

from __future__ import annotations

import asyncio

from attrs import define

from obatchd.delivery.completion import Completion
from obatchd.delivery.documents import job_document
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.live.forecast import forecast
from obatchd.live.work import Part

_PERIOD_S = 1.0
_FORECAST_JOBS = 2000  # of more nobody waits for the turn, and counting costs a moment of the main loop


@define(eq=False)
class StatusWriter(Part):
    """Looks once a second."""

    _completion: Completion
    _dispatcher: Dispatcher

    async def start(self) -> None:
        await self._work.conditions.look_at_disk(self._work.layout, self._work.settings.value.disk)
        self._tasks.start(self._run(), "job-status")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self._work.conditions.look_at_disk(self._work.layout, self._work.settings.value.disk)
            self._completion.watch_backlog()
            self._completion.energy.look()
            self._write()

    def _write(self) -> None:
        """Of every job that has changed; one that is done within the second never needs its first."""
        jobs, in_flight = self._work.jobs, self._dispatcher.in_flight()
        changed = []
        if len(jobs) <= _FORECAST_JOBS:
            forecast(jobs.values(), in_flight)
        for live in jobs.values():
            self._completion.cancellation.expire(live)
            stamp = (live.finished, live.requests, live.paused, live.publishing, in_flight.get(live.key, 0),
                     live.turn and live.turn.position, live.hindrance)  # fmt: skip
            if stamp != live.status_written and not live.publishing:
                live.status_written = stamp
                changed.append((live.outbox, job_document(live, in_flight.get(live.key, 0))))
        if changed:
            self._completion.publisher.write_statuses(changed)
