"""Deleting jobs that are over so that nothing of them is left in the spool."""

from __future__ import annotations

import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Sequence

from obatchd import log
from obatchd.errors import StoreError
from obatchd.jobs.store import JobRow, Store
from obatchd.spool.layout import Layout
from obatchd.spool.prune import delete_tree, discard

_log = log.get(__name__)
_FAULTS = (OSError, sqlite3.Error, StoreError)  # of one job's files, or of one segment
Stuck = list[tuple[JobRow, Exception]]


def erase(layout: Layout, store: Store, jobs: Sequence[JobRow]) -> Stuck:
    """Results, input, and all that the store knows; the row in the index goes last, so that it can be asked again.

    Returns the jobs that could not be erased whole, each with the reason: they keep nobody else's.
    """
    stuck, gone = Stuck(), list[JobRow]()
    for job in jobs:
        try:
            _delete_files(layout, job)
            gone.append(job)
        except OSError as error:
            stuck.append((job, error))
    erased, unerased = _forget(store, gone)
    for job in erased:
        _log.info("job_erased", job=job.job, owner=job.owner)
    return [*stuck, *unerased]


def _delete_files(layout: Layout, job: JobRow) -> None:
    discard(layout, layout.outbox_dir(job.job, job.name, job.owner))
    discard(layout, layout.failed_dir(job.job, job.name, job.owner))
    if layout.job_dir(job.job).exists():
        delete_tree(layout.job_dir(job.job))
    # Which of its owner's fetched texts are the job's cannot be told; the others are fetched again.
    shutil.rmtree(layout.sources / str(job.owner), ignore_errors=True)


def _forget(store: Store, jobs: Sequence[JobRow]) -> tuple[list[JobRow], Stuck]:
    """Together, which rewrites each file once; where that fails, the jobs of each segment by themselves."""
    if not jobs:
        return [], []
    try:
        store.erase(jobs)
        return list(jobs), []
    except _FAULTS as error:
        by_segment: dict[str, list[JobRow]] = defaultdict(list)
        for job in jobs:
            by_segment[job.segment].append(job)
        if len(by_segment) == 1:
            return [], [(job, error) for job in jobs]
    parts = [_forget(store, group) for group in by_segment.values()]
    return [job for erased, _ in parts for job in erased], [pair for _, stuck in parts for pair in stuck]
