"""Small files in a host's directory: whole or not at all, of mode 0600, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path

_MOST_BYTES = 64 * 2**20


def read_file(path: Path) -> bytes:
    """The content of a file. Raises OSError: also where it is a link (ELOOP)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        return file.read(_MOST_BYTES)


def write_file(path: Path, content: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace a file by ``content``, so that a power cut leaves the old one or the new one. Raises OSError.

    ``owner``: uid and gid of the new one, where root writes it for somebody.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def set_aside(path: Path) -> str:
    """Rename a file that cannot be used; its new name, empty where that failed."""
    kept = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, kept)
    except OSError:
        return ""
    return kept.name
