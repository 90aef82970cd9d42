"""What became of a drop that had to be unpacked: beside its input, in ``unpacked``, with a file that says so.

``unpacked.json`` is written when everything in ``unpacked`` is flushed. Without it ``unpacked`` is a torn attempt, and
the input is unpacked again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from obatchd.jobs.containers.messages import Unpacked

UNPACKED, CONTENT = "unpacked", "content"
_MANIFEST = "unpacked.json"
_decode = msgspec.json.Decoder(Unpacked).decode


class Contents(NamedTuple):
    """What is read of a drop."""

    path: Path  # a file or a folder
    name: str  # says how it is read
    is_unpacked: bool = False
    overlay: Path | None = None  # a folder with files that are read instead of those with the same name in ``path``
    problems: dict[str, str] = {}  # noqa: RUF012 - files of a folder that cannot be read: name, and why
    notes: tuple[str, ...] = ()


def contents(input_path: Path, name: str) -> Contents:
    """What is read of the drop that lies at ``input_path``: the input, or what was unpacked from it."""
    try:
        found = _decode(input_path.with_name(_MANIFEST).read_bytes())
    except FileNotFoundError:
        return Contents(input_path, name)
    content = input_path.with_name(UNPACKED) / CONTENT
    path, overlay = (input_path, content) if found.is_overlay else (content, None)
    return Contents(path, found.name, not found.is_overlay, overlay, found.problems, tuple(found.notes))


def conclude(directory: Path, found: Unpacked) -> None:
    """Say that the drop of the job in ``directory`` is unpacked; all of it is flushed. Raises OSError."""
    temporary = directory / f"{_MANIFEST}.new"
    with open(temporary, "wb") as file:
        file.write(msgspec.json.encode(found))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / _MANIFEST)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
