"""How two results were asked: what people call them, and the settings and prompts in which they differ."""

from __future__ import annotations

import json
from typing import Any

from obatchd.results.rows import Record, ResultSet, Row
from obatchd.words import counted

_NOT_ASKED = (
    "model",
    "context_sha256",
    "system_message_sha256",
)  # a model has its own row; others tell nobody anything


def titles(a: ResultSet, b: ResultSet) -> tuple[str, str]:
    """What people call both: their labels, else the names of their drops, with the end of the id where these are one.

    Of results that are no job, the name of the file or folder.
    """
    first, second = (source.title for source in (a, b))
    if first != second or a.job == b.job:
        return first, second
    one, other = (f"{source.title} {source.job.rpartition('-')[2]}".strip() for source in (a, b))
    return one, other


def settings_that_differ(a: ResultSet, b: ResultSet) -> dict[str, tuple[Any, Any]]:
    """By name, the values of each setting that is another one in both; nothing where one of both is not known."""
    first, second = (_flat(source.settings) for source in (a, b))
    if not first or not second:
        return {}
    names = [name for name in {**first, **second} if name not in _NOT_ASKED]
    pairs = {name: (first.get(name), second.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and any(map(_is_set, pair))}


def _is_set(value: Any) -> bool:
    return value not in (None, "", [], {})


def _flat(settings: Record) -> Record:
    """With options of Ollama by their own names."""
    options = settings.get("options")
    own = {name: value for name, value in settings.items() if name != "options"}
    return own | (options if isinstance(options, dict) else {})


def as_value(value: Any) -> str:
    """A setting on one line."""
    if not _is_set(value):
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\n", "↵")


def prompt_of(row: Row | None) -> str:
    """The prompt as it was sent; nothing where that is not known."""
    return str(row.record.get("full_prompt") or row.record.get("prompt") or "") if row else ""


def prompts_differ(a: Row | None, b: Row | None) -> bool:
    """Whether both have a prompt, and not the same."""
    first, second = prompt_of(a), prompt_of(b)
    return bool(first and second) and first != second


def unfinished(source: ResultSet, title: str, answered: int) -> str:
    """That a job is not over, with how far it is; nothing where it is."""
    if source.complete:
        return ""
    of = f" of {counted(source.asked, 'request')}" if source.asked is not None else ""
    return f"{title} is still running: {answered:,}{of} answered"
