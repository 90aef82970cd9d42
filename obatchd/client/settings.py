"""Settings of a job as arguments of a call, checked by the daemon; docs/formats.md explains each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from obatchd.errors import ConfigError

_OPTIONS = frozenset({"temperature", "seed", "top_k", "top_p", "min_p", "repeat_penalty", "stop"})


class Settings(TypedDict, total=False):
    """Settings that ``submit`` takes beside the frequent ones, and ``retry``, as far as they suit a retry."""

    system_message: str
    context_length: int  # tokens
    max_response_tokens: int
    think: bool | str
    in_source: Sequence[str]
    deadline: float | str  # seconds or a span such as "2h" from acceptance, or an ISO 8601 time
    template: str  # the prompt, with fields of each record in braces
    text_column: str  # the column or field of each record that is the prompt
    id_column: str
    encoding: str
    lines: bool  # each line of a text is a prompt
    sample: int  # only so many requests, chosen at random
    repeat: int  # answers to each prompt
    skip_done: bool | str
    notify: Sequence[str]
    format: str | dict[str, Any]  # "json", where no schema says more
    options: Mapping[str, Any]  # of Ollama; those that follow may stand here, too
    temperature: float
    seed: int
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    stop: Sequence[str]


def as_sent(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are given, as a ``job.toml`` has them; None means not given.

    Raises ConfigError for what is nearly an option. Of anything else that is wrong the daemon says so.
    """
    for name in given.keys() - Settings.__annotations__.keys():
        if close := difflib.get_close_matches(name, Settings.__annotations__, 1, 0.8):
            raise ConfigError(f"{name}: no such setting; did you mean {close[0]}?")
    said = {name: _plain(value) for name, value in given.items() if value is not None}
    if options := {name: said.pop(name) for name in _OPTIONS & said.keys()}:
        said["options"] = {**said.get("options", {}), **options}
    return said


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple | set | frozenset) else value
