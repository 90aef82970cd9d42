"""Consequences of the state of the GPUs for servers and requests: quarantine, lending, hours of use.

The monitor judges, servers obey, whoever gives them work moves requests; they do not know each other.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

import attrs

from obatchd.documents.alarms import Announcer, GpuQuarantined, GpusUnknown
from obatchd.documents.gpus import GpuEvent
from obatchd.gpucare.moving import CrashesHere, WorkMover
from obatchd.gpucare.watch import GpuWatch, servers_on
from obatchd.gpus.monitor import Monitor, MonitorListener, Quarantine
from obatchd.servers.fleet import Fleet
from obatchd.servers.managed import ManagedServer
from obatchd.servers.states import ServerState
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskSet

_TICK_S = 1.0
QUARANTINE = "quarantine"  # of a server, and of dispatch when no GPU is left
_LENT, _HOURS = "lent", "hours"
_FLUSH_S = 60.0
_BLIND_S = 120.0  # as the alert ObatchBlind
_DANGER = ("near_shutdown", "lost")


@attrs.define(eq=False)
class GpuPolicy(MonitorListener, CrashesHere):
    """Connects the health of GPUs, loans and hours of use with servers and dispatch."""

    _settings: Current[Settings]
    watch: GpuWatch
    fleet: Fleet
    _mover: WorkMover
    _announcer: Announcer
    _ticks: TaskSet = attrs.field(alias="owner", converter=TaskSet)  # without them GPUs are cared for by nobody
    _actions: TaskSet = attrs.field(default=attrs.Factory(TaskSet, takes_self=True), init=False)
    _blind_s: float | None = attrs.field(default=None, init=False)  # since when; infinity once that was told
    _flushed_s: float = attrs.field(factory=time.monotonic, init=False)

    @property
    def monitor(self) -> Monitor:
        return self.watch.monitor

    def task_failed(self, name: str, error: BaseException) -> None:
        """Trouble with one GPU, which is in the log, does not end the care of the others."""

    def start(self) -> None:
        """Begin to listen; called before any server has begun, so that a GPU in quarantine never gets one."""
        for uuid, record in self.monitor.records.items():
            if record.quarantine is not None:
                for server in servers_on(self.fleet, uuid):
                    server.quarantine_at_start(f"{record.quarantine.reason} (GPU {uuid})")
        self._mover.listen_to_crashes(self)
        self._look()
        self.monitor.listen(self)
        self.watch.probe.listen(self.monitor)
        if self.monitor.tracks:  # the log may also say why the driver is gone
            self.watch.kernel_log.start()
        self._ticks.start(self._run(), "gpu-policy")

    async def stop(self) -> None:
        await self._ticks.stop()
        await self._actions.stop()
        await self.watch.kernel_log.stop()
        await asyncio.to_thread(self.monitor.save)
        await asyncio.to_thread(self.watch.history.close)

    async def servers_ended(self) -> None:
        """Remember when: after ``stop`` and the end of the servers."""
        self._note_ends()
        await asyncio.to_thread(self.monitor.save)

    # Messages of the monitor and the servers.

    def health_event(self, event: GpuEvent) -> None:
        if event.kind in ("quarantine", "release"):  # too rare and too important to wait for the minute
            self._flushed_s = float("-inf")

    def crashed(self, server_id: str, work: str, crashed_s: float) -> None:
        for card in self.cards_of(server_id):
            self.monitor.crashed(card, work, _epoch_s(crashed_s))

    def cleared(self, server_id: str, work: str, crashed_s: float, answered_by: str) -> None:
        words = f"{server_id} crashed, and {answered_by} answered what it was working on"
        self.cleared_by(server_id, work, crashed_s, self.cards_of(answered_by), words)

    def cleared_by(self, server_id: str, work: str, crashed_s: float, cards: set[str], reason: str) -> None:
        for card in self.cards_of(server_id):
            self.monitor.cleared(card, work, _epoch_s(crashed_s), cards, reason)

    def cards_of(self, server_id: str) -> set[str]:
        """None of a server on the CPU or elsewhere, which therefore proves nothing about a card here."""
        server = self.fleet.servers.get(server_id)
        return {gpu.card for gpu in server.gpus} if isinstance(server, ManagedServer) else set()

    def quarantined(self, card: str, quarantine: Quarantine, urgent: bool) -> None:
        who = self.monitor.tracks[card].identity
        slot = who.slot or who.pci_bus_id
        self._announcer.announce(GpuQuarantined(
            card, who.index, who.serial, slot, quarantine.reason, quarantine.by, quarantine.action
        ))  # fmt: skip
        reason = f"{quarantine.reason} (GPU {card})"
        for server in servers_on(self.fleet, card):
            server.hold(QUARANTINE, reason)
            self._actions.start(self._withdraw(server, reason, urgent=urgent), f"withdraw-{server.id}")

    async def _withdraw(self, server: ManagedServer, reason: str, *, urgent: bool) -> None:
        """Take a server's work away and end it; without a strike, because its requests are not to blame.

        A burn-in goes on, because it looks for just this; but not where it would hurt the hardware.
        """
        while server.under_test and not self._in_danger(server):
            await asyncio.sleep(_TICK_S)
        if not self._is_bad(server):
            return  # released meanwhile
        await self._empty(server, 0.0 if urgent else self._settings.value.servers.drain_s)
        for gpu in server.gpus:
            self.monitor.ended(gpu.card, time.time())
        await server.quarantine(reason)
        self._look()

    def _is_bad(self, server: ManagedServer) -> bool:
        """Whether one of its cards is in quarantine."""
        return any((record := self.monitor.records.get(gpu.card)) and record.quarantine for gpu in server.gpus)

    def _in_danger(self, server: ManagedServer) -> bool:
        found = [self.monitor.assessments.get(gpu.card) for gpu in server.gpus]
        return any(finding.signal in _DANGER for each in found if each for finding in each.findings)

    async def _empty(self, server: ManagedServer, patience_s: float) -> None:
        """Wait for requests in flight, then move the rest to other servers."""
        await self._mover.vacate(server.id, patience_s, "its GPU is taken out of use")

    # As time goes by.

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._look()
            self._tell_if_blind()
            if self.monitor.dirty:
                await asyncio.to_thread(self.monitor.save)
            if time.monotonic() - self._flushed_s >= _FLUSH_S:
                self._flushed_s = time.monotonic()
                await asyncio.to_thread(self.watch.history.flush)

    def _look(self) -> None:
        now_s = time.time()
        closed = not in_hours(self._settings.value.gpus.allow, datetime.fromtimestamp(now_s))
        for uuid, record in self.monitor.records.items():
            if record.lent_until_s and now_s >= record.lent_until_s:
                self.monitor.lend(uuid, 0.0)
        servers = self.fleet.servers.values()
        hours = f"its GPU may be used at {', '.join(self._settings.value.gpus.allow)} only (gpus.allow)"
        for each in servers:
            if isinstance(each, ManagedServer) and each.gpus:
                records = [self.monitor.records.get(gpu.card) for gpu in each.gpus]
                until_s = max(record.lent_until_s if record else 0.0 for record in records)
                until = time.strftime("%d %b %H:%M", time.localtime(until_s))
                self._keep(each, _LENT, f"lent until {until}" if until_s else "")
                self._keep(each, _HOURS, hours if closed else "")
                each.shared_cards = frozenset(
                    record.identity.uuid for record in records if record and record.shares_unknown
                )
        self._note_ends()
        everywhere = self.fleet.all.values()
        if everywhere and all(server.state is ServerState.QUARANTINED for server in everywhere):
            self._mover.hold(QUARANTINE)
        else:
            self._mover.release(QUARANTINE)

    def _tell_if_blind(self) -> None:
        """Once for each time in which the driver does not answer, unless it does so again soon."""
        reason, now_s = self.watch.blind, time.monotonic()
        if not reason:
            self._blind_s = None
        elif self._blind_s is None:
            self._blind_s = now_s
        elif now_s - self._blind_s >= _BLIND_S:
            self._blind_s = float("inf")
            self._announcer.announce(GpusUnknown(reason))

    def _note_ends(self) -> None:
        for server in self.fleet.servers.values():
            if isinstance(server, ManagedServer):
                for gpu in server.gpus:
                    self.monitor.ended(gpu.card, *server.ended, *self.fleet.swept_s)

    def _keep(self, server: ManagedServer, by: str, reason: str) -> None:
        """Keep work away from a server, and its model out of the GPU, while there is a reason."""
        if reason and server.holds.get(by) != reason:
            server.hold(by, reason)
            self._actions.start(self._free(server), f"free-{server.id}")
        elif not reason and by in server.holds:
            server.resume(by)

    async def _free(self, server: ManagedServer) -> None:
        await self._empty(server, self._settings.value.servers.drain_s)
        await server.unload()

    # Commands.

    def release(self, card: str) -> list[str]:
        """End a quarantine; the lasting defects that were accepted with it."""
        accepted = self.monitor.release(card)
        for server in servers_on(self.fleet, card):
            if not self._is_bad(server):
                server.resume(QUARANTINE)
                server.release()
        self._look()
        return accepted

    def lend(self, card: str, for_s: float) -> None:
        """Free a card for somebody else for a while."""
        self.monitor.lend(card, time.time() + for_s)
        self._look()

    def share(self, card: str, shared: bool) -> None:
        """Load models beside processes of others whose memory nobody tells, or do so no more."""
        self.monitor.share(card, shared)
        self._look()

    def take_back(self, card: str) -> None:
        """End a loan."""
        self.monitor.lend(card, 0.0)
        self._look()


def _epoch_s(monotonic_s: float) -> float:
    return time.time() - (time.monotonic() - monotonic_s)


def in_hours(allow: list[str], now: datetime) -> bool:
    """Whether ``now`` is within one of the hours ``HH:MM-HH:MM``; hours may go over midnight. Without any: always."""
    minute = now.hour * 60 + now.minute

    def within(hours: str) -> bool:
        begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in hours.split("-"))
        return begin <= minute < end if begin < end else minute >= begin or minute < end

    return not allow or any(within(hours) for hours in allow)
