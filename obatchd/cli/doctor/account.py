"""What the daemon's user may do on this host, asked as that user: root may do everything and would find no fault."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path
from typing import NamedTuple

_TIMEOUT_S = 10.0


class Account(NamedTuple):
    """Somebody else, in whose name root may ask."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: Path


def owner_of(spool: Path) -> int | None:
    """The daemon's user, to whom its spool belongs; None where there is none yet."""
    try:
        return spool.stat().st_uid
    except OSError:
        return None


def other_account(spool: Path) -> Account | None:
    """The daemon's user, where the caller is root and the daemon is not."""
    owner = owner_of(spool)
    if os.geteuid() != 0 or not owner:
        return None
    try:
        user = pwd.getpwuid(owner)
        groups = tuple(os.getgrouplist(user.pw_name, user.pw_gid))
    except KeyError:
        return None
    return Account(user.pw_name, owner, user.pw_gid, groups, Path(user.pw_dir))


def may(account: Account | None, path: Path, rights: str) -> bool:
    """Whether ``account``, or for None the caller, has all of these ``rights`` of ``test``: r, w, x."""
    if account is not None:
        script = " && ".join(f'test -{right} "$1"' for right in rights)
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", script, "sh", path], cwd="/", timeout=_TIMEOUT_S, stderr=subprocess.DEVNULL,
                user=account.uid, group=account.gid, extra_groups=account.groups,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):  # the caller may not become somebody else, as in a container
            return True
        return done.returncode == 0
    return os.access(path, sum({"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}[right] for right in rights))
