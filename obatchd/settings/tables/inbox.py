"""``[inbox]``: how drops are taken."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from obatchd.settings.base import Live, PositiveSeconds, Section


class InboxSettings(Section):
    """How drops are taken."""

    settle_s: Live[PositiveSeconds] = Field(
        2, description="A file that was not renamed in is taken when unchanged this long."
    )
    folder_settle_s: Live[PositiveSeconds] = Field(5, description="The same for a folder, over all it contains.")
    rescan_s: Live[PositiveSeconds] = Field(2, description="Seconds between two looks at the whole inbox.")
    empty_s: Live[PositiveSeconds] = Field(60, description="An empty file is refused after this long.")
    claim_batch: Live[int] = Field(1000, ge=1, description="Most drops claimed in one go.")
    max_line_bytes: Live[int] = Field(16 * 1024**2, ge=1024, description="Longest request.")
    max_unpacked_bytes: Live[int] = Field(64 * 1024**3, ge=1024, description="Most bytes a drop may unpack to.")
    max_requests: Live[int] = Field(10_000_000, ge=1, description="Most requests in one drop.")
    on_invalid: Live[Literal["fail_line", "fail_file"]] = Field(
        "fail_line", description='A bad line fails alone ("fail_line") or refuses the whole drop before it runs.'
    )
    dedupe: Live[Literal["allow", "reject"]] = Field(
        "allow", description='A drop with the content of an earlier one: run and report it, or "reject".'
    )
