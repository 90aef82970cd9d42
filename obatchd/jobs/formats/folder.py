"""A folder of files dropped as one job."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from obatchd.errors import DropRefused
from obatchd.jobs.formats.source import Unreadable, open_source
from obatchd.jobs.model import FILE_ENDINGS, IMAGE_ENDINGS, SOURCE_ENDINGS, is_passed_over

SETTINGS_FILES = ("job.toml", "config.toml")
_SETTINGS_BYTES = 1024**2
# tomllib takes a time that grows with the square of a dotted name's parts: hours for one that fills a settings file.
_NAME_PARTS = 100
_LONG_NAME = re.compile(
    rb"""(?<![\w-])(?:(?:"(?:[^"\\\n]|\\.){0,200}+"|'[^'\n]{0,200}+'|[\w-]++)[ \t]*+\.[ \t]*+){%d}"""
    % (_NAME_PARTS - 1)
)


def shown_name(path: Path) -> str:
    """A file's name as text; bytes that are not UTF-8 are escaped, because JSON has no place for them."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def folder_files(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """The folder's entries in name order, each with the reason why it is not read, or None.

    Settings files, images, sources, hidden files, temporary names and litter are left out without a word.
    """
    for path in sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name)):
        if is_passed_over(path.name) or path.name in SETTINGS_FILES:
            continue
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and path.name.lower().endswith(IMAGE_ENDINGS + SOURCE_ENDINGS):
            continue
        if stat.S_ISLNK(mode):
            yield path, "it is a link; links are not followed"
        elif stat.S_ISDIR(mode):
            yield path, "it is a folder inside the folder; put the files directly into the dropped one"
        elif not stat.S_ISREG(mode):
            yield path, "it is not a regular file"
        elif not path.name.lower().endswith(FILE_ENDINGS):
            yield path, "it is not a .json, .jsonl, .csv, .txt or .md file"
        else:
            yield path, None


def folder_settings(folder: Path) -> tuple[dict[str, Any], str] | None:
    """The content of the folder's ``job.toml`` (or ``config.toml`` of the original project), and which file it was.

    Raises DropRefused where it cannot be read or is not TOML (``job_settings``).
    """
    for name in SETTINGS_FILES:
        if not os.path.lexists(folder / name):
            continue
        try:
            with open_source(folder / name, packed=False) as source:
                content = source.whole(_SETTINGS_BYTES)
        except Unreadable as error:
            raise DropRefused(f"{name} cannot be read: {error}; it must be a file", code="job_settings") from error
        if len(content) > _SETTINGS_BYTES:
            raise DropRefused(f"{name} is larger than {_SETTINGS_BYTES} bytes", code="job_settings")
        if _LONG_NAME.search(content):
            raise DropRefused(f"{name} has a name of {_NAME_PARTS} parts or more", code="job_settings")
        try:
            return tomllib.loads(content.decode("utf-8-sig")), name
        except (ValueError, RecursionError) as error:  # of numbers with too many digits, too
            raise DropRefused(f"{name} is not valid TOML: {error}", code="job_settings") from error
    return None
