"""Restores a backup into a spool that is empty and that no daemon works on.

While it is under way, ``work/restoring`` is there, and no daemon takes the spool. What a restore that failed has
written is taken away again; after a crash the mark stays.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from obatchd.backup import contents
from obatchd.backup.contents import End, Manifest
from obatchd.errors import SpoolError
from obatchd.jobs.model import is_passed_over
from obatchd.naming import user_name
from obatchd.spool.flush import sync_filesystem, sync_paths
from obatchd.spool.layout import RESTORING, Layout
from obatchd.spool.owners import OwnerDirectories

_MADE_BY_START = frozenset((".lock", "uuid"))
_COPY_BYTES = 1024**2
_DOCUMENT_BYTES = 64 * 1024**2


def restore(backup: Path, spool: Path, admin_gid: int | None = None) -> Manifest:
    """Write everything in ``backup`` into ``spool``; the next start of a daemon there goes on with the open jobs.

    Args:
        admin_gid: group of the administrators, who may read what users of a system service have.

    Raises:
        SpoolError: the file is no whole backup, the spool is in use or not empty, or the disk refuses.
    """
    try:
        with tarfile.open(backup, "r|*") as tar:
            members = iter(tar)
            manifest = _manifest(tar, next(members, None), backup)
            if os.geteuid() == 0 != manifest.uid and not spool.exists():
                words = f"make it first:  sudo install -d -o {user_name(manifest.uid)}"
                raise SpoolError(f"there is no directory {spool}; {words} {spool}", code="no_spool")
            owners = OwnerDirectories(admin_gid) if manifest.service else None
            missing = _missing(spool.resolve())
            layout = Layout.open(spool, owners)
            with layout.lock(), _taken_away(missing), _closed(layout.inbox):
                _require_empty(layout)
                _Restoring(layout, manifest, owners).all(tar, members)
            return manifest
    except (tarfile.TarError, msgspec.DecodeError, EOFError, zlib.error) as error:
        raise SpoolError(f"{backup} is no backup of obatchd, or is damaged: {error}", code="no_backup") from None
    except OSError as error:
        place = error.filename or backup
        raise SpoolError(f"{place} cannot be restored: {error.strerror or error}", code="restore") from error


def _missing(root: Path) -> list[Path]:
    """What of a spool a restore has to make itself, innermost first."""
    work = root / "work"
    places = [work / ".lock", work / "uuid", work / "jobs", *(root / name for name in contents.FOLDERS), root]
    return [path for path in (*places, *root.parents) if not os.path.lexists(path)]


@contextmanager
def _taken_away(made: list[Path]) -> Iterator[None]:
    """What a restore that fails has made of the spool goes, under its lock, unless somebody put something there."""
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


@contextmanager
def _closed(inbox: Path) -> Iterator[None]:
    """Users can put nothing into the inbox meanwhile, such as a link that root would follow."""
    mode = stat.S_IMODE(inbox.stat().st_mode)
    inbox.chmod(0o700)
    try:
        yield
    finally:
        inbox.chmod(mode)


def _document(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read(_DOCUMENT_BYTES) if file is not None else b""


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo | None, backup: Path) -> Manifest:
    try:
        if member is not None and member.name == contents.MANIFEST:
            found = msgspec.json.decode(_document(tar, member), type=Manifest)
            if found.schema == 1:
                return found
    except msgspec.DecodeError:
        pass
    raise SpoolError(f"{backup} is no backup that this version of obatchd can read", code="no_backup")


def _require_empty(layout: Layout) -> None:
    for name in contents.FOLDERS:
        for place, folders, files in os.walk(layout.root / name):
            directory = Path(place)
            left = [file for file in files if directory != layout.work or file not in _MADE_BY_START]
            left += [folder for folder in folders if (directory / folder).is_symlink()]
            if directory == layout.inbox:  # a user can put a link into their own folder at any time
                left += [folder for folder in folders if not is_passed_over(folder)]
            if left:
                raise SpoolError(
                    f"{layout.root} is not empty: there is {directory / left[0]}. A backup is restored into an empty "
                    f"spool: name another one with --spool, or move the folders in it away first",
                    code="not_empty",
                )


class _Restoring:
    """One restore, under the lock of its spool."""

    def __init__(self, layout: Layout, manifest: Manifest, owners: OwnerDirectories | None) -> None:
        self._layout, self._manifest, self._owners = layout, manifest, owners
        status = layout.root.stat()
        self._uid, self._gid = status.st_uid, status.st_gid
        self._links: list[tuple[Path, str]] = []

    def all(self, tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo]) -> None:
        mark = self._layout.work / RESTORING
        mark.touch(0o600)
        folders = [self._layout.root / folder for folder in contents.FOLDERS]
        there = {path for folder in folders for path in folder.rglob("*")}  # of an empty spool
        sync_paths([self._layout.work])
        try:
            end = self._members(tar, members)
            unfinished = [self._layout.root.joinpath(*_parts(name)) for name in end.unfinished]
            for path in unfinished:
                _delete(path)
            for path, target in self._links:  # last, so that nothing is written through them
                if not any(path.is_relative_to(gone) for gone in unfinished):
                    os.symlink(target, path)
            (self._layout.work / "session").write_text("restored\n")  # the first start reads every file of the store
            self._give_to_daemon()
            for folder in folders:
                sync_filesystem(folder)
        except BaseException:
            for folder in folders:
                _clear(folder, there)
            self._give_to_daemon()
            mark.unlink()
            raise
        mark.unlink()
        sync_paths([self._layout.work])

    def _members(self, tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo]) -> End:
        for member in members:
            if member.name == contents.END:
                return msgspec.json.decode(_document(tar, member), type=End)
            self._one(tar, member)
        raise SpoolError("the backup was cut off: its end is missing", code="no_backup")

    def _one(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = _parts(member.name)
        path = self._layout.root.joinpath(*parts)
        if parts[0] in ("outbox", "failed") and self._owners is not None and parts[1].isdigit():
            self._owners.make(self._layout.root / parts[0], int(parts[1]))
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.issym():
            self._links.append((path, member.linkname))
        elif member.isdir():
            path.mkdir(exist_ok=True)
            self._restore_rights(path, member, parts)
        elif member.isfile() and (content := tar.extractfile(member)) is not None:
            self._write(path, content, member)
            self._restore_rights(path, member, parts)
            os.utime(path, (member.mtime, member.mtime))
        else:
            raise SpoolError(f"the backup has something that is no file: {member.name}", code="no_backup")

    @staticmethod
    def _write(path: Path, content: IO[bytes], member: tarfile.TarInfo) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o666), "wb") as file:
            shutil.copyfileobj(content, file, _COPY_BYTES)
            if file.tell() != member.size:
                raise SpoolError("the backup was cut off", code="no_backup")

    def _restore_rights(self, path: Path, member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        """Mode and owner; in directories of users the access control list says who may read."""
        if self._owners is None or parts[0] not in ("outbox", "failed"):
            path.chmod(member.mode & 0o777)
        if os.geteuid() == 0:
            known = member.uid == self._manifest.uid
            os.chown(path, *((self._uid, self._gid) if known else (member.uid, member.gid)))
        elif parts[0] == "inbox" and member.uid != self._manifest.uid:
            words = "only root can give it back to them: restore the backup with sudo"
            raise SpoolError(f"{member.name} is of another user (uid {member.uid}), and {words}", code="permission")

    def _give_to_daemon(self) -> None:
        """What root has made on the way is the daemon's."""
        if os.geteuid() != 0 or self._uid == 0:
            return
        for folder in contents.FOLDERS:
            for place, folders, files in os.walk(self._layout.root / folder):
                for name in (".", *folders, *files):
                    path = Path(place, name)
                    if path.lstat().st_uid == 0:
                        os.chown(path, self._uid, self._gid, follow_symlinks=False)


def _parts(name: str) -> tuple[str, ...]:
    """The path of a member below the spool. Raises SpoolError where it leads elsewhere."""
    parts = Path(name).parts
    if len(parts) < 2 or parts[0] not in contents.FOLDERS or ".." in parts:
        raise SpoolError(f"the backup has a file that no spool has: {name}", code="no_backup")
    return parts


def _clear(directory: Path, there: set[Path]) -> None:
    """Delete what is in a directory but for what was there."""
    for path in list(directory.iterdir()):
        if path not in there:
            _delete(path)
        elif path.is_dir():
            _clear(path, there)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
