"""The digest of a drop's content, by which the same drop is known again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from obatchd.jobs.formats.source import Unreadable, open_source

_READ_BYTES = 128 * 1024


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of a folder's files in name order.

    A file in a folder that cannot be read counts by its name.
    """
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for inside in sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink()):
        digest.update(os.fsencode(inside.relative_to(path)) + b"\0")
        with contextlib.suppress(Unreadable), open_source(inside, packed=False) as source:
            while block := source.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()
