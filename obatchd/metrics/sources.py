"""The parts of the daemon that metrics are read from, and what nobody else counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from attrs import define, field, frozen

from obatchd.burnin.journal.records import Ended
from obatchd.cluster.head.joined import JoinedHost
from obatchd.documents.burnin.report import BurninBrief
from obatchd.engine.engine import Engine
from obatchd.gpucare.policy import GpuPolicy
from obatchd.gpus.model import XidEvent
from obatchd.gpus.monitor import MonitorListener
from obatchd.operations.host import HostCommands

_MOST_XIDS = 100  # of one card, by number
_OTHER = "other"


@define(eq=False)
class XidCounts(MonitorListener):
    """The XIDs since the daemon began, by card and number."""

    counts: dict[str, Counter[str]] = field(factory=dict, init=False)

    def xid(self, event: XidEvent) -> None:
        mine = self.counts.setdefault(event.uuid, Counter())
        number = str(event.xid)
        mine[number if number in mine or len(mine) < _MOST_XIDS else _OTHER] += 1


class Burnins(Protocol):
    """Burn-ins as metrics see them: :class:`obatchd.burnin.run.manager.Burnin`, or of a head
    :class:`obatchd.cluster.head.burnin.runs.HostsBurnin`."""

    @property
    def ended(self) -> Ended | None:
        """The end of the latest run that is over."""

    def brief(self) -> BurninBrief | None:
        """The run in progress in a few words."""


@frozen(eq=False)
class Sources:
    """The parts that are read."""

    engine: Engine
    policy: GpuPolicy
    burnin: Burnins
    host: HostCommands
    xids: XidCounts
    http_calls: Counter[tuple[str, str, int]]  # method, route, status
    joined: Mapping[str, JoinedHost] = field(factory=dict)  # by name
