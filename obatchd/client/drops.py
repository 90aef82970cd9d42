"""What a program submits, as a file that the daemon takes: prompts, requests, data frames, or a path as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from obatchd.errors import ControlError
from obatchd.words import said

_NAME = "prompts.jsonl"
_PROMPT_COLUMNS = ("prompt", "text", "content", "question", "query")  # as the daemon looks for them in tables
_ID_COLUMNS = ("id", "custom_id")
_LIBRARIES = ("pandas", "polars", "pyarrow")
_DIGITS = 15  # of numbers in data frames: as many as pandas writes


class Drop(NamedTuple):
    """A file or folder to be handed over, and the settings that go with it."""

    path: Path
    settings: dict[str, Any]


def as_drop(what: Any, settings: dict[str, Any], folder: Path) -> Drop:
    """What is submitted as a drop, written into ``folder`` where it is no path.

    Raises:
        ControlError: nothing of it can be a prompt (``no_prompts``), or the path is not there (``no_file``).
    """
    if isinstance(what, str | os.PathLike):
        return Drop(_existing(Path(what).expanduser()), settings)
    if isinstance(what, bytes | bytearray):
        raise _no_prompt(what, "what was given")
    what = [what] if isinstance(what, Mapping) else _with_index(what)
    columns = _columns_of(what)
    path = folder / _NAME
    try:
        with open(path, "wb") as file:
            if columns is None:
                _write_requests(what, file)
            else:
                settings = _with_columns(settings, columns)
                _write_frame(what, file)
        if not path.stat().st_size:
            raise ControlError("there is no prompt to submit: what was given is empty", code="no_prompts")
    except OSError as error:
        raise not_written(error) from None
    return Drop(path, settings)


def not_written(error: OSError) -> ControlError:
    """The error that says: the disk does not take the file for the daemon."""
    return ControlError(
        f"the prompts cannot be written for the daemon: {said(error)}. TMPDIR names another place for them",
        code="not_copied",
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ControlError(
            f"there is no file or folder {path}. A text is taken for a path; to ask a prompt, give a list: "
            'submit(["Why is the sky blue?"])',
            code="no_file",
        )
    return path


def _library(what: Any) -> str:
    """The library of which ``what`` is a data frame or table, a subclass of one included; empty for anything else."""
    roots = (kind.__module__.partition(".")[0] for kind in type(what).__mro__ if hasattr(kind, "columns"))
    return next((root for root in roots if root in _LIBRARIES), "")


def _with_index(what: Any) -> Any:
    """A data frame of pandas with its index among its columns, where that has a name which no column has."""
    if _library(what) != "pandas":
        return what
    names = [name for name in what.index.names if name is not None]
    return what.reset_index() if names and not set(names) & set(what.columns) else what


def _columns_of(what: Any) -> Sequence[str] | None:
    """The columns of a data frame of pandas or polars or of a table of Arrow; None of anything else."""
    if not (library := _library(what)):
        return None
    columns = [str(column) for column in (what.column_names if library == "pyarrow" else what.columns)]
    if not columns:
        raise ControlError("there is no prompt to submit: the table has no columns", code="no_prompts")
    return columns


def _with_columns(settings: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Settings that make prompts of rows. Rows are data: no column of them is taken for a setting."""
    by_name = {column.lower(): column for column in reversed(columns)}
    found = dict(settings)
    for setting in ("text_column", "id_column"):
        if settings.get(setting, columns[0]) not in columns:
            raise ControlError(
                f"{setting}: there is no column {settings[setting]}; the columns are {', '.join(columns)}",
                code="no_prompts",
            )
    if "template" not in settings and "text_column" not in settings:
        text = next((by_name[name] for name in _PROMPT_COLUMNS if name in by_name), None)
        text = columns[0] if text is None and len(columns) == 1 else text
        if text is None:
            raise ControlError(
                f"the columns are {', '.join(columns)}: say which one is the prompt with text_column=…, or put columns "
                'into one with template="… {column} …"',
                code="no_prompts",
            )
        found["text_column"] = text
    if "id_column" not in settings and (name := next((name for name in _ID_COLUMNS if name in by_name), None)):
        found["id_column"] = by_name[name]
    return found


def _write_frame(frame: Any, file: BinaryIO) -> None:
    library = _library(frame)
    if library == "polars":
        frame.write_ndjson(file)
    elif library == "pandas":
        frame.to_json(
            file, orient="records", lines=True, date_format="iso", double_precision=_DIGITS, force_ascii=False
        )
    else:
        for batch in frame.to_batches():
            _write_requests(batch.to_pylist(), file)


def _write_requests(requests: Iterable[Any], file: BinaryIO) -> None:
    try:
        numbered = enumerate(requests, start=1)
    except TypeError:
        raise _no_prompt(requests, "what was given") from None
    for number, request in numbered:
        if isinstance(request, str):
            request = {"prompt": request}
        if not isinstance(request, Mapping):
            raise _no_prompt(request, f"number {number} of what was given")
        file.write(_line(dict(request)))


def _no_prompt(what: Any, name: str) -> ControlError:
    kind = type(what).__name__
    return ControlError(
        f"{name} is of the type {kind}; give texts, or dicts such as "
        '{"id": "rivers", "prompt": "Name three rivers."}',
        code="no_prompts",
    )


def _line(request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(request, ensure_ascii=False, default=_plain).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, which only an escape can write
        return json.dumps(request, default=_plain).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ControlError(f"a request cannot be written as JSON: {error}", code="no_prompts") from None


def _plain(value: Any) -> Any:
    """A value of numpy or pandas, or a time, as JSON has it."""
    for method in ("isoformat", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value)
