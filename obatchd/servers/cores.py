"""How many threads a server on the CPU gets: the cores that this process may use, within its control groups' quotas.

Sources: cgroups(7); the kernel's admin-guide/cgroup-v2 (``cpu.max``) and scheduler/sched-bwc (``cpu.cfs_quota_us`` of
version 1); proc_pid_mountinfo(5). A cpuset narrows the affinity by itself; a quota shows in the control group only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROCESS = Path("/proc/self")
_CPUS = Path("/sys/devices/system/cpu")


def cpu_threads(cores: int, servers: int) -> int:
    """Threads of each of ``servers`` CPU servers: never more in all than there are cores.

    Ollama's threads spin while they wait for each other: two servers with two threads each on two cores were measured
    200 times slower than with one thread each. A server alone leaves one core to the rest of the machine.
    """
    return max(1, cores - 1) if servers == 1 else max(1, cores // servers)


def usable_cores(process: Path = _PROCESS, cpus: Path = _CPUS) -> int:
    """Cores this process may use, at least 1: hyperthreads not counted twice, parts of a core not at all.

    ``process`` is its directory in /proc, ``cpus`` that of the CPUs in sysfs.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_read(cpus / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    return max(1, int(min(len(cores), _quota_cores(process))))


def _quota_cores(process: Path) -> float:
    """The smallest quota of the process's control group and of those above it, in cores; infinite without one."""
    return min((_limit(group) for group in _groups(process)), default=math.inf)


def _groups(process: Path) -> Iterator[Path]:
    """The directories that may hold a quota of the process, of either version of control groups."""
    paths: dict[str, str] = {}  # by the name of the mounted file system
    for line in _read(process / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    for line in _read(process / "mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        kind = source.partition(" ")[0]
        if kind in paths and (kind == "cgroup2" or "cpu" in source.rpartition(" ")[2].split(",")):
            root, point = (field.encode().decode("unicode_escape") for field in mount.split(" ")[3:5])
            below = PurePosixPath(paths[kind])
            # In a container the path may be the host's, of which only the mounted part is seen.
            inside = below.relative_to(root) if below.is_relative_to(root) else PurePosixPath()
            yield from (Path(point, part) for part in (inside, *inside.parents) if ".." not in part.parts)


def _limit(group: Path) -> float:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    limited = quota.isdecimal() and period.isdecimal() and int(period) > 0  # else "max", -1 or nothing
    return int(quota) / int(period) if limited else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
