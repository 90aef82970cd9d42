"""``[access]``: who may use the daemon."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from obatchd.settings.base import Section


class AccessSettings(Section):
    """Who may use the daemon. The system service is started with mode = "service"."""

    mode: Literal["personal", "service"] = Field(
        "personal",
        description='"personal": only the daemon\'s own user and root. "service": members of submit_group, each of '
        "whom sees only what is theirs; outbox and failed have a directory per owner.",
    )
    submit_group: str = Field("obatch-submit", description="Group whose members may drop and submit.", min_length=1)
    admin_group: str = Field(
        "obatch-admin", description="Group whose members see everything and may do everything.", min_length=1
    )
