"""What a submission is refused for before it is accepted: no request of it could run, and that is known at once.

A drop in the inbox is not looked at in this way: nobody waits for the answer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from pathlib import Path
from typing import cast

from obatchd.errors import DropRefused
from obatchd.jobs.formats import (
    Format,
    RecordRules,
    contents,
    folder_settings,
    needs_unpacking,
    read_entries,
    recognise,
    remove_request_file,
)
from obatchd.jobs.model import Entry
from obatchd.settings.job import FrozenSettings, JobSettings, parse_job_settings
from obatchd.settings.settings import Settings

_LOOKED_AT = 10_000  # requests; what comes behind them is not known at once
_NO_PROMPT = ("missing_prompt", "missing_field")  # codes of requests that lack one


def look(
    input_path: Path,
    name: bytes,
    given: JobSettings,
    defaults: FrozenSettings,
    settings: Settings,
    check_space: Callable[[int], None],
) -> None:
    """Look at a drop that was copied and is not accepted yet; as a rule only its first request is read.

    ``check_space`` is that of :func:`~obatchd.jobs.formats.read_entries`; where it raises, no more is looked at.
    Raises DropRefused (``no_prompt``, ``no_model``) where none of its requests has a prompt, or nothing names a model.
    Other faults are left to those who read it.
    """
    label = os.fsdecode(name)
    try:
        drop = contents(input_path, label)
        own = _of_folder(drop.path) if drop.path.is_dir() else JobSettings()
        if needs_unpacking(drop):
            return
        encoding = given.encoding or own.encoding
        rules = RecordRules(
            given.template or own.template, given.text_column or own.text_column, given.id_column or own.id_column,
            encoding, own.lines if given.lines is None else given.lines,
        )  # fmt: skip
        form = recognise(drop.path, drop.name, encoding)
        entries = read_entries(input_path, label, settings.inbox, form=form, rules=rules, check_space=check_space)
        with contextlib.closing(cast("Generator[Entry]", entries)):
            _judge(islice(entries, _LOOKED_AT), label, form, bool(given.model or own.model or defaults.model))
    except DropRefused as refusal:
        if refusal.code in ("no_prompt", "no_model"):
            raise
    except Exception:  # noqa: BLE001 - whatever it is, the reading of the accepted drop meets it, and says so
        return
    finally:
        remove_request_file(input_path)  # it is read again, under its settings


def _judge(entries: Iterable[Entry], label: str, form: Format, has_model: bool) -> None:
    first, count, runnable, others = "", 0, False, False
    for entry in entries:
        count += 1
        runnable |= entry.refusal is None
        others |= entry.refusal is not None and entry.refusal.code not in _NO_PROMPT
        if entry.model or (has_model and (runnable or others)):
            return
        if entry.refusal is not None and not first:
            first = entry.refusal.message.partition(": ")[2] or entry.refusal.message
    if count == _LOOKED_AT:
        return
    if not (runnable or others) and form is not Format.BATCH:
        raise DropRefused(f"{label}: none of its requests can run: {first}", code="no_prompt")
    if runnable:
        raise DropRefused(
            f"{label}: no model is named, neither in its requests nor in job.toml nor in the daemon's configuration: "
            "give --model NAME (obatchctl models lists those that are there)",
            code="no_model",
        )


def _of_folder(folder: Path) -> JobSettings:
    found = folder_settings(folder)
    return parse_job_settings(*found)[0] if found is not None else JobSettings()
