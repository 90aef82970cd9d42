"""Whether machines share a store: then a model is pulled into it once, and not by two of them at a time."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

# Of file systems that several machines mount; what each mounts is called the same on all of them.
_NETWORK = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "gpfs", "beegfs", "wekafs", "afs", "fuse.glusterfs", "fuse.ceph",
    "fuse.sshfs", "fuse.juicefs",
))  # fmt: skip
_ESCAPED = re.compile(r"\\([0-7]{3})")
_MOUNTS = Path("/proc/self/mountinfo")


@lru_cache(maxsize=8)
def share_of(path: Path, mounts: Path = _MOUNTS) -> str:
    """What other machines that mount the same directory call it, too; empty for one of this machine's own disks.

    Asked once for each path: a file server that does not answer holds up whoever asks.
    """
    place = os.path.realpath(path)
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    best, share = "", ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        root, point = map(_plain, fields.split(" ")[3:5])
        kind, source = rest.split(" ")[:2]
        if len(point) >= len(best) and (place == point or place.startswith(f"{point.rstrip('/')}/")):
            inside = os.path.normpath(os.path.join(root, os.path.relpath(place, point)))
            best, share = point, f"{_plain(source)}:{inside}" if kind in _NETWORK else ""
    return share


class Turns:
    """Lets one machine at a time pull into a store that several share."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}

    def at(self, share: str) -> asyncio.Lock:
        """Held while somebody pulls there; one of its own where nobody shares it."""
        return self._locks.setdefault(share, asyncio.Lock()) if share else asyncio.Lock()


def each_once(shares: Mapping[str, str]) -> list[str]:
    """The names of stores; of those with the same share the first."""
    found: dict[tuple[str, str], str] = {}
    for store, share in shares.items():
        found.setdefault((share, "" if share else store), store)
    return list(found.values())


def _plain(text: str) -> str:
    """A field of the kernel, which writes spaces as ``\\040``."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
