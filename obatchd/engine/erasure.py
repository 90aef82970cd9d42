"""Deleting jobs that are over so that nothing of them is left in the spool."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from obatchd import log
from obatchd.jobs.store import JobRow, Store
from obatchd.spool.layout import Layout
from obatchd.spool.prune import delete_tree, discard

_log = log.get(__name__)


def erase(layout: Layout, store: Store, jobs: Sequence[JobRow]) -> None:
    """Results, input, and all that the store knows; the row in the index goes last, so that it can be asked again.

    Raises OSError or sqlite3.OperationalError where the disk refuses.
    """
    for job in jobs:
        discard(layout, layout.outbox_dir(job.job, job.name, job.owner))
        discard(layout, layout.failed_dir(job.job, job.name, job.owner))
        if layout.job_dir(job.job).exists():
            delete_tree(layout.job_dir(job.job))
        # Which of its owner's fetched texts are the job's cannot be told; the others are fetched again.
        shutil.rmtree(layout.sources / str(job.owner), ignore_errors=True)
    store.erase(jobs)
    for job in jobs:
        _log.info("job_erased", job=job.job, owner=job.owner)
