"""The composition root: builds everything, connects it, runs it until a signal says stop.

Order of start: lock, store, probe, servers, engine, control sockets; READY is said when the sockets are open and the
inbox was scanned once. Stopping is the reverse, with a drain in between; a second signal skips the drain.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from obatchd import __version__, log
from obatchd.burnin.run.manager import Burnin
from obatchd.client import runtime
from obatchd.control import notify
from obatchd.control.api import ControlServer
from obatchd.control.auth import Access, daemon_itself, group_id
from obatchd.control.submit import SubmitServer
from obatchd.daemon import burnin, process
from obatchd.daemon.burnin import BurninHost, Hearing
from obatchd.daemon.models import ServedModels
from obatchd.dispatch.pool import forkserver_context
from obatchd.dispatch.remedies import Watchdog
from obatchd.engine.engine import Engine
from obatchd.engine.housekeeping import Housekeeping
from obatchd.errors import ConfigError, ObatchError
from obatchd.gpucare.alarms import Alarms
from obatchd.gpucare.gpu_duty import GpuDuty
from obatchd.gpus.probe import Probe
from obatchd.jobs.store import Facts, Store
from obatchd.jobs.store.database import is_corrupt
from obatchd.live.work import Work
from obatchd.operations.facade import Facade
from obatchd.servers.fleet import Fleet
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState
from obatchd.settings import reading
from obatchd.settings.base import Reload
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.access import AccessSettings
from obatchd.spool.layout import Layout
from obatchd.spool.owners import OwnerDirectories

_log = log.get(__name__)
_STATUS_S = 5.0
_FRESH_READING_S = 15.0
EXIT_OK, EXIT_FAILED = 0, 1


class Daemon:
    """One daemon on one spool."""

    def __init__(self, settings: Settings, config_file: Path | None, flags: dict[str, Any]) -> None:
        self._settings = settings
        self._current = Current(settings)
        self._config_file = config_file
        self._flags = flags
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._exit_code = EXIT_OK

    async def run(self) -> int:
        """Run until told to stop; returns the exit code.

        Raises:
            ObatchError: the daemon cannot start, with what to do.
        """
        self._listen_to_signals()
        layout = await asyncio.to_thread(Layout.open, self._settings.spool_path, _owners(self._settings.access))
        with layout.lock():
            store = self._store = await asyncio.to_thread(Store, layout.work, self._current)
            try:
                await self._run_locked(layout, store)
            finally:
                await asyncio.to_thread(store.close)
        _log.info("stopped", exit_code=self._exit_code)
        return self._exit_code

    async def _run_locked(self, layout: Layout, store: Store) -> None:
        settings = self._settings
        _log.info("starting", version=__version__, spool=layout.root, pid=os.getpid())
        context = forkserver_context()
        self._probe = Probe(settings.gpus, layout.work / "simulator")
        self._hearing = Hearing(self._probe)
        self._alarms = Alarms(settings.alarms)
        self._alarms.start()
        await self._probe.start()
        self._fleet = Fleet(settings, layout.work, layout.uuid, self._probe, Facts(store.state), self._server_changed)
        self._models = ModelKeeper(settings.models, self._fleet)
        served = ServedModels(self._models, self._fleet)
        work = Work(self._current, layout, store, self, self._alarms)
        self.engine = Engine(work, context, served)
        dispatcher, facts = self.engine.dispatcher, Facts(store.state)
        self._duty = GpuDuty(settings, self._probe, self._fleet, dispatcher, facts, layout.work)
        self._duty.monitor.on_xid = self._hearing.xid
        self._duty.announce = self._alarms.announce
        await self._fleet.start()
        self._duty.start()
        try:
            # Servers planned but not started yet are handed over too: dispatch waits until they are READY.
            await self.engine.dispatcher.start(self._fleet.servers.values())
            await self._serve(layout, store)
        finally:
            await self._duty.stop()
            await self._models.close()
            await self._fleet.stop()
            await self._probe.stop()
            await self._alarms.stop()

    async def _serve(self, layout: Layout, store: Store) -> None:
        facade = Facade(self.engine, self._fleet, self._models, self._probe, self._duty, self._reload)
        access = Access(self._settings.access)
        host = BurninHost(
            self._fleet, self._probe, self._hearing, self._duty, self._models, self.engine.dispatcher,
            lambda: self._settings,
            self._alarms.announce,
        )  # fmt: skip
        self._burnin = Burnin(layout.work / "burnin", host.surroundings(), burnin.defaults(self._settings))
        self._duty.under_test = self._burnin.has_for_itself
        directory = runtime.create(layout.root, layout.uuid, shared=access.is_shared)
        control = ControlServer(facade, directory, access, self._burnin)
        submit = SubmitServer(facade, directory, access)
        housekeeping = Housekeeping(self.engine)
        self._watchdog = Watchdog(self.engine.dispatcher, self._settings, self._utilisation)
        if store.state.get("paused"):
            self.engine.dispatcher.holds.hold("paused")
        await self.engine.start()
        try:
            await self._burnin.resume()  # before anybody may ask whether a run is over
            await control.start()
            await submit.start()
            housekeeping.start()
            self._watchdog.start()
            await self._until_stopped(facade)
        finally:
            notify.stopping("stopping")
            await submit.stop()
            control.only_looks()
            await housekeeping.stop()
            await self._burnin.close()
            await self._drain()
            await self._watchdog.stop()
            await control.stop()
            runtime.remove(layout.root, directory)

    async def _until_stopped(self, facade: Facade) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        scanned = asyncio.create_task(self.engine.intake.scanned.wait())
        await asyncio.wait([stopping, scanned], return_when=asyncio.FIRST_COMPLETED)
        scanned.cancel()
        if not stopping.done():
            notify.ready("watching the inbox")
            _log.info("ready", servers=len(self._fleet.servers), jobs=len(self.engine.jobs))
            self._tasks.append(asyncio.create_task(self._reload_when_asked(), name="reload"))
        self._tasks.append(asyncio.create_task(self._tell_systemd(facade), name="notify"))
        self._tasks.append(asyncio.create_task(process.return_memory(lambda: bool(self.engine.jobs)), name="memory"))
        await stopping
        for task in self._tasks:
            task.cancel()

    async def _drain(self) -> None:
        """Stop the engine after in-flight requests ended, or at once when a second signal comes."""
        stop = asyncio.create_task(self.engine.stop(self._settings.drain_s))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([stop, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            _log.warning("drain_skipped", reason="a second signal")
            self.engine.hurry()
        await stop
        hurry.cancel()
        if self.engine.committer.backlog:
            self._exit_code = EXIT_FAILED  # answers that the disk did not take; they are asked for again

    # Signals.

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def _stop(self, name: str) -> None:
        if self._stopping.is_set():
            self._hurry.set()
            return
        _log.info("stop_asked", signal=name, drain_s=self._settings.drain_s)
        self._stopping.set()

    def task_failed(self, name: str, error: BaseException) -> None:
        """A part of the daemon is gone: stop, so that the service manager starts a whole one again.

        What is committed survives a restart, so this is safer than going on without the part.
        """
        if is_corrupt(error):
            remedy = "the daemon ends; its next start sets the file aside and does again what it held"
            _log.error("store_damaged", task=name, reason=str(error), remedy=remedy)
            self._store.distrust()
        self._exit_code = EXIT_FAILED
        self._stopping.set()

    def _hang_up(self) -> None:
        self._reload_asked.set()

    async def _reload_when_asked(self) -> None:
        """SIGHUP: one reload after the other, none before the daemon is ready; what came earlier is done then."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            notify.reloading()
            try:
                await self._reload()
            except ConfigError as error:
                _log.error("reload_refused", reason=error.message)
            except Exception:  # noqa: BLE001 - a defect in reloading must not end the reloading of the next
                _log.exception("reload_failed")
            notify.ready("watching the inbox")

    async def _reload(self) -> dict[str, Any]:
        async with self._reloading:
            return await self._read_again()

    async def _read_again(self) -> dict[str, Any]:
        """Read the configuration again; what needs no restart takes effect, the rest is named.

        Raises:
            ConfigError: it cannot be used; the old one stays.
        """
        new = await asyncio.to_thread(reading.load, self._config_file, environ=os.environ, flags=self._flags)
        changes = reading.changes(self._settings, new)
        self._apply(reading.reloaded(self._settings, new))
        applied = [leaf.key for leaf in changes if leaf.reload is not Reload.RESTART]
        next_job = [leaf.key for leaf in changes if leaf.reload is Reload.NEXT_JOB]
        waiting = [leaf.key for leaf in changes if leaf.reload is Reload.RESTART]
        _log.info(
            "reloaded", changed=",".join(applied) or "nothing", next_job=",".join(next_job) or "nothing",
            needs_restart=",".join(waiting) or "nothing",
        )  # fmt: skip
        return {"changed": applied, "next_job": next_job, "needs_restart": waiting}

    def _apply(self, settings: Settings) -> None:
        self._settings = self._current.value = settings
        log.configure(settings.log_level, journal="JOURNAL_STREAM" in os.environ)
        self._models.apply(settings.models)
        self._watchdog.apply(settings)
        self._burnin.defaults = burnin.defaults(settings)
        self._duty.apply(settings)
        self._alarms.settings = settings.alarms
        self.engine.settings_changed()

    # Connections between parts that must not know each other.

    def _server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        self.engine.dispatcher.server_changed(server)
        if new is ServerState.FAILED:
            facts = {"server": server.id, "gpu": server.gpu_label, "reason": reason}
            self._alarms.announce("server_failed", facts)

    def _utilisation(self, server_id: str) -> int | None:
        """Of the busiest GPU of a server in percent; None where it is unknown or told too long ago."""
        readings, limit_s = self._probe.readings, max(_FRESH_READING_S, 3 * self._settings.gpus.poll_s)
        found = [readings.get(uuid) for uuid in self._fleet.servers[server_id].gpu_label.split(",")]
        fresh = [r.utilisation_percent for r in found if r and time.time() - r.at_s < limit_s]
        known = [percent for percent in fresh if percent is not None]
        return max(known) if len(known) == len(found) else None

    async def _tell_systemd(self, facade: Facade) -> None:
        """STATUS for ``systemctl status``, and WATCHDOG while this loop turns."""
        interval_s = notify.watchdog_interval_s()
        period_s = min(interval_s / 2 if interval_s else _STATUS_S, _STATUS_S)
        told_s = float("-inf")
        while True:
            notify.watchdog()
            if time.monotonic() - told_s >= _STATUS_S:
                told_s = time.monotonic()
                notify.status(_status_line(facade))
            await asyncio.sleep(period_s)


def _owners(access: AccessSettings) -> OwnerDirectories | None:
    """Directories of their own for the users of a service; a service without its groups serves administrators."""
    if access.mode == "personal":
        return None
    for name in (access.submit_group, access.admin_group):
        if group_id(name) is None:
            _log.warning("group_missing", group=name, remedy=f"groupadd --system {name}, or name another in [access]")
    return OwnerDirectories(group_id(access.admin_group))


def _status_line(facade: Facade) -> str:
    document = facade.status(daemon_itself())
    ready = sum(1 for server in document["servers"] if server["state"] == ServerState.READY)
    queue = document["queue"]
    line = (
        f"{document['state']}: {ready} of {len(document['servers'])} servers ready, {queue['jobs']} jobs, "
        f"{queue['finished']:,} of {queue['total']:,} requests"
    )
    if not (left := queue["total"] - queue["finished"]) or not queue["requests_per_s"]:
        return line
    ends_s = time.time() + left / queue["requests_per_s"]
    return f"{line}, ETA {time.strftime('%a %H:%M', time.localtime(ends_s))}"


def run(settings: Settings, config_file: Path | None, flags: dict[str, Any]) -> int:
    """Run the daemon in the foreground; returns its exit code.

    Raises:
        ObatchError: it cannot start.
    """
    process.prepare()
    log.configure(settings.log_level, journal="JOURNAL_STREAM" in os.environ)
    work: Callable[[], Any] = Daemon(settings, config_file, flags).run
    return int(uvloop.run(work()))


__all__ = ["Daemon", "ObatchError", "run"]
