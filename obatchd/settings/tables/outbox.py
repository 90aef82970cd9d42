"""``[outbox]``: how results are written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from obatchd.settings.base import NextJob, Section


class OutboxSettings(Section):
    """How results are written."""

    response_files: NextJob[Literal["auto", "always", "never"]] = Field(
        "auto", description='One file per response. "auto": for jobs of at most response_files_limit requests.'
    )
    response_text: NextJob[Literal["txt", "md"]] = Field(
        "txt", description="Ending of the file with a response's text. The text is the model's Markdown either way."
    )
    response_files_limit: NextJob[int] = Field(100_000, ge=0, description='Most requests of a job for "auto".')
