"""``[disk]``: when dispatch pauses for lack of space, and how long jobs are kept."""

from __future__ import annotations

from pydantic import Field

from obatchd.settings.base import Live, Section


class DiskSettings(Section):
    """When dispatch pauses for lack of space."""

    min_free_bytes: Live[int] = Field(
        256 * 1024**2, ge=0, description="Below this, dispatch pauses; submissions stop before."
    )
    min_free_inodes: Live[int] = Field(10_000, ge=0, description="Below this, dispatch pauses.")
    keep_done_s: Live[float] = Field(7 * 86400, ge=0, description="How long a finished job's input and store are kept.")
    keep_done_bytes: Live[int] = Field(
        10 * 1024**3, ge=0, description="Most bytes of them; the oldest finished jobs are released first."
    )
    retention_days: Live[float] = Field(
        0,
        ge=0,
        description="Days after its end when everything of a job is erased, results, prompts and its row in the "
        "index; 0: never. obatchctl rm does it at once.",
    )
    prune_outbox_s: Live[float] = Field(
        0, ge=0, description="Delete results in the outbox and drops in failed/ after this long; 0 never does."
    )
