"""The settings in force of parts that are tested without a daemon."""

from __future__ import annotations

from typing import Any

from obatchd.settings.current import Current
from obatchd.settings.frozen import FrozenSettings
from obatchd.settings.settings import Settings

DEFAULTS = FrozenSettings.of(Settings())


def in_force(**tables: Any) -> Current[Settings]:
    """The defaults, with these settings of these tables over them."""
    return Current(Settings.model_validate(tables))
