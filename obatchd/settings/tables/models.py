"""``[models]``: which models may be used and pulled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from obatchd.settings.base import Live, Section


class ModelSettings(Section):
    """Which models may be used and pulled."""

    pull: Live[Literal["admin", "allowed", "never"]] = Field(
        "allowed",
        description='Who may cause a pull: "admin" (only obatchctl models pull), "allowed" (jobs too, if the name '
        'matches allow), "never".',
    )
    allow: Live[list[str]] = Field(["*"], description="Patterns of model names that jobs may use (shell style).")
    pull_margin_bytes: Live[int] = Field(2 * 1024**3, ge=0, description="Free disk that must remain after a pull.")
