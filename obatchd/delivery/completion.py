"""From an answer to ``summary.json``: results are committed, counted and written out, then the job is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from typing import Any

from obatchd.delivery.committer import Committer
from obatchd.delivery.documents import last_status, late_note, summary_details
from obatchd.delivery.publisher import Publication, Publisher
from obatchd.delivery.responses import ResponseWriter
from obatchd.dispatch.dispatcher import Dispatcher, Finished
from obatchd.jobs.model import Outcome
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import JobRow, Store
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.live.troubles import Troubles
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout
from obatchd.spool.outbox import Totals
from obatchd.tasks import TaskOwner

# Results not yet committed above which nothing more is offered: bounds memory while a disk is slow or full.
_BACKLOG_LIMIT = 20_000
# Answered jobs not yet published above which no more drops are taken: they wait as well in the inbox, and cost nothing.
_UNPUBLISHED_LIMIT = 5_000


class Completion:
    """Owns what makes results durable and what publishes them. Called from the main loop.

    Args:
        jobs: live jobs by key.
        on_published: a job's ``summary.json`` is durable.
        on_caught_up: it may be that :attr:`behind` does not hold any more.
    """

    def __init__(
        self,
        jobs: Mapping[int, LiveJob],
        layout: Layout,
        store: Store,
        settings: Settings,
        context: ForkServerContext,
        *,
        queue: JobQueue,
        dispatcher: Dispatcher,
        models: Models,
        troubles: Troubles,
        on_published: Callable[[JobRow, dict[str, Any]], None],
        on_caught_up: Callable[[], None],
    ) -> None:
        self._on_published = on_published
        self._on_caught_up = on_caught_up
        self._jobs = jobs
        self._layout = layout
        self._queue = queue
        self._dispatcher = dispatcher
        self._models = models
        self.committer = Committer(
            store,
            settings.dispatch.commit_interval_ms / 1000,
            segment_of=lambda job: jobs[job].row.segment if job in jobs else None,
            unrecorded_starts=dispatcher.unrecorded_starts,
            on_committed=self._committed,
            on_trouble=lambda reason: troubles.say("store", reason),
        )
        self.publisher = Publisher(
            store,
            ResponseWriter(context),
            on_done=self._published,
            on_trouble=lambda reason: troubles.say("outbox", reason),
        )

    async def start(self, owner: TaskOwner) -> None:
        self.committer.start(owner)
        await self.publisher.start(owner)

    def finished(self, finished: Finished) -> None:
        """A request has its outcome."""
        live = self._jobs.get(finished.job)
        if live is None or live.ending:
            return  # a late answer: the request has, or is about to have, the outcome of the job's end
        self.committer.finish(finished)

    def _committed(self, batch: Sequence[Finished]) -> None:
        responses: dict[int, list[tuple[int, bytes]]] = {}
        touched: dict[int, LiveJob] = {}
        for finished in batch:
            live = self._jobs.get(finished.job)
            if live is None:
                continue
            outcome = Outcome.SUCCEEDED if finished.succeeded else Outcome.FAILED
            live.count(outcome, tokens=finished.response_tokens)
            touched[live.key] = live
            if finished.succeeded and live.response_files():
                responses.setdefault(live.key, []).append((finished.line, finished.record))
        if responses:
            given = [(self._jobs[key], records) for key, records in responses.items()]
            self.publisher.responses.write([(live.outbox, records, live.text_suffix) for live, records in given])
        for live in touched.values():
            self.check(live)
        self.watch_backlog()

    @property
    def behind(self) -> bool:
        """Whether so many answered jobs wait for their publication that no more should be begun."""
        return self.publisher.backlog > _UNPUBLISHED_LIMIT

    def _published(self, row: JobRow, summary: dict[str, Any]) -> None:
        self._on_published(row, summary)
        if self.publisher.backlog == _UNPUBLISHED_LIMIT // 2:
            self._on_caught_up()

    def watch_backlog(self) -> None:
        """Offer nothing more while results gather faster than the disk takes them."""
        backlog = max(self.committer.backlog, self.publisher.responses.backlog)
        if backlog > _BACKLOG_LIMIT:
            self._dispatcher.hold("backlog")
        elif backlog < _BACKLOG_LIMIT // 2:
            self._dispatcher.unhold("backlog")

    def check(self, live: LiveJob) -> None:
        """Publish a job if every request of it has its result."""
        if not live.complete or live.publishing:
            return
        live.publishing = True
        self._queue.remove_job(live.key)
        self.publisher.publish(
            Publication(
                live.row,
                live.outbox,
                self._layout.job_dir(live.row.job),
                live.response_files(),
                live.text_suffix,
                live.resumed,
                lambda totals: self._details(live, totals),
                lambda summary: last_status(live, summary),
            )
        )

    def _details(self, live: LiveJob, totals: Totals) -> dict[str, Any]:
        """Called in the publisher's thread: looks at the input's size."""
        known = live.row.notes
        live.row.notes = [*known, *(note for note in late_note(live.row, self._layout) if note not in known)]
        return summary_details(live, totals, self._models.facts, self._models.server_version)
