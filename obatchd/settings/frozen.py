"""The settings of the daemon that a job takes where it names none, as they were when the job was accepted.

They are those marked *next job* (:mod:`obatchd.settings.base`): neither a reload nor a restart with another
configuration changes a job in work.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from obatchd.settings.base import Reload
from obatchd.settings.job import JobSettings
from obatchd.settings.reading import leaves, value_of
from obatchd.settings.settings import Settings

_FROZEN = tuple(leaf for leaf in leaves() if leaf.reload is Reload.NEXT_JOB)


class FrozenSettings(msgspec.Struct, frozen=True):
    """Kept with the job. A field that comes later needs a default, for jobs that an earlier version accepted."""

    model: str  # empty: none
    system_message: str
    context_length: int  # tokens, not rounded
    max_response_tokens: int
    priority: str
    deadline: float | str  # seconds after acceptance (0: none), or an ISO 8601 time in UTC
    options: dict[str, Any]
    format: str | dict[str, Any]  # "" (text), "json" or a JSON Schema
    in_source: list[str]
    think: bool | str
    response_files: str
    response_text: str
    response_files_limit: int

    @classmethod
    def of(cls, settings: Settings) -> FrozenSettings:
        """Those of the daemon now."""
        return cls(**{leaf.name: value_of(settings, leaf) for leaf in _FROZEN})

    def under(self, own: JobSettings) -> FrozenSettings:
        """With a job's own settings over them: for its requests that bring none."""
        given = {name: getattr(own, name) for name in _OF_JOBS_TOO if getattr(own, name) is not None}
        model, options = own.model or self.model, self.options | own.options
        return msgspec.structs.replace(self, **given | {"model": model, "options": options})

    def expires_s(self, accepted_s: float) -> float | None:
        """Wall-clock time at which the deadline of a job passes that was accepted at ``accepted_s``, or None."""
        if isinstance(self.deadline, str):
            return datetime.fromisoformat(self.deadline).timestamp()
        return accepted_s + self.deadline if self.deadline else None


_OF_JOBS_TOO = tuple(name for name in FrozenSettings.__struct_fields__ if name in JobSettings.__struct_fields__)
