"""Makes a backup of a spool, also while its daemon works."""

from __future__ import annotations

import os
import sqlite3
import tarfile
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from obatchd.backup import contents
from obatchd.backup.archive import Archive
from obatchd.backup.contents import End, Manifest
from obatchd.backup.moment import Moment
from obatchd.errors import SpoolError
from obatchd.spool.flush import sync_paths
from obatchd.words import not_written, said

_TRIES = 3


class Made(NamedTuple):
    """A backup."""

    manifest: Manifest
    drops: int  # of the inbox
    left_out: list[str]  # drops that were still being written
    unreadable: list[str]  # drops that may not be read
    size_bytes: int


def make(spool: Path, target: Path, *, secrets: bool = False, results: bool = True) -> Made:
    """Write the backup of ``spool`` to ``target``, readable for its maker alone; packed where that ends with ``.gz``.

    Args:
        secrets: with key hashes and certificates.
        results: with outbox and failed.

    Raises:
        SpoolError: there is no spool, it may not be read, ``target`` is there already or lies in the spool, or the disk
            refuses.
    """
    spool, target = spool.resolve(), target.absolute()
    if target.resolve().is_relative_to(spool):
        raise SpoolError(f"{target} lies in the spool itself; name a file elsewhere", code="backup_place")
    if os.path.lexists(target):
        raise SpoolError(f"{target} is there already; name another file", code="exists")
    try:
        os.stat(spool / "work" / contents.INDEX)
    except FileNotFoundError:
        raise SpoolError(
            f"there is no spool with jobs at {spool}; name one with --spool DIR", code="no_spool"
        ) from None
    except PermissionError as error:
        raise _forbidden(error) from None
    for left in reversed(range(_TRIES)):
        try:
            return _write(spool, target, secrets=secrets, results=results)
        except PermissionError as error:
            raise _forbidden(error) from None
        except (OSError, sqlite3.Error) as error:
            if not left or not isinstance(error, FileNotFoundError):
                raise SpoolError(f"the backup cannot be written: {said(error)}", code="backup") from error
    raise AssertionError


def _forbidden(error: PermissionError) -> SpoolError:
    words = "run this as the daemon's user, or with sudo"
    return SpoolError(f"{error.filename}: permission denied; {words}", code="permission")


def _write(spool: Path, target: Path, *, secrets: bool, results: bool) -> Made:
    with ExitStack() as stack:
        try:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent)))
        except OSError as error:
            raise SpoolError(not_written(target, error), code="backup") from None
        part = scratch / "backup"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        file = stack.enter_context(open(descriptor, "wb"))
        moment = stack.enter_context(closing(Moment(spool, scratch)))
        manifest = moment.manifest(secrets=secrets, results=results)
        packed = target.name.endswith((".gz", ".tgz"))
        with tarfile.open(fileobj=file, mode="w:gz" if packed else "w", format=tarfile.PAX_FORMAT) as tar:
            archive = Archive(tar)
            archive.add_document(contents.MANIFEST, manifest)
            moment.write(archive, secrets=secrets, results=results)
            archive.add_document(contents.END, End(archive.unfinished))
        file.flush()
        os.fsync(file.fileno())
        part.rename(target)
        sync_paths([target.parent])
    partly = [name.removeprefix("inbox/") for name in archive.unfinished if name.startswith("inbox/")]
    left_out = [name for name in partly if name not in moment.unreadable]
    return Made(manifest, len(moment.drops) - len(partly), left_out, moment.unreadable, target.stat().st_size)
