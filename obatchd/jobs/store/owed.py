"""Messages to submitters that are owed: facts of ``state.db`` from the end of a job until they are told, or given up.

They are entered with the change that ends the job, in one transaction: no crash loses one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from obatchd.documents.alarms import Alarm, message
from obatchd.jobs.store.job_row import JobRow

PREFIX = "notify/"
# Those of jobs that are erased.
FORGET_OWED = f"""
DELETE FROM facts WHERE substr(key, 1, {len(PREFIX)}) = '{PREFIX}'
    AND substr(key, {len(PREFIX) + 1}, instr(substr(key, {len(PREFIX) + 1}), '/') - 1) NOT IN (SELECT job FROM jobs)
"""


class Owed(msgspec.Struct):
    """One message to one person or channel."""

    key: str  # notify/<job>/<number>
    job: str
    owner: int  # uid
    to: str  # mail:ADDRESS, or a URL, which is a secret
    message: dict[str, Any]  # see obatchd.documents.alarms.message
    tries: int = 0
    next_s: float = 0.0  # wall-clock time of the next try
    reason: str = ""  # why the last one failed; an earlier version kept none

    def encoded(self) -> str:
        return msgspec.json.encode(self).decode()


def owed_for(row: JobRow, alarm: Alarm) -> list[Owed]:
    """What is owed when a job is over."""
    targets = dict.fromkeys(row.settings.notify or ())
    told = message(alarm) if targets else {}
    return [Owed(f"{PREFIX}{row.job}/{n}", row.job, row.owner, to, told) for n, to in enumerate(targets)]


def owed_of(facts: dict[str, str]) -> list[Owed]:
    """Those that are kept under these keys."""
    return [msgspec.json.decode(value, type=Owed) for value in facts.values()]
