"""``[gpus]``: which GPUs are used, how often they are asked, and when."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from obatchd.settings.base import PositiveSeconds, Section


class GpuSettings(Section):
    """Which GPUs get a server. ``gpus = "all"`` at the top level is short for ``[gpus] use = "all"``."""

    use: str | list[str | int] = Field(
        "all",
        description='"all", "none" (client only: remote servers), "simulated:N", or a list of GPU UUIDs or indices.',
    )
    exclude: list[str | int] = Field([], description="UUIDs or indices of GPUs to leave alone.")
    poll_s: PositiveSeconds = Field(2.0, description="Seconds between two readings of utilisation, memory, power.")
    slow_poll_s: PositiveSeconds = Field(
        30, description="Seconds between two readings of what changes slowly: ECC counters, remapped rows, PCIe."
    )
    silent_warn_s: PositiveSeconds = Field(
        10, description="The driver is silent for this long: the health of the GPUs is unknown."
    )
    silent_s: PositiveSeconds = Field(
        60,
        description="Silent for this long: the process that asks it is given up and replaced. A driver in trouble may "
        "take 45 s for one call.",
    )

    shared_bytes: int = Field(
        512 * 1024**2,
        ge=0,
        description="Other people's processes may hold so much on a GPU; beside more no model is loaded.",
    )
    allow: list[str] = Field(
        [],
        description='Hours of the day, local time, in which the GPUs are used, e.g. ["22:00-06:00"]; empty: always. '
        "Outside of them models are unloaded and requests wait.",
    )

    @field_validator("allow", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("allow")
    @classmethod
    def _hours(cls, value: list[str]) -> list[str]:
        for hours in value:
            if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", hours):
                raise ValueError('must be hours such as "22:00-06:00"')
        return value

    @field_validator("use")
    @classmethod
    def _known_use(cls, value: str | list[str | int]) -> str | list[str | int]:
        if isinstance(value, str) and not re.fullmatch(r"all|none|simulated:[1-9]\d{0,2}", value):
            raise ValueError('must be "all", "none", "simulated:N" or a list of UUIDs or indices')
        return value
