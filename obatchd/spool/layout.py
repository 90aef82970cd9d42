"""The directories of a spool, and the one way user data gets into a path."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from obatchd.errors import SpoolError
from obatchd.holding import HeldError, hold
from obatchd.jobs.model import PACKED_ENDINGS, default_id, repeated_id, written_line
from obatchd.spool.owners import OwnerDirectories

RESTORING = "restoring"  # in work: a restore from a backup is under way, or was cut short
_SYSTEM_SPOOL = Path("/var/spool/obatch")
_TMPFILES = Path("/usr/lib/tmpfiles.d/obatch.conf")
_REPAIR = "sudo systemd-tmpfiles --create obatch.conf"
_NAME_BYTES = 100
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]")
# Ids that could meet the number of another line, or another request's altered id with its line appended: only a name
# with "_" can be an altered one.
_AMBIGUOUS_ID = re.compile(r"\d{7,}|(\d{7,}|.*_.*)\.[1-9]\d*")
_SUFFIXES = (*PACKED_ENDINGS, ".jsonl", ".ndjson", ".json")
# File systems on which inotify does not see changes by other hosts (inotify(7), "Limitations and caveats").
_REMOTE_KINDS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"})


def safe_name(label: str) -> tuple[str, bool]:
    """``label`` as a file name, and whether it had to be altered.

    Only ``[A-Za-z0-9._-]``, no leading dot, 1 to 100 bytes. This is the only way user data enters a path.
    """
    name = _FORBIDDEN.sub("_", label)[:_NAME_BYTES]
    if not name or name.startswith("."):
        name = ("_" + name.lstrip("."))[:_NAME_BYTES]
    return name, name != label


def file_stem(label: str | None, line: int) -> str:
    """The name of a response file: the request's id, made unique where ids could meet.

    An altered id, and one that another request could have, gets ``.<line>`` appended.
    """
    line, number = written_line(line)
    if number:  # no other name has the mark in it
        label = label.removesuffix(f"#{number}") if label else None
        return repeated_id(file_stem(label, line), number)
    implied = default_id(line)
    if label is None or label == implied:
        return implied
    name, altered = safe_name(label)
    return f"{name}.{line}" if altered or _AMBIGUOUS_ID.fullmatch(name) else name


def drop_stem(name: bytes) -> str:
    """A drop's name without the endings of our formats, safe in a path."""
    text = name.decode("utf-8", "replace")
    for suffix in _SUFFIXES:
        if text.lower().endswith(suffix):
            text = text[: -len(suffix)]
    return safe_name(text)[0]


class FreeSpace(NamedTuple):
    bytes: int
    inodes: int  # -1 where the file system does not count them
    read_only: bool = False


class Layout:
    """A spool whose directories exist and can be written, on whatever file systems. Made by :meth:`open`."""

    def __init__(self, root: Path, owners: OwnerDirectories | None = None) -> None:
        self.root = root
        self._owners = owners
        self.inbox = root / "inbox"
        self.work = root / "work"
        self.outbox = root / "outbox"
        self.failed = root / "failed"
        self.jobs = self.work / "jobs"
        self.sources = self.work / "sources"  # fetched texts, by owner
        self.uuid = ""

    @classmethod
    def open(cls, root: Path, owners: OwnerDirectories | None = None) -> Layout:
        """The spool at ``root``; missing directories are created. With ``owners`` each has a directory of their own.

        Raises SpoolError where it cannot be used, with what to do.
        """
        layout = cls(root.resolve(), owners)
        modes = {layout.root: 0o755, layout.inbox: 0o700, layout.work: 0o700, layout.outbox: 0o700}
        modes |= {layout.failed: 0o700, layout.jobs: 0o700}
        for path, mode in modes.items():
            _directory(path, mode)
        if owners is not None:
            for path in (layout.outbox, layout.failed):
                owners.prepare(path)
        if (layout.work / RESTORING).exists():
            raise SpoolError(
                f"a backup is being restored into {layout.root}, or that was cut short: then delete what is in its "
                "folders inbox, work, outbox and failed, and restore it again",
                code="restoring",
            )
        layout.uuid = layout._identity()
        return layout

    def inbox_problem(self) -> str:
        """Why no drop can be taken from the inbox as it is now, which somebody may have changed; empty when one can.

        Raises OSError where it is not there.
        """
        return _closed(self.inbox)

    def _identity(self) -> str:
        path = self.work / "uuid"
        with contextlib.suppress(FileNotFoundError):
            if known := path.read_text("ascii").strip():
                return known
        fresh = str(uuid.uuid4())
        temporary = path.with_suffix(".new")
        temporary.write_text(fresh + "\n", "ascii")
        temporary.replace(path)
        return fresh

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the spool for one daemon. Raises SpoolError where another daemon has it (``locked``)."""
        try:
            descriptor = hold(self.work / ".lock")
        except HeldError as held:
            raise SpoolError(
                f"another obatchd (pid {held.pid}) works on {self.root}. One daemon per spool: stop it first "
                f"(obatchctl --spool {self.root} status shows it), or use another one with --spool DIR.",
                code="locked",
            ) from None
        except OSError as error:
            raise SpoolError(
                f"{self.work} cannot be locked ({error.strerror}): it must be writable, on a local disk with room. "
                "Mend that, or use another --spool.",
                code="spool",
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def job_dir(self, job: str) -> Path:
        return self.jobs / job

    def outbox_dir(self, job: str, name: bytes, owner: int) -> Path:
        parent = self.outbox if self._owners is None else self.outbox / str(owner)
        return parent / f"{drop_stem(name)}.{job}"

    def outbox_dirs(self) -> Iterator[Path]:
        parents: Iterable[Path] = [self.outbox]
        if self._owners is not None:
            parents = [path for path in self.outbox.iterdir() if path.name.isdigit() and path.is_dir()]
        for parent in parents:
            yield from (path for path in parent.iterdir() if path.is_dir())

    def make_owner(self, owner: int) -> None:
        """Make sure that an owner's own directories are there, where owners have some.

        Raises OSError where the disk refuses.
        """
        if self._owners is not None:
            for parent in (self.outbox, self.failed):
                self._owners.make(parent, owner)

    def failed_dir(self, job: str, name: bytes, owner: int) -> Path:
        """Where a drop goes that could not become a job."""
        return self.failed / str(owner) / f"{drop_stem(name)}.{job}"

    def free(self, *, doubtful: bool = False) -> FreeSpace:
        """The space left for us on the file system of ``work``; ``doubtful``: find out whether anything can be written.

        Raises OSError where the disk does not say.
        """
        status = os.statvfs(self.work)
        read_only = bool(status.f_flag & os.ST_RDONLY) or (doubtful and _takes_no_file(self.work))
        return FreeSpace(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else -1, read_only)

    def filesystem_kind(self) -> str:
        """The type of the inbox's file system as the kernel names it, or ``unknown``."""
        return _filesystem_kind(self.inbox)

    def is_remote(self) -> bool:
        """Whether changes in the inbox may come without events, so that only rescans find them."""
        kind = self.filesystem_kind()
        return kind in _REMOTE_KINDS or kind.startswith("fuse")


_OCTAL = re.compile(rb"\\([0-7]{3})")


def _filesystem_kind(path: Path) -> str:
    """Of the mount that ``path`` lies on, after proc_pid_mountinfo(5); the last one listed hides the others."""
    wanted, found, kind = os.fsencode(path), b"", "unknown"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as mounts:
        for mount in mounts:
            head, _, tail = mount.partition(b" - ")
            point = _OCTAL.sub(lambda code: bytes([int(code[1], 8)]), head.split(b" ")[4])
            inside = wanted == point or wanted.startswith(point.rstrip(b"/") + b"/")
            if inside and len(point) >= len(found):
                found, kind = point, tail.split(b" ")[0].decode()
    return kind


def size_bytes(directory: Path) -> int:
    """Bytes of the files below ``directory`` that may be seen; 0 where there is none."""
    return sum(
        status.st_size
        for folder, folders, files in os.walk(directory)
        for name in (*folders, *files)
        if not stat.S_ISDIR((status := os.lstat(os.path.join(folder, name))).st_mode)
    )


def input_bytes(path: Path) -> int:
    """The size of a drop: of a file, or of all files in a folder. Raises OSError where it is gone."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size
    return sum(_file_bytes(os.path.join(place, name)) for place, _, files in os.walk(path) for name in files)


def _file_bytes(path: str) -> int:
    """0 of anything that is no file."""
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def _directory(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise SpoolError(f"{path} is not a directory of its own (a link?); replace it by one", code="not_directory")
    except FileExistsError:
        raise SpoolError(f"{path} is not a directory; move it away and start again", code="not_directory") from None
    except PermissionError:
        raise SpoolError(
            f"{path} cannot be created: permission denied. Give the daemon's user the spool (chown), or use another "
            "--spool DIR.",
            code="permission",
        ) from None
    except OSError as error:
        raise SpoolError(
            f"{path} cannot be created: {error.strerror}. Choose another place with --spool DIR.", code="spool"
        ) from None
    if problem := _closed(path):
        raise SpoolError(problem, code="permission")


def _closed(path: Path) -> str:
    if os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True) and not os.statvfs(path).f_flag & os.ST_RDONLY:
        return ""
    remedy = (
        f"check its owner and mode ({_REPAIR} puts them right)" if _of_package(path) else "check its owner and mode"
    )
    return (
        f"{path} cannot be read and written by uid {os.geteuid()}: {remedy}, and that its file system is not mounted "
        "read-only."
    )


def _of_package(path: Path) -> bool:
    """Whether the package has laid down the owner and the mode of ``path``."""
    return path.is_relative_to(_SYSTEM_SPOOL) and _TMPFILES.exists()


def _takes_no_file(path: Path) -> bool:
    """Whether the file system is read-only although its flags do not say so.

    From Linux 6.15 on ext4 stops writing after an error (errors=remount-ro) without changing the flags that statvfs(2)
    shows; only the mount option ``emergency_ro`` and the errors tell (fs/ext4/super.c).
    """
    try:
        os.close(os.open(path, os.O_TMPFILE | os.O_WRONLY, 0o600))  # it never has a name
    except OSError as error:
        return error.errno == errno.EROFS
    return False
