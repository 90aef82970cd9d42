"""Drops that somebody wrote to after they had been taken: half an upload must not pass for the whole."""

from __future__ import annotations

import contextlib

from obatchd import log
from obatchd.documents.alarms import DropChanged
from obatchd.jobs.store import JobRow
from obatchd.spool.layout import Layout, input_bytes
from obatchd.words import counted

_log = log.get(__name__)
_ACTION = "drop all of it again; move files into the inbox when they are complete (mv), or use obatchctl submit"


def late_note(row: JobRow, layout: Layout) -> list[str]:
    """A note on the bytes by which a drop, as it lies in the spool, differs from the one taken; none: it does not."""
    late_bytes = _late_bytes(row, layout)
    if late_bytes > 0:
        return [f"{counted(late_bytes, 'byte')} came after the drop was taken and did not run: {_ACTION}"]
    if late_bytes:
        return [f"the drop lost {counted(-late_bytes, 'byte')} after it was taken, which may not have run: {_ACTION}"]
    return []


def _late_bytes(row: JobRow, layout: Layout) -> int:
    with contextlib.suppress(OSError):
        if row.kind == "folder" and not row.size:
            return 0  # nobody measured it
        return input_bytes(layout.job_dir(row.job) / "input") - row.size
    return 0  # it is not kept any more


def note_change(row: JobRow, layout: Layout) -> DropChanged | None:
    """Put the note into the row, in place of an earlier one; the alarm where there was none."""
    fresh = late_note(row, layout)
    if not fresh or fresh[0] in row.notes:
        return None
    others = [note for note in row.notes if not note.endswith(_ACTION)]
    alarm = DropChanged(row.job, row.owner, _late_bytes(row, layout), _ACTION) if others == row.notes else None
    row.notes = [*others, *fresh]
    if alarm is not None:
        _log.warning("drop_changed_late", job=row.job, owner=row.owner, more_bytes=alarm.more_bytes)
    return alarm
