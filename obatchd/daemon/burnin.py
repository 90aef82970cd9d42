"""Connects burn-in runs with the rest of the daemon; a part of the composition root."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from obatchd import log
from obatchd.burnin.journal.records import Limits
from obatchd.burnin.run.plan import Defaults
from obatchd.burnin.run.ports import BatchLoad, Model, Surroundings
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.gpucare.gpu_duty import GpuDuty
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.monitor import Quarantine
from obatchd.gpus.probe import Listener, Probe
from obatchd.jobs.model import round_context
from obatchd.servers.fleet import Fleet
from obatchd.servers.managed import ManagedServer
from obatchd.servers.models import ModelKeeper
from obatchd.settings.settings import Settings
from obatchd.settings.tables.alarms import AlarmKind

_log = log.get(__name__)
_HOLD = "burnin"
_FRESH_S = 15.0
_XIDS = 1000  # kept until a run asks for them


class Hearing(Listener):
    """Remembers what the probe says; XIDs come from the monitor, which has those of the kernel log, too."""

    def __init__(self, probe: Probe) -> None:
        self.cards: dict[str, Identity] = {}
        self.slow: dict[str, SlowReading] = {}
        self._xids: list[XidEvent] = []
        probe.listen(self)

    def identities(self, identities: list[Identity]) -> None:
        self.cards.update((card.uuid, card) for card in identities)

    def slow_readings(self, readings: list[SlowReading]) -> None:
        self.slow.update((reading.uuid, reading) for reading in readings)

    def xid(self, event: XidEvent) -> None:
        """A new XID of a card."""
        self._xids = [*self._xids, event][-_XIDS:]

    def new_xids(self) -> list[XidEvent]:
        """Those since the last call."""
        new, self._xids = self._xids, []
        return new


class BurninHost:
    """What burn-in runs see of this daemon."""

    def __init__(
        self,
        fleet: Fleet,
        probe: Probe,
        hearing: Hearing,
        duty: GpuDuty,
        models: ModelKeeper,
        dispatcher: Dispatcher,
        settings: Callable[[], Settings],
        announce: Callable[[AlarmKind, dict[str, Any]], None],
    ) -> None:
        self._fleet = fleet
        self._probe = probe
        self._hearing = hearing
        self._duty = duty
        self._models = models
        self._dispatcher = dispatcher
        self._settings = settings
        self._announce = announce

    def surroundings(self) -> Surroundings:
        return Surroundings(
            servers=self._fleet.servers,
            gpus_of=self._gpus_of(),
            reading=self._reading,
            slow=self._hearing.slow.get,
            identity=self._identity,
            xids=self._hearing.new_xids,
            monitoring=lambda: "" if self._probe.state == "ok" else self._probe.message,
            host_trouble=lambda: self._probe.host_trouble[1],
            health=lambda: self._settings().gpu_health,
            ensure_model=self._ensure_model,
            model=self._model,
            batch=self._batch,
            keep_batch_away=self._keep_batch_away,
            finished=self._finished,
            quarantined=self._quarantined,
            quarantine=self._quarantine,
            release=self._release,
        )

    def _finished(self, run: str, verdict: str) -> None:
        self._announce("burn_in_finished", {"run": run, "verdict": verdict})

    def _gpus_of(self) -> Mapping[str, tuple[Gpu, ...]]:
        found = {}
        for name, server in self._fleet.servers.items():
            gpus = server.gpus if isinstance(server, ManagedServer) else (server.gpu,) if server.gpu else ()
            if gpus:
                found[name] = gpus
        return found

    def _reading(self, gpu: str) -> Reading | None:
        reading = self._probe.readings.get(gpu)
        limit_s = max(_FRESH_S, 3 * self._settings().gpus.poll_s)
        return reading if reading is not None and time.time() - reading.at_s < limit_s else None

    def _identity(self, gpu: Gpu) -> Identity:
        known = self._hearing.cards.get(gpu.card)
        return known or Identity(
            gpu.card, gpu.name, gpu.index, gpu.pci_bus_id, driver=gpu.driver, memory_bytes=gpu.memory_bytes
        )

    def _quarantined(self, gpu: Gpu) -> str:
        record = self._duty.monitor.records.get(gpu.card)
        return record.quarantine.reason if record is not None and record.quarantine is not None else ""

    def _quarantine(self, gpu: Gpu, reason: str, action: str) -> None:
        if not self._quarantined(gpu):
            self._duty.monitor.quarantine(gpu.card, Quarantine(reason, time.time(), "rules", action), False)

    def _release(self, gpu: Gpu) -> None:
        self._duty.release(gpu.card)

    async def _ensure_model(self, server: str, model: str) -> None:
        await self._models.ensure_on(self._fleet.servers[server], model)

    def _model(self, name: str) -> Model:
        info = self._models.info(name)
        return Model(info.digest or "", info.context_length or 0) if info else Model("", 0)

    def _batch(self, server: str) -> BatchLoad:
        link = self._dispatcher.links.get(server)
        if link is None:
            return BatchLoad(0, 0, 0, 0)
        return BatchLoad(link.started, link.requests_done, link.tokens_done, link.attempts_failed)

    def _keep_batch_away(self, away: bool) -> None:
        if away:
            self._dispatcher.holds.hold(_HOLD)
        else:
            self._dispatcher.holds.release(_HOLD)


def defaults(settings: Settings) -> Defaults:
    """What the configuration says about burn-in runs."""
    chosen = settings.burnin
    return Defaults(
        chosen.model or settings.model,
        round_context(settings.context_length),
        chosen.canary_s,
        chosen.canary_runs,
        Limits(
            slower_warn_percent=chosen.slower_warn_percent,
            slower_fail_percent=chosen.slower_fail_percent,
            stress_power_percent=chosen.stress_power_percent,
            stress_utilisation_percent=chosen.stress_utilisation_percent,
            stress_loaded_percent=chosen.stress_loaded_percent,
            least_loaded_percent=chosen.least_loaded_percent,
            least_seen_percent=chosen.least_seen_percent,
            vram_target_percent=chosen.vram_target_percent,
        ),
        chosen.keep_runs,
        chosen.keep_days * 86_400.0,
    )
