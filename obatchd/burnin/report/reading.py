"""Reports that come as JSON: from a daemon or from a file, maybe of another version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from obatchd.documents import SCHEMA
from obatchd.documents.burnin.report import KIND
from obatchd.errors import ConfigError
from obatchd.words import misfit, not_json

_T = TypeVar("_T")


def read_file(path: Path) -> dict[str, Any]:
    """A report from a file, as it stands there. Raises ConfigError where it is none."""
    try:
        document = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", code="unreadable") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not a burn-in report: {not_json(error)}", code="not_a_report") from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise ConfigError(f"{path} is not a burn-in report of obatchd", code="not_a_report")
    if document.get("schema") != SCHEMA:
        raise ConfigError(f"{path} has schema {document.get('schema')}; this obatchctl reads {SCHEMA}", code="schema")
    return document


def typed(document: dict[str, Any], kind: type[_T]) -> _T:
    """The fields of a report, or of its head, that this version knows.

    Raises ConfigError where one is missing, or is something else.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the report is not one of this version: {misfit(error)}", code="not_a_report") from None
