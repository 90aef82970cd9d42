"""The engine: puts the path of a drop together, from its acceptance to its ``summary.json``."""

from __future__ import annotations

from obatchd.delivery.committer import Committer
from obatchd.delivery.completion import Completion
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.holds import STOPPING
from obatchd.documents.jobs import Counts
from obatchd.engine.admission import Admission
from obatchd.engine.resumption import Resumption
from obatchd.engine.statuses import StatusWriter
from obatchd.intake.feeder import Feeder
from obatchd.intake.intake import Intake
from obatchd.intake.preparation import Preparation
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import JobRow
from obatchd.live.models import Models
from obatchd.live.work import Work


class Engine:
    """Owns the path of a drop. All methods are called from the main loop.

    Implements :class:`obatchd.delivery.publisher.DeliveryEvents`.
    """

    def __init__(self, work: Work, models: Models) -> None:
        """Each part is made after those that it uses: from the end of the path to its beginning."""
        self.work, self.settings = work, work.settings
        self.layout, self.store, self.jobs, self.conditions = work.layout, work.store, work.jobs, work.conditions
        self.committer = Committer(work)
        self.preparation = Preparation(work, self.committer)
        self._feeder = Feeder(work, self.preparation, self.committer)
        self.queue = JobQueue(self._feeder)
        self.completion = Completion(work, self.queue, self.committer, models, self)
        self.dispatcher = Dispatcher(self.queue, work.settings, self.completion, models, work.holds, work.owner)
        self.admission = Admission(work, self.queue, self.completion, self.committer, models)
        self.intake = Intake(work, self.admission)
        self._statuses = StatusWriter(work, self.completion, self.dispatcher)
        self.resumption = Resumption(work, self.admission, self.completion, self._feeder, self.intake, self.dispatcher)

    # Life.

    async def start(self) -> None:
        """Take up jobs of an earlier run, then watch the inbox; on a disk that refuses, as soon as it does not."""
        await self.completion.start(self.dispatcher)
        await self._statuses.start()
        await self.resumption.start()

    async def stop(self, drain_s: float) -> None:
        """Give in-flight requests ``drain_s`` to end, make their results durable, stop."""
        await self.resumption.stop()
        await self.intake.stop()
        self.work.holds.hold(STOPPING)
        await self.dispatcher.until_idle(drain_s)
        await self.dispatcher.stop()
        await self._feeder.stop()
        await self.preparation.stop()
        await self.admission.stop()
        await self.completion.cancellation.stop()
        self.completion.energy.stop()
        await self.committer.stop()
        await self._statuses.stop()
        await self.completion.publisher.stop()

    def hurry(self) -> None:
        """Do not wait for in-flight requests any longer; they stay pending in the store."""
        self.dispatcher.give_up_waiting()

    def settings_changed(self) -> None:
        """Tell the processes that have settings of ours, and look at the inbox with others."""
        self.dispatcher.settings_changed()
        self.preparation.settings_changed()
        self.intake.settings_changed()

    def published(self, row: JobRow, counts: Counts) -> None:
        self.work.over(row, counts)
        self.dispatcher.forget_job(row.key)
        self._feeder.forget(row.key)
