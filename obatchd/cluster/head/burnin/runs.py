"""The burn-ins of a head: those of its own machine as ever, and one at a time over hosts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from obatchd import __version__, log
from obatchd.burnin.journal.records import Ended
from obatchd.burnin.run import plan
from obatchd.burnin.run.manager import Burnin, as_asked, new_run
from obatchd.burnin.run.plan import Asked
from obatchd.burnin.verdict.verdict import Result
from obatchd.cluster.head.burnin.choosing import parts
from obatchd.cluster.head.burnin.files import HostsRun, Part, RunFiles
from obatchd.cluster.head.burnin.following import Following
from obatchd.cluster.head.burnin.telling import Telling, listed
from obatchd.cluster.head.joined import JoinedHost
from obatchd.documents import excerpt
from obatchd.documents.alarms import Announcer, BurninFinished
from obatchd.documents.burnin.report import BurninBrief, BurninHead, BurninReport, BurninSeries, BurninStatus, ListedRun
from obatchd.errors import ConfigError, ControlError, NotFoundError, ObatchError, StoreError
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_LOOK_S = 2.0
_CLOSE_S = 15.0
_DAY_S = 86_400.0


class HostsBurnin:
    """Implements :class:`obatchd.control.operations.Burnin` for a head. ``directory`` is that of ``local``, its own."""

    def __init__(
        self,
        directory: Path,
        local: Burnin,
        hosts: Mapping[str, JoinedHost],
        settings: Current[Settings],
        announcer: Announcer,
        look_s: float = _LOOK_S,
    ) -> None:
        self._files = RunFiles(directory)
        self._local = local
        self._hosts = hosts
        self._settings = settings
        self._announcer = announcer
        self._look_s = look_s
        self._telling = Telling(self._files, local)
        self._following: Following | None = None  # the latest run over hosts, also when it is over
        self._saved = b""  # the run as it is on disk
        self._told = object()  # what the verdict in it is about
        self._wake = asyncio.Event()
        self._tasks = TaskSet(self)

    # --- life -------------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        """Go on with the runs that an earlier daemon did not finish, and look for hosts that its latest one lost."""
        await self._local.resume()
        ids = await asyncio.to_thread(self._files.runs)
        with contextlib.suppress(ObatchError, OSError):
            latest = await asyncio.to_thread(self._files.load, ids[-1]) if ids else None
            if latest is not None:
                self._follow(latest)
        await self._prune()

    async def close(self) -> None:
        """Leave a run as it is: hosts go on with it, and the next daemon takes it up."""
        await self._tasks.stop()
        if self._following is not None:
            await self._save(self._following.run)
        await self._local.close()

    def task_failed(self, name: str, error: BaseException) -> None:
        """A defect, which is in the log; the next daemon takes the run up."""

    def _follow(self, run: HostsRun) -> None:
        self._following = Following(run, self._files, self._hosts, self._local)
        self._saved = b""
        self._told = object()
        self._tasks.start(self._carry_out(self._following), "burnin-over-hosts")

    async def _carry_out(self, following: Following) -> None:
        """Until no host has anything more to tell, or another run begins."""
        while following is self._following:
            await following.look()
            if following is not self._following:
                return
            await self._note(following)
            if following.run.ended_s is not None and following.is_told:
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._wake.wait()

    async def _note(self, following: Following) -> None:
        """Write down what has changed, and the verdict once nothing more is waited for."""
        run, told = following.run, following.told()
        if following.is_over and (run.ended_s is None or told != self._told):
            first, self._told = run.ended_s is None, told
            try:
                await self._judge(run)
            except Exception:  # noqa: BLE001 - a defect, or what a host tells, must not keep the run open for ever
                _log.exception("burnin_failed", run=run.run)
                run.state, run.verdict = "failed", Result.INCONCLUSIVE.value
            run.ended_s = run.ended_s or time.time()
            if first:
                _log.info("burnin_ended", run=run.run, reason=run.state, verdict=run.verdict)
                self._announcer.announce(BurninFinished(run.run, run.verdict))
        await self._save(run)

    async def _judge(self, run: HostsRun) -> None:
        document = await self._telling.report(run)
        states = {host.state for host in document.hosts or ()}
        run.state = "stopped" if run.stopped else "completed" if "completed" in states else "failed"
        run.verdict = document.verdict
        run.verdicts = {f"{gpu.host or ''}/{gpu.uuid}": gpu.verdict for gpu in document.gpus}

    async def _save(self, run: HostsRun) -> None:
        data = self._files.encoded(run)
        if data == self._saved:
            return
        try:
            await asyncio.to_thread(self._files.save, run.run, data)
            self._saved = data
        except OSError as error:
            _log.error("burnin_not_written", run=run.run, reason=log.reason(error))

    async def _prune(self) -> None:
        ours, spared = self._settings.value.burnin, self._following.run.run if self._following else ""
        since_s = time.time() - ours.keep_days * _DAY_S
        try:
            if pruned := await asyncio.to_thread(self._files.prune, ours.keep_runs, since_s, {spared}):
                _log.info("burnin_journals_deleted", runs=",".join(pruned))
        except OSError as error:
            _log.warning("burnin_journals_not_deleted", reason=log.reason(error))

    # --- commands ---------------------------------------------------------------------------------------------------

    @property
    def _active(self) -> Following | None:
        """The run over hosts in progress."""
        following = self._following
        return following if following is not None and following.run.ended_s is None else None

    @property
    def ended(self) -> Ended | None:
        """The end of the latest run that is over, of one machine or over hosts."""
        own, run = self._local.ended, self._following.run if self._following is not None else None
        if run is None or run.ended_s is None or (own is not None and own.at_s > run.ended_s + _CLOSE_S):
            return own
        verdicts = {name.partition("/")[2]: verdict for name, verdict in run.verdicts.items()}
        return Ended(run.ended_s, "stopped" if run.stopped else "completed", run.stopped, run.verdict, verdicts)

    async def start(self, asked: dict[str, Any]) -> BurninStatus:
        """As :meth:`Burnin.start`; over hosts where they, or GPUs of theirs, are named."""
        wanted = as_asked(asked)
        if (active := self._active) is not None:
            words = f"burn-in {active.run.run} is running; wait for it, or: obatchctl burnin stop"
            raise ControlError(words, code="busy")
        own = self._local.units(wanted) if self._local.has_gpus else []
        chosen = parts(wanted, self._hosts, own)
        if not chosen and self._hosts and not own:
            words = "there is no GPU with a server on this machine; --hosts all burns in those of the hosts that joined"
            raise ConfigError(words, code="no_gpu")
        if not chosen:
            return await self._local.start(asked)
        if self._local.active is not None and any(not part.host for part in chosen):
            words = f"burn-in {self._local.active.plan.run} is running here; wait for it, or: obatchctl burnin stop"
            raise ControlError(words, code="busy")
        await self._begin(wanted, chosen)
        await self._prune()
        return await self.status()

    async def _begin(self, wanted: Asked, chosen: list[Part]) -> None:
        gpus = [unit.uuid for part in chosen for unit in part.units]
        ids = {*await self._local.run_ids(), *await asyncio.to_thread(self._files.runs)}
        made = plan.make(new_run(ids), wanted, gpus, self._settings.value)
        for part in chosen:
            part.asked = plan.named(part.asked, made)
        run = HostsRun(made, time.time(), __version__, chosen)
        await asyncio.to_thread(self._files.save, run.run, self._files.encoded(run))
        following = Following(run, self._files, self._hosts, self._local)
        await following.look()
        if all(part.state == "not_begun" for part in chosen):
            await asyncio.to_thread(self._files.delete, run.run)
            raise ConfigError("; ".join(part.reason for part in chosen), code="not_usable")
        hosts = ",".join(part.host or "here" for part in chosen)
        _log.info("hosts_burnin_started", run=run.run, profile=made.profile, hosts=hosts, duration_s=made.duration_s)
        self._follow(run)

    async def stop(self, who: str) -> BurninHead:
        """End the run in progress now, on all hosts; returns its report's head."""
        if (active := self._active) is None:
            return await self._local.stop(who)
        active.run.stopped = f"stopped {who}"
        self._wake.set()
        deadline_s = time.monotonic() + _CLOSE_S
        while active.run.ended_s is None and time.monotonic() < deadline_s:
            await asyncio.sleep(self._look_s / 10)
        return await self._telling.head(active.run, active.told())

    # --- questions --------------------------------------------------------------------------------------------------

    def brief(self) -> BurninBrief | None:
        """The run in progress in a few words, for the status of the daemon."""
        if (active := self._active) is None:
            return self._local.brief()
        made, loads = active.run.plan, active.loads
        state = "loading" if loads else "preparing"
        return BurninBrief(made.run, state, round(active.elapsed_s, 1), made.duration_s, made.gpus, loads)

    async def status(self) -> BurninStatus:
        """The run in progress, or the latest."""
        run = await self._meant("latest")
        if run is None:
            return await self._local.status()
        followed = self._following if self._following is not None and run is self._following.run else None
        head = await self._telling.head(run, followed.told() if followed is not None else None)
        status = excerpt(BurninStatus, head, active=run.ended_s is None)
        if followed is not None and status.active:
            status.elapsed_s = round(followed.elapsed_s, 1)
        return status

    async def report(self, run: str) -> BurninReport:
        """The report of a run, by its id, the beginning of it, or ``latest``."""
        found = await self._meant(run)
        return await (self._local.report(run) if found is None else self._telling.report(found))

    async def series(self, run: str, points: int) -> BurninSeries:
        """How a run, named in the same way, went so far."""
        found = await self._meant(run)
        return await (self._local.series(run, points) if found is None else self._telling.series(found, points))

    async def runs(self) -> list[ListedRun]:
        """All runs, newest first."""
        over_hosts = {run: await self._listed(run) for run in await asyncio.to_thread(self._files.runs)}
        own = [listed for listed in await self._local.runs() if listed.run not in over_hosts]
        return sorted([*own, *over_hosts.values()], key=lambda listed: listed.run, reverse=True)

    async def _listed(self, run: str) -> ListedRun:
        try:
            return listed(await self._run(run))
        except (ObatchError, OSError) as error:
            return ListedRun(run=run, state="damaged", end=str(error))

    async def _run(self, run: str) -> HostsRun:
        following = self._following
        if following is not None and run == following.run.run:
            return following.run
        return await asyncio.to_thread(self._files.load, run)

    async def _meant(self, name: str) -> HostsRun | None:
        """The run over hosts that is meant; None: one of this machine alone, or none at all.

        Raises NotFoundError where several are, StoreError where its file is damaged.
        """
        over_hosts = await asyncio.to_thread(self._files.runs)
        ids = sorted({*await self._local.run_ids(), *over_hosts})
        found = ids[-1:] if name == "latest" else [run for run in ids if run.startswith(name)]
        if len(found) > 1:
            raise NotFoundError(f"several burn-ins begin with {name}; obatchctl burnin list shows them")
        if not found or found[0] not in over_hosts:
            return None
        try:
            return await self._run(found[0])
        except OSError as error:
            raise StoreError(f"burn-in {found[0]} cannot be read: {log.reason(error)}") from None
