"""A job's own settings, as they are kept with the job."""

from __future__ import annotations

from typing import Any

import msgspec


class JobSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job's own settings: between a request's fields and the daemon's settings. ``None`` means not given."""

    model: str | None = None
    system_message: str | None = None
    options: dict[str, Any] = {}
    context_length: int | None = None
    max_response_tokens: int | None = None
    priority: str | None = None
    deadline: float | str | None = None  # seconds after acceptance (0: none), or an ISO 8601 time in UTC
    format: str | dict[str, Any] | None = None  # "" (text), "json" or a JSON Schema
    in_source: list[str] | None = None
    think: bool | str | None = None
    template: str | None = None  # these three: how records become prompts
    text_column: str | None = None
    id_column: str | None = None
    sample: int | None = None  # run only so many requests of the drop, chosen at random
    openai_batch: bool = False  # the drop is a batch file of that API; found when it is read, not given
    sample_of: int | None = None  # of how many; found when the drop is read, not given
    skip_done: bool | str | None = None  # copy answers of the owner's earlier jobs, or of the one with this id
