"""The life of the daemon: it starts the parts, runs until a signal says stop, drains, and stops them.

Order of start: lock, store, probe, servers, engine, control sockets; READY is said when the sockets are open and the
inbox was scanned once. Stopping is the reverse, with a drain in between; a second signal skips the drain. A signal
during the start cuts the start short. Where the driver of the GPUs comes later than the daemon, the parts are stopped
and made anew, in the same process and under the same lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import uvloop

from obatchd import __version__, log
from obatchd.client import runtime
from obatchd.control.auth import group_id
from obatchd.daemon import compose, process, systemd
from obatchd.daemon.compose import Head
from obatchd.daemon.machine import Host
from obatchd.daemon.stop import Stop
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.documents.answers import Reloaded
from obatchd.errors import ConfigError
from obatchd.jobs.store import Store
from obatchd.jobs.store.database import is_corrupt
from obatchd.live.work import Work
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState
from obatchd.settings import reading
from obatchd.settings.base import Reload
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.settings.tables.people import AccessSettings
from obatchd.spool.layout import Layout
from obatchd.spool.owners import OwnerDirectories
from obatchd.tasks import TaskSet
from obatchd.telling.alarms import Alarms
from obatchd.telling.notifications import Notifications

_log = log.get(__name__)
EXIT_OK, EXIT_FAILED = 0, 1


class Daemon:
    """One daemon on one spool. Answers for the tasks without which it would only seem to work."""

    def __init__(self, settings: Settings, config_file: Path | None, flags: dict[str, Any]) -> None:
        self._settings = Current(settings)
        self._config_file, self._flags = config_file, flags
        self._reload_asked = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks = TaskSet(self)
        self._between = TaskSet(self)  # while parts are made anew
        self._stop = Stop()
        self._exit_code = EXIT_OK

    async def run(self) -> int:
        """Run until told to stop; returns the exit code, or raises ObatchError, with what to do, if it cannot start."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)  # before it is ready: done then
        settings = self._settings.value
        layout = self._layout = await asyncio.to_thread(Layout.open, settings.spool_path, _owners(settings.access))
        with layout.lock():
            self._store = await asyncio.to_thread(Store, layout.work, self._settings)
            # Until now the handlers of the command line end the process at once: there was nothing to stop.
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._signalled, number.name)
            try:
                await self._stop.run(self)
            finally:
                await self._between.stop()
                # A thread of a start that was cut short may still use the store, which the lock protects.
                await loop.shutdown_default_executor()
                self._store.close()
        _log.info("stopped", exit_code=self._exit_code)
        return self._exit_code

    async def run_parts(self) -> None:
        """Make the parts and run them until they are to stop, for good or to be made anew."""
        layout = self._layout
        _log.info("starting", version=__version__, spool=layout.root, pid=os.getpid())
        if (other := runtime.spool_of_variables()) not in (None, layout.root.absolute()):
            _log.warning("spool_not_of_obatchctl", spool=layout.root, other=other)
        alarms = Alarms(self._settings, self)
        alarms.start()
        async with contextlib.AsyncExitStack() as at_end:
            at_end.push_async_callback(alarms.stop)
            work = Work(self._settings, layout, self._store, self, alarms)
            at_end.push_async_callback(work.audit.stop)
            notifications = Notifications(work)
            notifications.start()
            at_end.push_async_callback(notifications.stop)
            here = await compose.host(work)
            at_end.push_async_callback(here.probe.stop)
            head = self._head = compose.head(work, here, alarms, self.reload, self._config_file)
            at_end.callback(runtime.remove, layout.root, head.runtime_dir)
            at_end.push_async_callback(head.policy.servers_ended)
            at_end.push_async_callback(here.fleet.stop)
            at_end.push_async_callback(here.models.close)
            await here.fleet.start()
            process.check_open_files(len(here.fleet.servers))
            head.policy.start()
            at_end.push_async_callback(head.policy.stop)
            if self._store.state.get("paused"):
                work.holds.hold("paused")
            await self._serve(here, head)

    async def _serve(self, here: Host, head: Head) -> None:
        try:
            # Servers planned but not started yet are handed over too: dispatch waits until they are READY.
            await head.engine.dispatcher.start(here.fleet.servers.values(), here.workers)
            await head.engine.start()
            await head.burnin.resume()  # before anybody may ask whether a run is over
            await head.control.start()
            await head.submit.start()
            await head.desk.start()
            await head.http.start()
            if head.joined is not None:
                await head.joined.start()
            if head.launcher is not None:
                head.launcher.start()
            head.metrics_file.start()
            head.looks.start()
            head.housekeeping.start()
            head.watchdog.start()
            await self._until_stopped(here, head)
        finally:
            if not self._stop.again:
                systemd.stopping("stopping")
            await head.submit.stop()
            head.control.only_looks()
            head.http.only_looks()
            if head.joined is not None:
                head.joined.hosts.close()
            await head.metrics_file.stop()
            await head.looks.stop()
            await head.desk.batches.stop()
            await head.housekeeping.stop()
            await head.burnin.close()
            await self._drain(head)
            await head.watchdog.stop()
            if head.launcher is not None:
                await head.launcher.stop()
            if head.joined is not None:
                await head.joined.stop()
            await head.http.stop()
            await head.desk.stop()
            await head.control.stop()

    async def _until_stopped(self, here: Host, head: Head) -> None:
        self._stop.started()
        stopping = asyncio.create_task(self._stop.asked.wait())
        scanned = asyncio.create_task(head.engine.intake.scanned.wait())
        await asyncio.wait([stopping, scanned], return_when=asyncio.FIRST_COMPLETED)
        scanned.cancel()
        if not stopping.done():
            systemd.ready("watching the inbox")
            counts = {"servers": len(here.fleet.servers), "jobs": len(head.engine.jobs)}
            _log.info("ready", **counts, inbox=head.engine.layout.inbox, command=self._submit_command())
            self._tasks.start(self._reload_when_asked(), "reload")
            self._tasks.start(tell_if_stranded(here.fleet.servers.values(), head.engine.dispatcher), "stranded")
        await self._between.stop()
        self._tasks.start(systemd.tell(head.operations.host), "systemd")
        self._tasks.start(process.return_memory(head.engine.jobs), "memory")
        if here.fleet.lacks_gpus:
            self._tasks.start(self._begin_again_with_gpus(here), "late-gpus")
        await stopping
        await self._tasks.stop()

    def _submit_command(self) -> str:
        """A command that hands a file to this daemon, for somebody who sees it for the first time."""
        settings = self._settings.value
        root = settings.spool_path.absolute()
        known = root == (runtime.spool_of_variables() or root) == runtime.default_spool()
        spool = "" if known else f" --spool {shlex.quote(str(root))}"
        return f"obatchctl{spool} submit FILE{'' if settings.model else ' --model NAME'} --wait"

    async def _begin_again_with_gpus(self, here: Host) -> None:
        """The driver came later than the daemon, as at boot. Requests in flight are asked again, of servers on GPUs."""
        await here.probe.present.wait()
        _log.warning(
            "gpus_came", gpus=len(here.probe.gpus), reason="obatchd starts its parts again, with a server on each GPU"
        )
        if self._stop.begin_again():
            self._between.start(systemd.beat(), "systemd")  # which watches since READY

    async def _drain(self, head: Head) -> None:
        """Stop the engine after in-flight requests ended, or at once when a second signal comes."""
        stop = asyncio.create_task(head.engine.stop(0 if self._stop.again else self._settings.value.drain_s))
        if not await self._stop.unless_hurried(stop):
            _log.warning("drain_skipped", reason="a second signal")
            head.engine.hurry()
        await stop
        if head.engine.committer.backlog:
            self._exit_code = EXIT_FAILED  # answers that the disk did not take; they are asked for again

    # Signals, and the end of a part.

    def _signalled(self, name: str) -> None:
        if self._stop.signalled():
            _log.info("stop_asked", signal=name, drain_s=self._settings.value.drain_s)
            self._stop.end()

    def task_failed(self, name: str, error: BaseException) -> None:
        """A part of the daemon is gone: stop, so that the service manager starts a whole one again.

        Committed work survives a restart, so this is safer than going on without the part.
        """
        if is_corrupt(error):
            remedy = "the daemon ends; its next start sets the file aside and does again what it held"
            _log.error("store_damaged", task=name, reason=str(error), remedy=remedy)
            self._store.distrust()
        self._exit_code = EXIT_FAILED
        self._stop.end()

    # Reloading.

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            systemd.reloading()
            try:
                await self.reload()
            except ConfigError as error:
                _log.error("reload_refused", reason=error.message)
            except Exception:  # noqa: BLE001 - a defect in reloading must not end the reloading of the next
                _log.exception("reload_failed")
            systemd.ready("watching the inbox")

    async def reload(self) -> Reloaded:
        """Read the configuration again; keys that a running daemon can change take effect, the others are named.

        Raises ConfigError where it cannot be used; the old one stays.
        """
        async with self._reloading:
            old = self._settings.value
            new = await asyncio.to_thread(reading.load, self._config_file, environ=os.environ, flags=self._flags)
            changes = reading.changes(old, new)
            self._settings.value = reading.reloaded(old, new)
            log.configure(self._settings.value.log_level)
            self._head.engine.settings_changed()
            self._head.housekeeping.settings_changed()
            if self._head.joined is not None:
                self._head.joined.hosts.settings_changed()
        applied = [leaf.key for leaf in changes if leaf.reload is not Reload.RESTART]
        next_job = [leaf.key for leaf in changes if leaf.reload is Reload.NEXT_JOB]
        waiting = self._settings.waiting = [leaf.key for leaf in changes if leaf.reload is Reload.RESTART]
        _log.info(
            "reloaded", changed=",".join(applied) or "nothing", next_job=",".join(next_job) or "nothing",
            needs_restart=",".join(waiting) or "nothing",
        )  # fmt: skip
        return Reloaded(applied, next_job, waiting)


async def tell_if_stranded(servers: Iterable[Server], dispatcher: Dispatcher) -> None:
    """When each server was tried once, say it if none works: ready is only the inbox then. A head whose servers all
    come with other hosts has told that it waits for these."""
    tried = list(servers)
    for server in tried:
        await server.until(set(ServerState) - {ServerState.STOPPED, ServerState.STARTING})
    if tried and (reason := dispatcher.stranded):
        _log.warning("stranded", reason=reason, remedy="obatchctl status names each; they are tried again and again")


def _owners(access: AccessSettings) -> OwnerDirectories | None:
    """Directories of their own for the users of a service; a service without its groups serves administrators."""
    if access.mode == "personal":
        return None
    for name in (access.submit_group, access.admin_group):
        if group_id(name) is None:
            _log.warning("group_missing", group=name, remedy=f"groupadd --system {name}, or name another in [access]")
    return OwnerDirectories(group_id(access.admin_group))


def run(settings: Settings, config_file: Path | None, flags: dict[str, Any]) -> int:
    """Run the daemon in the foreground; returns its exit code, or raises ObatchError if it cannot start."""
    process.prepare()
    log.configure(settings.log_level)
    return int(uvloop.run(Daemon(settings, config_file, flags).run()))
