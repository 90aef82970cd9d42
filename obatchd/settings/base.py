"""Parts for the tables of the settings; the declaration itself is :mod:`obatchd.settings.settings`."""

from __future__ import annotations

import contextlib
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from obatchd.errors import ConfigError
from obatchd.times import span_s


class Reload(StrEnum):
    """The effect of a reload on a change: the mark on the field. A field without a mark needs a restart."""

    LIVE = "live"  # it takes effect at once
    NEXT_JOB = "next job"  # jobs accepted from now on are done with it; those accepted before stay as they are
    RESTART = "restart"


_T = TypeVar("_T")
Live = Annotated[_T, Reload.LIVE]
NextJob = Annotated[_T, Reload.NEXT_JOB]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class TimeUnit(NamedTuple):
    """The unit of a setting that is a length of time: the end of its name."""

    words: str
    seconds: float
    example: str  # of a text with a unit of its own


_TIME_UNITS = {
    "ms": TimeUnit("milliseconds", 0.001, "50ms"),
    "s": TimeUnit("seconds", 1.0, "90m"),
    "minutes": TimeUnit("minutes", 60.0, "10m"),
    "days": TimeUnit("days", 86400.0, "30d"),
}


def time_unit(name: str | None) -> TimeUnit | None:
    """The unit of the setting ``name``; None where it is no length of time."""
    head, _, unit = (name or "").rpartition("_")
    return None if head.endswith("_per") else _TIME_UNITS.get(unit)  # so many per second are no time


class Section(BaseModel):
    """A table of the configuration: unknown keys are errors, values are not changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _time_in_its_unit(cls, value: Any, about: ValidationInfo) -> Any:
        """A length of time may be a text with a unit of its own."""
        unit = time_unit(about.field_name)
        if unit is None or not isinstance(value, str):
            return value
        with contextlib.suppress(ValueError):
            float(value)  # a plain number, as a variable has it
            return value
        with contextlib.suppress(ValueError):
            amount = round(span_s(value) / unit.seconds, 9)
            return int(amount) if amount.is_integer() else amount
        return value  # the check of its type says what may be written


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field: its default, its meaning in a sentence for people, and its limits as pydantic's ``Field`` names them."""
    return Field(default, description=meaning, **limits)


def expanded(path: str | Path) -> Path:
    """``path``, absolute, with the home directory for ``~``; raises ConfigError (``no_home``) where nobody knows it."""
    who = str(path).partition("/")[0]
    try:
        if who == "~" and os.environ.get("HOME") == "":  # Python would take the root directory
            raise RuntimeError
        return Path(path).expanduser().absolute()
    except RuntimeError:
        reason = f"HOME is not set and uid {os.geteuid()} has no entry in passwd. Set HOME, or write"
        if who != "~":
            reason = f"passwd has no user {who[1:]}. Write"
        raise ConfigError(
            f"{path}: the home directory is not known, because {reason} a path that begins with /.", code="no_home"
        ) from None
