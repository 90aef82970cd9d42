"""The settings in force of parts that are tested without a daemon."""

from __future__ import annotations

import pwd
from typing import Any, Never

import pytest

from obatchd.settings import reading
from obatchd.settings.current import Current
from obatchd.settings.job import FrozenSettings
from obatchd.settings.settings import Settings

DEFAULTS = FrozenSettings.of(Settings())
# SQL that makes an index of version 6 one of version 5, as far as columns of old tables go.
WITHOUT_VERSION_6 = "DROP INDEX jobs_that_are_batches;" + "".join(
    f"ALTER TABLE jobs DROP COLUMN {name};" for name in ("indexed_s", "answered_s", "cancelled_s", "refused_lines")
)


def reload(current: Current[Settings], key: str, value: Any) -> None:
    """Put one setting in force, as a reload of a file that has it does."""
    tables = current.value.model_dump()
    section, _, name = key.rpartition(".")
    (tables[section] if section else tables)[name] = value
    current.value = reading.reloaded(current.value, Settings.model_validate(tables))


def in_force(**tables: Any) -> Current[Settings]:
    """The defaults, with these settings of these tables over them."""
    return Current(Settings.model_validate(tables))


def nobody(monkeypatch: pytest.MonkeyPatch, home: str | None = None) -> None:
    """Let this process belong to a uid that passwd does not know, with ``home`` as HOME."""

    def unknown(uid: int) -> Never:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "OLLAMA_MODELS", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
