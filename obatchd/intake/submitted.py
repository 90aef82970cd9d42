"""Settings that a submission brings beside its prompts."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from obatchd.jobs.store import BatchRow
from obatchd.settings.job import FrozenSettings, JobSettings

_SETTINGS_FILE = "settings.json"


class SubmittedSettings(msgspec.Struct):
    """Settings and notes of a submission; kept in the job's directory until it is indexed."""

    settings: JobSettings = msgspec.field(default_factory=JobSettings)
    notes: list[str] = []
    retry_of: str | None = None
    defaults: FrozenSettings | None = None  # of the daemon, where they are not those of now
    batch: BatchRow | None = None  # its terms, where a program made it a batch
    all_lines: bool = False  # one bad line refuses the whole

    def write(self, directory: Path) -> None:
        """Put it into the job's directory, durably: before the job is accepted."""
        with open(directory / _SETTINGS_FILE, "wb") as file:
            file.write(msgspec.json.encode(self))
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, directory: Path) -> SubmittedSettings:
        try:
            return msgspec.json.decode((directory / _SETTINGS_FILE).read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
