"""Accepted jobs, attempts and results in SQLite: one index that outlives jobs, and segments with their requests."""

from __future__ import annotations

import sqlite3

from obatchd.errors import StoreError
from obatchd.jobs.store.failures import FailureRow
from obatchd.jobs.store.job_row import JobRow
from obatchd.jobs.store.owed import Owed, owed_for
from obatchd.jobs.store.programs import BatchRow, FileRow, KeyRow, ProgramStore
from obatchd.jobs.store.request_index import unanswered_record
from obatchd.jobs.store.rows import LINE_MASK, REFUSED_LANE, AttemptRow, CostRow, IndexedChunk, LaneRow, ResultRow
from obatchd.jobs.store.segment import Segment
from obatchd.jobs.store.state import Facts, StateStore
from obatchd.jobs.store.store import IndexBatch, Store
from obatchd.jobs.store.usage import UsageRow

# Errors of a full, failing or read-only disk. All of it passes: the same is tried again.
DISK_ERRORS = (OSError, sqlite3.OperationalError, StoreError)

__all__ = [
    "DISK_ERRORS",
    "LINE_MASK",
    "REFUSED_LANE",
    "AttemptRow",
    "BatchRow",
    "CostRow",
    "Facts",
    "FailureRow",
    "FileRow",
    "IndexBatch",
    "IndexedChunk",
    "JobRow",
    "KeyRow",
    "LaneRow",
    "Owed",
    "ProgramStore",
    "ResultRow",
    "Segment",
    "StateStore",
    "Store",
    "UsageRow",
    "owed_for",
    "unanswered_record",
]
