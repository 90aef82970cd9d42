"""The life of ``obatchd host``: it starts servers on the GPUs of this machine and serves the head until it is stopped.

SIGTERM and SIGINT let running answers end, a second one stops at once; SIGUSR1 says that the time limit of the
allocation is near, which is the same but for the words; SIGHUP has the host's file read again. A part that ends by a
defect ends the process, so that the service manager starts a whole one again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from obatchd import __version__, log
from obatchd.cluster.host import membership
from obatchd.cluster.host.dial import Dialer
from obatchd.cluster.host.directory import HostDirectory, allocation, default_directory, machine
from obatchd.cluster.host.head import Head
from obatchd.cluster.host.lease import Lease
from obatchd.cluster.host.settings import HostSettings
from obatchd.cluster.host.way import Connector, HeadWay
from obatchd.daemon import host, process, systemd
from obatchd.daemon.host import HostParts, Identity, NoParts
from obatchd.daemon.stop import Stop
from obatchd.errors import ConfigError
from obatchd.servers.managed import ManagedServer
from obatchd.tasks import TaskSet
from obatchd.words import counted

_log = log.get(__name__)
EXIT_OK, EXIT_FAILED = 0, 1
_STOPPED = "it is being stopped"
_TIME_LIMIT = "its time limit is near"
_LEASE = "its head was away for too long, and its machine is only lent"
_BEFORE_LIMIT_S = 120.0  # the end of an allocation is no time to begin with draining
_SHORT_PART = 4  # of a short allocation, so much of the time that is left is enough


class HostDaemon:
    """One host. Answers for the tasks without which it would only seem to work."""

    def __init__(
        self, settings: HostSettings, directory: HostDirectory, identity: Identity, connector: Connector,
        until_s: float | None,
    ) -> None:  # fmt: skip
        self._settings, self._directory = settings, directory
        self._identity, self._connector = identity, connector
        self._until_s = until_s  # epoch; of the allocation
        self._head = Head()
        self._parts: HostParts | None = None
        self._tasks = TaskSet(self)
        self._stop = Stop()
        self._exit_code = EXIT_OK

    async def run(self) -> int:
        """Run until told to stop; returns the exit code, or raises ObatchError, with what to do, if it cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number.name, _STOPPED)
        loop.add_signal_handler(signal.SIGUSR1, self._signalled, "SIGUSR1", _TIME_LIMIT)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        _log.info(
            "host_starting", version=__version__, host=self._identity.name, directory=self._directory.root,
            head=self._connector.address, pid=os.getpid(),
        )  # fmt: skip
        watch = TaskSet(self)
        watch.start(systemd.beat(), "systemd")
        if self._until_s is not None:
            watch.start(self._before_limit(self._until_s), "time-limit")
        try:
            await self._first_terms()
            await self._stop.run(self)
        finally:
            await watch.stop()
            await loop.shutdown_default_executor()
        _log.info("host_stopped", exit_code=self._exit_code)
        return self._exit_code

    async def _first_terms(self) -> None:
        """Ask the head, where it has never been asked, how it wants the servers."""
        if self._settings.terms is not None:
            return
        systemd.ready(f"waiting for the head at {self._connector.address}")
        dialer = Dialer(self._connector, self._identity, NoParts(self._settings), Head(), self)
        tasks = TaskSet(self)
        tasks.start(dialer.run(), "dial")
        stopping = asyncio.create_task(self._stop.asked.wait())
        told = asyncio.create_task(self._settings.told.wait())
        await asyncio.wait([stopping, told], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, told):
            task.cancel()
        await tasks.stop()

    async def run_parts(self) -> None:
        """Make the parts and run them until they are to stop, for good or to be made anew."""
        async with contextlib.AsyncExitStack() as at_end:
            at_end.callback(self._forget_parts)
            self._settings.take_all()
            parts = self._parts = await host.build(self._settings, self._directory, self._head, self)
            here = parts.machine
            at_end.push_async_callback(here.probe.stop)
            at_end.push_async_callback(parts.policy.servers_ended)
            at_end.push_async_callback(here.fleet.stop)
            at_end.push_async_callback(here.models.close)
            await here.fleet.start()
            process.check_open_files(len(here.fleet.servers))
            parts.policy.start()
            at_end.push_async_callback(parts.policy.stop)
            await parts.burnin.resume()
            at_end.push_async_callback(parts.burnin.close)
            dialer = Dialer(self._connector, self._identity, parts, self._head, self)
            at_end.push_async_callback(self._tasks.stop)
            self._tasks.start(dialer.run(), "dial")
            self._tasks.start(parts.news.run(), "news")
            self._tasks.start(parts.siblings.run(), "siblings")
            self._tasks.start(Lease(self._head, self._settings, self).run(), "lease")
            self._tasks.start(self._tell_systemd(dialer), "systemd-status")
            if here.fleet.lacks_gpus:
                self._tasks.start(self._begin_again_with_gpus(parts), "late-gpus")
            self._stop.started()
            systemd.ready(self._status_line(dialer))
            _log.info("host_ready", servers=len(self.servers()))
            await self._stop.asked.wait()
            if not self._stop.again:
                systemd.stopping("stopping")
                await self._drain(parts)

    def _forget_parts(self) -> None:
        self._parts = None

    async def _drain(self, parts: HostParts) -> None:
        """Have the head give no new work, and let running answers end, for as long as ``drain_s``."""
        if self._head.session is None or self._stop.hurry.is_set():
            return
        parts.news.host_changed()
        drain = asyncio.create_task(self._until_idle())
        if not await self._stop.unless_hurried(drain):
            _log.warning("host_drain_skipped", reason="a second signal")
            drain.cancel()

    async def _until_idle(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.value.drain_s):
                for server in self.servers().values():
                    await server.idle.wait()
                return
        busy = sum(not server.idle.is_set() for server in self.servers().values())
        _log.warning("host_drain_ended", servers=busy)

    # What others tell.

    def servers(self) -> dict[str, ManagedServer]:
        return dict(self._parts.servers()) if self._parts is not None else {}

    def is_testing(self) -> bool:
        """Whether a burn-in runs, which goes on without the head."""
        return self._parts is not None and self._parts.burnin.active is not None

    def lease_over(self, lease_s: float) -> None:
        """A machine that is only lent is given back."""
        if self._identity.allocation or self._until_s is not None:
            self._end(_LEASE)

    async def _before_limit(self, until_s: float) -> None:
        notice_s = min(_BEFORE_LIMIT_S, (until_s - time.time()) / _SHORT_PART)
        while (left_s := until_s - notice_s - time.time()) > 0:
            await asyncio.sleep(min(left_s, 60.0))  # the clock may be set meanwhile
        self._end(_TIME_LIMIT)

    async def _begin_again_with_gpus(self, parts: HostParts) -> None:
        """The driver came later than the host, as at boot."""
        await parts.machine.probe.present.wait()
        _log.warning(
            "gpus_came", gpus=len(parts.machine.probe.gpus), reason="obatchd starts its parts again, with a server on "
            "each GPU",
        )  # fmt: skip
        self._stop.begin_again()

    def disowned(self) -> None:
        """A machine that is only lent may join again, with a new code of whoever started this process."""
        if self._identity.allocation:
            membership.forget(self._directory)
            self._exit_code = EXIT_FAILED
            self._end(_STOPPED)

    # Signals, and the end of a part.

    def _signalled(self, name: str, why: str) -> None:
        if self._stop.signalled():
            _log.info("host_stop_asked", signal=name, drain_s=self._settings.value.drain_s)
            self._end(why)

    def _end(self, why: str) -> None:
        self._head.leaving = self._head.leaving or why
        self._stop.end()

    def _reload(self) -> None:
        systemd.reloading()
        try:
            self._settings.reread()
        except ConfigError as error:
            _log.error("reload_refused", reason=error.message)
        systemd.ready("the file was read again")

    def task_failed(self, name: str, error: BaseException) -> None:
        """A part is gone: stop, so that the service manager starts a whole one again."""
        self._exit_code = EXIT_FAILED
        self._stop.hurry.set()
        self._end(_STOPPED)

    # Systemd.

    async def _tell_systemd(self, dialer: Dialer) -> None:
        while True:
            systemd.status(self._status_line(dialer))
            await asyncio.sleep(systemd.STATUS_S)

    def _status_line(self, dialer: Dialer) -> str:
        servers = self.servers().values()
        ready = sum(server.ready for server in servers)
        line = f"{ready} of {counted(len(servers), 'server')} ready; the head at {self._connector.address} is "
        return line + ("here" if self._head.session is not None else f"away: {dialer.trouble}")


class Joining(NamedTuple):
    """How this host comes to its head, as the command line says it."""

    enrolment: str | None  # a file, or fd:N; None: it has joined
    name: str | None  # of the host at its head; None: as it is written


def run(
    config: Path | None, directory: Path | None, flags: dict[str, Any], joining: Joining, until_s: float | None
) -> int:
    """Run the host in the foreground; returns its exit code, or raises ObatchError, with what to do, if it cannot
    start.

    Args:
        config: the host's file; None: the one of the service where that is there.
        directory: for its own files; None: the usual one.
        flags: options of the command line by dotted key.
        joining: its enrolment, and its name.
        until_s: when the allocation of this machine ends, seconds since the epoch; None: it is not lent.
    """
    process.prepare()
    opened = HostDirectory.open(directory or default_directory())
    settings = HostSettings(config or opened.config_file, flags, opened.terms_file)
    log.configure(settings.value.log_level)
    with opened.lock():
        return int(uvloop.run(_live(settings, opened, joining, until_s)))


async def _live(settings: HostSettings, directory: HostDirectory, joining: Joining, until_s: float | None) -> int:
    if joining.enrolment:
        member = await membership.enrolled(joining.enrolment, directory, joining.name, until_s)
    else:
        member = membership.known(settings.value.cluster, directory, joining.name)
    way = HeadWay(membership.place_of(member, directory))
    identity = Identity(member.name, directory.instance, machine(), allocation())
    return await HostDaemon(settings, directory, identity, way, until_s).run()
