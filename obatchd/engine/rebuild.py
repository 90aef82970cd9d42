"""Rebuilding a lost index of jobs from the other files of the spool.

Segments know the key and id of each job, so results found there are still its results; a valid ``summary.json`` says
that a job is done. An input that neither knows is adopted afterwards, like any without an intent. Lost for good is only
what no file repeats: whether a job was paused or being cancelled, and measured facts, which are measured again.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

import msgspec

from obatchd import log
from obatchd.delivery.documents import counts_of
from obatchd.documents.jobs import EarlierStatus
from obatchd.errors import DropRefused
from obatchd.intake.indexing import DropReader
from obatchd.intake.submitted import SubmittedSettings
from obatchd.jobs.model import JobState
from obatchd.jobs.store import BatchRow, JobRow, Store
from obatchd.settings.job import FrozenSettings, JobSettings
from obatchd.settings.settings import Settings
from obatchd.spool import claim
from obatchd.spool.batch_lines import LINE_START
from obatchd.spool.layout import Layout
from obatchd.spool.outbox import JobOutbox

_log = log.get(__name__)
_DEFAULTS_LOST = (
    "The index of jobs was lost. Where this job names no settings of its own, those that the daemon had when the index "
    "was rebuilt are used."
)


def rebuild(store: Store, layout: Layout, settings: Settings) -> None:
    """Enter every job that segments or the outbox know into the index, all or none.

    Raises OSError or sqlite3.OperationalError where the disk refuses.
    """
    known = store.jobs_in_segments()
    outboxes = {path.name.rpartition(".")[2]: path for path in layout.outbox_dirs()}
    rows: list[tuple[JobRow, bool]] = []
    for job in sorted({*known, *outboxes}):
        row = _row(job, known.get(job, (0, job, None)), store.state.defaults_now(), layout, outboxes.get(job))
        if row is None or (row.state is JobState.RUNNING and job not in known):
            continue
        if row.state is JobState.RUNNING:
            _add_settings(row, layout, settings)
        rows.append((row, not layout.job_dir(job).exists()))
    store.state.programs.add_batches(_batches(layout))
    store.state.restore(rows, max((key for key, *_ in known.values()), default=0))
    if rows:
        done = sum(row.state is JobState.DONE for row, _ in rows)
        _log.warning("index_rebuilt", jobs=len(rows), done=done)


def _batches(layout: Layout) -> list[BatchRow]:
    """The terms of batches whose input is still kept."""
    found = []
    for directory in layout.jobs.iterdir():
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if (batch := SubmittedSettings.read(directory).batch) is not None:
                found.append(batch)
    return found


def _is_batch(box: JobOutbox) -> bool:
    """Whether results stand in the lines of OpenAI's API."""
    for name in ("results.jsonl", "errors.jsonl"):
        with contextlib.suppress(OSError), open(box.directory / name, "rb") as file:
            if start := file.read(len(LINE_START)):
                return start == LINE_START
    return False


def _row(
    job: str, known: tuple[int, str, FrozenSettings | None], now: FrozenSettings, layout: Layout, outbox: Path | None
) -> JobRow | None:
    """The row of a job; None where nothing says what it was."""
    box = JobOutbox(outbox) if outbox is not None else None
    summary = box.valid_summary() if box is not None else None
    told = summary or (box.last_status() if box is not None else None) or EarlierStatus()
    intent = claim.identify(layout.job_dir(job))
    if intent is None and summary is None:
        return None
    notes = told.notes
    key, segment, defaults = known
    if defaults is None and summary is None and _DEFAULTS_LOST not in notes:
        notes.append(_DEFAULTS_LOST)
    return JobRow(
        key=key,
        job=job,
        name=intent.name if intent is not None else (told.name or job).encode(),
        owner=told.owner if told.owner is not None else intent.owner if intent is not None else 0,
        kind=intent.kind if intent is not None else "file",
        size=intent.size if intent is not None else told.drop.size_bytes,
        state=JobState.DONE if summary is not None else JobState.RUNNING,
        segment=segment,
        accepted_s=_seconds(told.accepted_at) or (intent.at_s if intent is not None else 0.0),
        finished_s=_seconds(summary.finished_at) if summary is not None else None,
        paused=False,
        cancelled=False,
        settings=JobSettings(
            repeat=summary.settings.get("repeat") if summary is not None else None,
            openai_batch=box is not None and summary is not None and _is_batch(box),
        ),
        notes=notes,
        digest=told.drop.sha256,
        retry_of=told.retry_of,
        summary=msgspec.to_builtins(counts_of(summary)) if summary is not None else None,
        accepted_moment=None,
        defaults=defaults or now,
        job_label=told.label,
    )


def _seconds(instant: str | None) -> float | None:
    return datetime.fromisoformat(instant).timestamp() if instant else None


def _add_settings(row: JobRow, layout: Layout, settings: Settings) -> None:
    try:
        columns = DropReader(row, layout, settings, lambda size_bytes: None).own_columns()
    except DropRefused as refusal:
        columns = {"notes": [*row.notes, f"the job's own settings were lost: {refusal.message}"]}
    for name, value in columns.items():
        setattr(row, name, value)
