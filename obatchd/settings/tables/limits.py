"""``[limits]``: what one owner may have open."""

from __future__ import annotations

from pydantic import Field

from obatchd.settings.base import Live, Section


class LimitSettings(Section):
    """What one owner may have open. Further drops of that owner wait in the inbox; 0: no limit."""

    open_jobs: Live[int] = Field(0, ge=0, description="Jobs that are not done.")
    open_bytes: Live[int] = Field(0, ge=0, description="Bytes of their drops.")
    open_requests: Live[int] = Field(
        0, ge=0, description="Requests of theirs without a result when another drop is taken."
    )
