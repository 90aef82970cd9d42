"""The settings of a job: its own, as a ``job.toml`` or a submission brings them, and the daemon's, kept with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import field_validator, model_validator

from obatchd.errors import ConfigError
from obatchd.prompts.encodings import encoding_problem
from obatchd.prompts.template import template_problem
from obatchd.settings.base import Reload, Section, setting
from obatchd.settings.reading import leaves, nearest, validate, value_of
from obatchd.settings.settings import Settings
from obatchd.settings.tables.people import target_problem
from obatchd.times import epoch_s

_NEVER_S = 2.5e11  # a deadline so far off is none: no time can be written whose year has five digits


class JobSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job's own settings: between a request's fields and the daemon's settings. ``None`` means not given."""

    model: str | None = None
    system_message: str | None = None
    options: dict[str, Any] = {}
    context_length: int | None = None
    max_response_tokens: int | None = None
    priority: str | None = None
    deadline: float | str | None = None  # seconds after acceptance (0: none), or an ISO 8601 time in UTC
    format: str | dict[str, Any] | None = None  # "" (text), "json" or a JSON Schema
    in_source: list[str] | None = None
    think: bool | str | None = None
    template: str | None = None  # these three: how records become prompts
    text_column: str | None = None
    id_column: str | None = None
    encoding: str | None = None  # of texts, where they do not say it themselves; None: UTF-8
    lines: bool | None = None  # each line of a text is a prompt
    sample: int | None = None  # run only so many requests of the drop, chosen at random
    openai_batch: bool = False  # the drop is a batch file of that API; found when it is read, not given
    sample_of: int | None = None  # of how many; found when the drop is read, not given
    notify: list[str] | None = None  # who is told that the job is over: mail:ADDRESS, or the URL of a webhook
    skip_done: bool | str | None = None  # copy answers of the owner's earlier jobs, or of the one with this id
    lines_of: str | None = None  # the job whose numbers of lines a retry keeps; set by the daemon, not given
    repeat: int | None = None  # answer each prompt so many times
    label: str | None = None  # a name for the job, to find it by
    token: str | None = None  # of the submission, by which one that is sent again is known; not given


class FrozenSettings(msgspec.Struct, frozen=True):
    """The daemon's settings marked *next job*, as they were when a job was accepted; kept with the job, which takes
    them where it names none. So neither a reload nor a restart with another configuration changes a job in work.

    A field that comes later needs a default, for jobs that an earlier version accepted.
    """

    model: str  # empty: none
    system_message: str
    context_length: int  # tokens, not rounded
    max_response_tokens: int
    priority: str
    deadline: float | str  # seconds after acceptance (0: none), or an ISO 8601 time in UTC
    options: dict[str, Any]
    format: str | dict[str, Any]  # "" (text), "json" or a JSON Schema
    in_source: list[str]
    think: bool | str
    response_files: str
    response_text: str
    response_files_limit: int

    @classmethod
    def of(cls, settings: Settings) -> FrozenSettings:
        """Those of the daemon now."""
        return cls(**{leaf.name: value_of(settings, leaf) for leaf in _FROZEN})

    def under(self, own: JobSettings) -> FrozenSettings:
        """With a job's own settings over them: for its requests that bring none."""
        given = {name: getattr(own, name) for name in _OF_JOBS_TOO if getattr(own, name) is not None}
        model, options = own.model or self.model, self.options | own.options
        return msgspec.structs.replace(self, **given | {"model": model, "options": options})

    def expires_s(self, accepted_s: float) -> float | None:
        """Wall-clock time at which the deadline of a job passes that was accepted at ``accepted_s``, or None."""
        if isinstance(self.deadline, str):
            return epoch_s(self.deadline)
        return accepted_s + self.deadline if 0 < self.deadline < _NEVER_S else None


_FROZEN = tuple(leaf for leaf in leaves() if leaf.reload is Reload.NEXT_JOB)
_OF_JOBS_TOO = tuple(name for name in FrozenSettings.__struct_fields__ if name in JobSettings.__struct_fields__)


class RecordSettings(Section):
    """How a job's records become prompts. Only a job has these, and none is given where lines are requests already."""

    template: str | None = setting(None, "The prompt, with fields of the record in braces: {note}.")
    text_column: str | None = setting(None, "The field or column that is the prompt.", min_length=1)
    id_column: str | None = setting(None, "The field or column that is the id.", min_length=1)
    encoding: str | None = setting(None, "The encoding of files that are not UTF-8: cp1252, latin-1, shift_jis ….")
    lines: bool | None = setting(None, "Each line of a text is a prompt; else the text is one.")

    @field_validator("template")
    @classmethod
    def _has_a_field(cls, value: str | None) -> str | None:
        if value is not None and (problem := template_problem(value)):
            raise ValueError(problem)
        return value

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and (problem := encoding_problem(value)):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _one_prompt(self) -> RecordSettings:
        if self.template is not None and self.text_column is not None:
            raise ValueError("template and text_column both say what the prompt is; give one of them")
        return self


class SelectionSettings(Section):
    """Which requests of a drop are run, and how often. Only a job has these."""

    sample: int | None = setting(None, "Run only so many requests, chosen at random.", ge=1, le=10_000)
    skip_done: bool | str | None = setting(
        None, "Copy the answers that the same requests got in earlier jobs, or in the one with this id."
    )
    repeat: int | None = setting(None, "Answer each prompt so many times, each with a seed.", ge=1, le=100)
    label: str | None = setting(None, "A name for the job, to find it by.", min_length=1, max_length=100)

    @field_validator("label")
    @classmethod
    def _can_be_typed(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("must have no line break and no other control character")
        return value


class NotifySelection(Section):
    """Who is told that a job is over. Only a job has this."""

    notify: list[str] | None = setting(
        None, "Who is told that the job is over: mail:ADDRESS, or the URL of a webhook.", max_length=5
    )

    @field_validator("notify")
    @classmethod
    def _can_be_told(cls, value: list[str] | None) -> list[str] | None:
        for target in value or ():
            if problem := target_problem(target):
                raise ValueError(problem)
        return value


# Settings of a job that say who waits for it, or which answers it takes over, and not what is asked.
_ABOUT_THE_JOB = frozenset({"priority", "deadline", "sample", "sample_of", "skip_done", "openai_batch", "label",
                            "notify", "token"})  # fmt: skip


def asked_with(frozen: FrozenSettings, own: JobSettings) -> dict[str, Any]:
    """What the answers of a job depend on beside its drop: two that are equal ask the same of the same model."""
    return {
        name: getattr(whole, name)
        for whole in (own, frozen)  # those that are in force go over those that the job named
        for name in whole.__struct_fields__
        if name not in _ABOUT_THE_JOB and not name.startswith("response_")
    }


_FOUND = ("openai_batch", "sample_of", "lines_of", "token")  # found while a job is taken, read or retried, never given
REQUEST_KEYS = frozenset(_OF_JOBS_TOO)  # those that bear on requests as they are, and not on how records become some
JOB_KEYS = tuple(name for name in JobSettings.__struct_fields__ if name not in _FOUND)
# Options that make Ollama load a model anew: they belong to the server's profile, not to one request.
LOAD_TIME_OPTIONS = frozenset(("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "use_mlock", "num_thread",
                               "low_vram", "draft_num_predict"))  # fmt: skip


def parse_job_settings(mapping: Mapping[str, Any], source: str) -> tuple[JobSettings, list[str]]:
    """A job's own settings, and notes in plain words on options left out or moved; messages call them ``source``.

    A configuration of the original project is valid, too. Raises ConfigError, which lists all that is unknown or wrong.
    """
    data = dict(mapping)
    notes = []
    if data.pop("ollama_instances", None) is not None:
        notes.append(f"{source}: [ollama_instances] is ignored; the daemon's own configuration names the servers")
    unknown = [key for key in data if key not in JOB_KEYS]
    problems = [f"{source}: {key}: no such job setting{nearest(key, JOB_KEYS)}" for key in unknown]
    if isinstance(options := data.get("options"), dict):
        notes += _move_load_time_options(data, options, source)
    values: dict[str, Any] = {}
    for section in (Settings, RecordSettings, SelectionSettings, NotifySelection):
        own = {key: data[key] for key in JOB_KEYS if key in data and key in section.model_fields}
        settings, wrong = validate(own, {}, source, section)
        problems += wrong
        values |= {key: getattr(settings, key) for key in own} if settings is not None else {}
    if problems:
        raise ConfigError("\n".join(problems))
    return JobSettings(**values), notes


def _move_load_time_options(data: dict[str, Any], options: dict[str, Any], source: str) -> list[str]:
    notes = []
    data["options"] = {name: value for name, value in options.items() if name not in LOAD_TIME_OPTIONS}
    for name in sorted(LOAD_TIME_OPTIONS & options.keys()):
        if name == "num_ctx" and "context_length" not in data:
            data["context_length"] = options[name]
            notes.append(f"{source}: options.num_ctx is used as context_length")
        else:
            notes.append(f"{source}: options.{name} is left out; it belongs to the server, not to a job")
    return notes
