"""A folder of files dropped as one job."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from obatchd.errors import DropRefused
from obatchd.jobs.containers.limits import DEPTH
from obatchd.jobs.formats.source import Unreadable, open_source
from obatchd.jobs.model import (
    ARCHIVE_ENDINGS,
    FILE_ENDINGS,
    FORMATS_IN_WORDS,
    IMAGE_ENDINGS,
    SOURCE_ENDINGS,
    is_passed_over,
)

_READ_ME = re.compile(r"(readme|licen[sc]e|citation|changelog)(\.(md|txt|cff))?", re.IGNORECASE)
SETTINGS_FILES = ("job.toml", "config.toml")
_SETTINGS_BYTES = 1024**2
# tomllib takes a time that grows with the square of a dotted name's parts: hours for one that fills a settings file.
_NAME_PARTS = 100
_LONG_NAME = re.compile(
    rb"""(?<![\w-])(?:(?:"(?:[^"\\\n]|\\.){0,200}+"|'[^'\n]{0,200}+'|[\w-]++)[ \t]*+\.[ \t]*+){%d}"""
    % (_NAME_PARTS - 1)
)


def shown_name(path: Path) -> str:
    """A file's path in its folder as text; bytes that are not UTF-8 are escaped, because JSON has no place for them."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def folder_files(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """The paths of a folder's files in it, each with the reason why it is not read, or None.

    Those of a folder come in name order, then those of the folders in it. Settings files, images, sources, hidden
    files, temporary names, litter and read-me files (see :func:`read_me_files`) are left out without a word.
    """
    found = list(_entries(folder))
    left_out = set(_read_me_files(found))
    return ((path, problem) for path, problem in found if path not in left_out)


def read_me_files(folder: Path) -> list[Path]:
    """Files that say something about the others, to people. Where there is nothing else they are prompts."""
    return _read_me_files(list(_entries(folder)))


def _read_me_files(found: list[tuple[Path, str | None]]) -> list[Path]:
    about = [path for path, _ in found if _READ_ME.fullmatch(path.name)]
    return about if len(about) < len(found) else []


def _entries(folder: Path) -> Iterator[tuple[Path, str | None]]:
    unread: set[Path] = set()
    # fwalk opens each folder and makes sure that it is the one it saw: its owner may swap it for a link.
    for place, folders, files, descriptor in os.fwalk(folder):
        below = Path(place).relative_to(folder)
        unread.discard(below)
        folders[:] = sorted((name for name in folders if not is_passed_over(name)), key=os.fsencode)
        inner = set(folders)
        for name in sorted((*files, *folders), key=os.fsencode):
            path = below / name
            with contextlib.suppress(FileNotFoundError):
                mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
                if (problem := _problem(path, mode)) != "":
                    yield path, problem
                elif name in inner:
                    unread.add(path)
        if len(below.parts) >= DEPTH:
            folders.clear()
    yield from ((path, "it is a folder that cannot be read") for path in sorted(unread))


def _problem(path: Path, mode: int) -> str | None:
    """Why an entry is not read, or None; empty where nobody needs to be told."""
    name, is_file = path.name.lower(), stat.S_ISREG(mode)
    if is_passed_over(path.name) or (is_file and name.endswith(IMAGE_ENDINGS + SOURCE_ENDINGS)):
        return ""
    if stat.S_ISDIR(mode):
        return "" if len(path.parts) <= DEPTH else f"it lies more than {DEPTH} folders deep"
    if stat.S_ISLNK(mode):
        return "it is a link; links are not followed"
    if not is_file:
        return "it is not a regular file"
    if path.name in SETTINGS_FILES:
        return "" if len(path.parts) == 1 else "it counts only directly in the dropped folder; move it there"
    if name.endswith(ARCHIVE_ENDINGS):
        return "it is an archive; unpack it in the folder, or drop it by itself"
    if name.endswith(FILE_ENDINGS) or _READ_ME.fullmatch(path.name):
        return None
    return f"it is none of our formats, which are {FORMATS_IN_WORDS}"


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
