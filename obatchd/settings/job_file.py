"""Reads a job's own settings: from a ``job.toml``, or as a submission brings them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from obatchd.errors import ConfigError
from obatchd.settings.base import Section
from obatchd.settings.job import JobSettings
from obatchd.settings.reading import nearest, validate
from obatchd.settings.records import RecordSettings, SelectionSettings
from obatchd.settings.settings import Settings

_FOUND = ("openai_batch", "sample_of")  # found while a job is read, never given
JOB_KEYS = tuple(field.name for field in msgspec.structs.fields(JobSettings) if field.name not in _FOUND)
# Options that make Ollama load a model anew: they belong to the server's profile, not to one request.
LOAD_TIME_OPTIONS = frozenset(
    (
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "use_mmap",
        "use_mlock",
        "num_thread",
        "low_vram",
        "draft_num_predict",
    )
)
_SECTIONS: tuple[type[Section], ...] = (Settings, RecordSettings, SelectionSettings)


def parse_job_settings(mapping: Mapping[str, Any], source: str) -> tuple[JobSettings, list[str]]:
    """A job's own settings, from a ``job.toml`` or a submission.

    Args:
        mapping: the settings as read; a configuration of the original project is valid.
        source: their name in messages.

    Returns:
        The settings, and notes in plain words on options left out or moved.

    Raises:
        ConfigError: lists every unknown or wrong setting.
    """
    data = dict(mapping)
    notes = []
    if data.pop("ollama_instances", None) is not None:
        notes.append(f"{source}: [ollama_instances] is ignored; the daemon's own configuration names the servers")
    unknown = [key for key in data if key not in JOB_KEYS]
    problems = [f"{source}: {key}: no such job setting{nearest(key, JOB_KEYS)}" for key in unknown]
    known = {key: value for key, value in data.items() if key in JOB_KEYS}
    if isinstance(options := known.get("options"), dict):
        notes += _move_load_time_options(known, options, source)
    values: dict[str, Any] = {}
    for section in _SECTIONS:
        own = {key: value for key, value in known.items() if key in section.model_fields}
        settings, wrong = validate(own, {}, source, section)
        problems += wrong
        values |= {key: getattr(settings, key) for key in own} if settings is not None else {}
    if problems:
        raise ConfigError("\n".join(problems))
    return JobSettings(**values), notes


def _move_load_time_options(known: dict[str, Any], options: dict[str, Any], source: str) -> list[str]:
    notes = []
    known["options"] = {name: value for name, value in options.items() if name not in LOAD_TIME_OPTIONS}
    for name in sorted(LOAD_TIME_OPTIONS & options.keys()):
        if name == "num_ctx" and "context_length" not in known:
            known["context_length"] = options[name]
            notes.append(f"{source}: options.num_ctx is used as context_length")
        else:
            notes.append(f"{source}: options.{name} is left out; it belongs to the server, not to a job")
    return notes
