"""A row of the index of jobs, as it is stored and as an object.

The settings that the daemon had when a job was accepted are the same for many jobs: they are stored once, in a table
of their own under their SHA-256, and rows refer to them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from obatchd.jobs.model import JobState
from obatchd.settings.frozen import FrozenSettings
from obatchd.settings.job import JobSettings

_settings_decoder = msgspec.json.Decoder(JobSettings)
defaults_of = lru_cache(64)(msgspec.json.Decoder(FrozenSettings).decode)


class JobRow(msgspec.Struct):
    """One accepted drop in the index.

    Attributes:
        settings: the job's own.
        summary: the final counts of a finished job as JSON.
        defaults: the settings of the daemon when the job was accepted.
    """

    key: int
    job: str
    name: bytes
    owner: int
    kind: str
    size: int  # bytes
    state: JobState
    segment: str
    accepted_s: float
    finished_s: float | None
    paused: bool
    cancelled: bool
    settings: JobSettings
    notes: list[str]
    digest: str | None
    retry_of: str | None
    summary: dict[str, Any] | None
    defaults: FrozenSettings

    @property
    def label(self) -> str:
        """The drop's name as text."""
        return self.name.decode("utf-8", "backslashreplace")

    @property
    def frozen(self) -> FrozenSettings:
        """Settings of requests that bring none: the job's own settings over the daemon's of its acceptance."""
        return self.defaults.under(self.settings)


COLUMNS = ", ".join(JobRow.__struct_fields__)
SELECT = (
    f"SELECT {COLUMNS.removesuffix('defaults')}"
    "(SELECT kept.settings FROM job_defaults kept WHERE kept.sha256 = defaults) AS defaults FROM"
)


def job_of(row: tuple[Any, ...]) -> JobRow:
    """The object of a row selected by :data:`SELECT`."""
    values = dict(zip(JobRow.__struct_fields__, row, strict=True))
    values["state"] = JobState(values["state"])
    values["paused"], values["cancelled"] = bool(values["paused"]), bool(values["cancelled"])
    values["settings"] = _settings_decoder.decode(values["settings"])
    values["notes"] = msgspec.json.decode(values["notes"])
    values["summary"] = msgspec.json.decode(values["summary"]) if values["summary"] else None
    values["defaults"] = defaults_of(values["defaults"])
    return JobRow(**values)


def kept(defaults: FrozenSettings) -> tuple[bytes, bytes]:
    """Their SHA-256 and text: the row of ``job_defaults`` that all jobs with the same share."""
    settings = msgspec.json.encode(defaults)
    return hashlib.sha256(settings).digest(), settings


def keep(cursor: sqlite3.Cursor, defaults: FrozenSettings) -> bytes:
    """Make sure of the row, and return its key."""
    row = kept(defaults)
    cursor.execute("INSERT OR IGNORE INTO job_defaults VALUES (?, ?)", row)
    return row[0]


def columns(cursor: sqlite3.Cursor, values: Mapping[str, Any]) -> list[Any]:
    """Values of columns, given as objects, as they are stored."""
    return [keep(cursor, value) if name == "defaults" else _column(name, value) for name, value in values.items()]


def _column(name: str, value: Any) -> Any:
    if name in ("settings", "notes", "summary") and value is not None:
        return msgspec.json.encode(value)
    return value
