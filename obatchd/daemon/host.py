"""The composition root of ``obatchd host``: builds the parts of a host of many. :mod:`obatchd.daemon.host_life` runs
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import attrs

from obatchd.burnin.run.manager import Burnin
from obatchd.cluster.calls import Desk
from obatchd.cluster.host.alarms import AlarmsToHead
from obatchd.cluster.host.desks.burnin import HostBurninDesk
from obatchd.cluster.host.desks.care import CareDesk
from obatchd.cluster.host.desks.doctor import HostDoctorDesk
from obatchd.cluster.host.desks.gpus import GpuDesk
from obatchd.cluster.host.desks.models import ModelDesk
from obatchd.cluster.host.desks.servers import ServerDesk
from obatchd.cluster.host.directory import HostDirectory
from obatchd.cluster.host.facts import FileFacts
from obatchd.cluster.host.head import Head
from obatchd.cluster.host.mover import HeadMover
from obatchd.cluster.host.news import News
from obatchd.cluster.host.settings import HostSettings
from obatchd.cluster.host.siblings import SiblingExchange
from obatchd.cluster.messages import Terms
from obatchd.daemon.burnin import BurninHost, NoBatchWork, stress_files
from obatchd.daemon.machine import Host, machine
from obatchd.documents.gpus import Gpus, Reading
from obatchd.documents.models import PullProgress
from obatchd.gpucare.cards import GpuCards
from obatchd.gpucare.past import Past
from obatchd.gpucare.policy import GpuPolicy
from obatchd.servers.managed import ManagedServer
from obatchd.tasks import TaskOwner

_NOT_OURS = "ollama_instances of a host are not used: name them in the file of the head"


class Identity(NamedTuple):
    """Who this host is. Implements :class:`obatchd.cluster.host.visit.Identity`."""

    name: str
    instance: str
    machine: str
    allocation: str


@attrs.define(eq=False)
class Sights:
    """What there is to see. Implements :class:`obatchd.cluster.host.news.Sights`."""

    _machine: Host
    _cards: GpuCards
    _settings: HostSettings

    def servers(self) -> Mapping[str, ManagedServer]:
        found = self._machine.fleet.servers
        return {name: server for name, server in found.items() if isinstance(server, ManagedServer)}

    def gpus(self) -> Gpus:
        return self._cards.all()

    def readings(self) -> Mapping[str, Reading]:
        return self._machine.probe.readings

    def notices(self) -> list[str]:
        others = [_NOT_OURS] if self._settings.value.ollama_instances else []
        return [*self._machine.fleet.notices, *self._machine.models.notices, *self._settings.notices, *others]

    def pulls(self) -> Mapping[str, PullProgress]:
        return self._machine.models.pulls

    def share(self) -> str:
        return self._machine.models.share


@attrs.define(eq=False)
class HostParts:
    """All parts of a host, but for the way to its head. Implements :class:`obatchd.cluster.host.visit.HostParts`."""

    machine: Host
    policy: GpuPolicy
    burnin: Burnin
    siblings: SiblingExchange
    news: News
    desks: Mapping[str, Desk]
    _sights: Sights
    _alarms: AlarmsToHead
    _settings: HostSettings
    asks: bool = attrs.field(default=False, init=False)

    def servers(self) -> Mapping[str, ManagedServer]:
        return self._sights.servers()

    def obey(self, terms: Terms) -> None:
        self._settings.obey(terms)

    def entered(self) -> None:
        self.news.begin()
        self._alarms.tell()


async def build(settings: HostSettings, directory: HostDirectory, head: Head, owner: TaskOwner) -> HostParts:
    """The parts; of them the probe runs already."""
    facts = FileFacts(directory.facts_file)
    here = await machine(settings.current, directory.root, directory.instance, facts, owner)
    alarms = AlarmsToHead(head)
    mover = HeadMover(head)
    policy = GpuPolicy(settings.current, here.watch, here.fleet, mover, alarms, owner)
    cards = GpuCards(policy, here.probe)
    sights = Sights(here, cards, settings)
    news = News(head, sights)
    here.fleet.listen(news)
    files = stress_files(directory.root, settings.value)
    tested = BurninHost(here.fleet, policy, here.models, NoBatchWork(), settings.current, alarms, files)
    runs = Burnin(directory.root / "burnin", tested)
    desks: dict[str, Desk] = {
        "servers": ServerDesk(here.fleet, news),
        "models": ModelDesk(here.models),
        "gpus": GpuDesk(cards, Past(policy, cards)),
        "burnin": HostBurninDesk(runs),
        "care": CareDesk(mover),
        "doctor": HostDoctorDesk(settings.current, directory.root, here.fleet),
    }
    return HostParts(here, policy, runs, SiblingExchange(head, here.watch), news, desks, sights, alarms, settings)


@attrs.define(eq=False)
class NoParts:
    """A host before its first start, which has no servers until it knows how its head wants them. Implements
    :class:`obatchd.cluster.host.visit.HostParts`."""

    _settings: HostSettings
    asks: bool = attrs.field(default=True, init=False)
    desks: Mapping[str, Desk] = attrs.field(factory=dict, init=False)

    def servers(self) -> Mapping[str, ManagedServer]:
        return {}

    def obey(self, terms: Terms) -> None:
        self._settings.obey(terms)

    def entered(self) -> None:
        pass
