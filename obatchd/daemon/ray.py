"""The launcher of hosts on the nodes of Ray, where the settings name that engine, or did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obatchd.daemon.hosts import JoinedHosts
from obatchd.errors import ClusterError
from obatchd.live.work import Work

if TYPE_CHECKING:
    from obatchd.cluster.head.launcher import Launcher

_FILE = "cluster/ray.json"  # below work/


class Codes:
    """Codes for hosts that an engine starts. Implements :class:`obatchd.cluster.head.launcher.Admission`."""

    def __init__(self, joined: JoinedHosts | None) -> None:
        self._joined = joined

    def names(self) -> list[str]:
        return self._joined.roster.names() if self._joined is not None else []

    def link(self) -> str:
        if self._joined is None:
            raise ClusterError("hosts cannot join: [cluster] listen is empty", code="no_door")
        self._joined.door.link("")  # raises where there is no door, before a code is made in vain
        return str(self._joined.door.link(self._joined.roster.make_code().secret))


def ray_launcher(work: Work, joined: JoinedHosts | None) -> Launcher | None:
    """Starts hosts on the nodes of Ray, or ends those that it started; None where there is nothing to do in Ray."""
    file = work.layout.work / _FILE
    settings = work.settings.value.cluster
    if settings.engine != "ray" and not file.exists():
        return None
    from obatchd.cluster.head.launcher import Launcher

    return Launcher(settings, file, work.layout.uuid, Codes(joined), work.owner)
