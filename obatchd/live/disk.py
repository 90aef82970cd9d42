"""When the disk is too full to go on."""

from __future__ import annotations

from obatchd.settings.tables.spool import DiskSettings
from obatchd.spool.layout import FreeSpace

_RESUME = 1.1  # this much more than the least must be free again, so that the daemon does not go on and off


def disk_trouble(free: FreeSpace, limits: DiskSettings, *, low_already: bool) -> str:
    """Why nothing more should be begun; empty when all is well."""
    factor = _RESUME if low_already else 1
    found = []
    if free.read_only:
        found.append("it is mounted read-only; look at the kernel's log (dmesg) for errors of the disk")
    if free.bytes < limits.min_free_bytes * factor:
        found.append(
            f"{free.bytes // 1024**2} MiB free, less than min_free_bytes ({limits.min_free_bytes // 1024**2} MiB); "
            "free some space"
        )
    if 0 <= free.inodes < limits.min_free_inodes * factor:
        found.append(
            f"{free.inodes} inodes free, less than min_free_inodes ({limits.min_free_inodes}); delete some files"
        )
    return "; ".join(found)
