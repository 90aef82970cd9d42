"""Directories that only one owner, administrators and the daemon can enter: those of a system service's users.

The daemon may not give files away (that needs CAP_CHOWN), so it keeps them and grants reading by an access control
list; a default list on the directory passes the grant on to everything made inside, whatever the umask.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
import struct
from contextlib import suppress
from pathlib import Path

from obatchd.errors import SpoolError
from obatchd.spool.flush import sync_paths

# acl(5), and linux/posix_acl_xattr.h for how a list looks as an extended attribute: tag, permissions, id.
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_VERSION, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF  # ACL_UNDEFINED_ID
_ALL, _READ = 7, 5


class OwnerDirectories:
    """Makes them. ``admin_gid`` is the group of the administrators, None where there is none."""

    def __init__(self, admin_gid: int | None) -> None:
        self._admin_gid = admin_gid

    def prepare(self, parent: Path) -> None:
        """Let everybody pass through ``parent``, but not list it; and make sure that access lists work there.

        Raises SpoolError where they do not.
        """
        try:
            os.chmod(parent, 0o711)
            trial = parent / ".acl"
            with suppress(FileNotFoundError):
                trial.rmdir()
            trial.mkdir(mode=0o700)
            try:
                self._grant(trial, os.geteuid())
            finally:
                trial.rmdir()
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise SpoolError(
                    f"{parent} is on a file system without access control lists, which a system service needs to give "
                    "each user their own results: mount it with the option acl, or use ext4, xfs or btrfs.",
                    code="no_acl",
                ) from None
            raise SpoolError(f"{parent} cannot be prepared for its users: {error.strerror}", code="spool") from None

    def make(self, parent: Path, uid: int) -> None:
        """``parent/<uid>``, and beside it a link with the user's name; existing ones stay.

        Raises OSError where the disk refuses.
        """
        directory = parent / str(uid)
        if not directory.is_dir():
            fresh = parent / f".{uid}.new"  # nobody sees it before it has its list
            with suppress(FileNotFoundError):
                shutil.rmtree(fresh)
            fresh.mkdir(mode=0o700)
            self._grant(fresh, uid)
            os.rename(fresh, directory)
            sync_paths([parent])
        _link_name(directory, uid)

    def _grant(self, directory: Path, uid: int) -> None:
        entries = [(_USER_OBJ, _ALL, _NOBODY), (_USER, _READ, uid), (_GROUP_OBJ, 0, _NOBODY)]
        if self._admin_gid is not None:
            entries.append((_GROUP, _READ, self._admin_gid))
        entries += [(_MASK, _READ, _NOBODY), (_OTHER, 0, _NOBODY)]
        packed = _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)
        os.setxattr(directory, _ACCESS, packed)
        os.setxattr(directory, _DEFAULT, packed)


def _link_name(directory: Path, uid: int) -> None:
    """``outbox/alice`` for ``outbox/1001``: names may change or come from a server that is down, uids do neither."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return
    if name.isdigit() or "/" in name or name.startswith("."):
        return
    link = directory.parent / name
    with suppress(OSError):
        if stat.S_ISLNK(link.lstat().st_mode) and os.readlink(link) != directory.name:
            link.unlink()  # the link of an earlier user of that name
    with suppress(FileExistsError):
        os.symlink(directory.name, link)
