"""Joined hosts: the parts of the head that are there only where ``[cluster] listen`` names an address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from obatchd.cluster.head.care.crashes import CrashesOfAll
from obatchd.cluster.head.hosts import Hosts
from obatchd.cluster.head.joined import Attached
from obatchd.cluster.head.models import HostStores
from obatchd.cluster.head.reporting import HostAlarms
from obatchd.cluster.head.server import HostedListener
from obatchd.daemon.machine import Host
from obatchd.daemon.process import learn_structs
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.events import CrashListener
from obatchd.gpucare.moving import CrashesHere
from obatchd.gpucare.watch import GpuWatch
from obatchd.live.work import Work
from obatchd.operations.audit import HostsJoined
from obatchd.tasks import TaskSet
from obatchd.telling.alarms import Alarms

if TYPE_CHECKING:
    from obatchd.cluster.head.door import Door
    from obatchd.cluster.head.roster import Roster


@dataclass(frozen=True)
class JoinedHosts:
    """Who may come, who is here, and the door by which they come."""

    roster: Roster
    hosts: Hosts
    door: Door
    attached: Attached
    watch: GpuWatch

    def crashes(self, own: CrashesHere) -> CrashListener:
        """Tells of each crash whoever takes care of the card; ``own`` does of those of this machine."""
        return CrashesOfAll(own, self.attached.guests, self.hosts.hosts, self.attached.tasks)

    async def start(self) -> None:
        """Let hosts in. Raises ConfigError where the library for the head's certificate is missing."""
        self.attached.tasks.start(self.attached.board.run(self.watch), "siblings")
        self.attached.tasks.start(self.hosts.tidy(), "hosts-tidy")
        await self.door.start()

    async def stop(self) -> None:
        """End all sessions; the hosts keep their models, and dial for the next head."""
        await self.hosts.stop()
        await self.door.stop()


def joined_hosts(
    work: Work, here: Host, dispatcher: Dispatcher, listener: HostedListener, alarms: Alarms
) -> JoinedHosts | None:
    """None where hosts cannot join. What TLS needs is imported only where they can."""
    if work.settings.value.cluster.door is None:
        return None
    from obatchd.cluster.head.door import DIRECTORY, Door
    from obatchd.cluster.head.roster import Roster

    learn_structs()
    roster = Roster(work.layout.work / DIRECTORY / "hosts.json")
    attached = Attached(dispatcher, here.fleet.guests, listener, TaskSet(work.owner))
    hosts = Hosts(roster, work.settings, attached, HostAlarms(alarms))
    here.models.elsewhere = HostStores(hosts.hosts)
    door = Door(work.settings, work.layout.work, roster, hosts, HostsJoined(work.audit))
    return JoinedHosts(roster, hosts, door, attached, here.watch)
