"""The burn-in runs of a daemon: one at a time, taken up again after a restart. ``obatchctl burnin`` talks to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from obatchd import __version__, log
from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Begun, Ended, Gap, Record, Unit
from obatchd.burnin.report import report, series
from obatchd.burnin.run import plan
from obatchd.burnin.run.host import describe
from obatchd.burnin.run.plan import Asked
from obatchd.burnin.run.ports import RunHost
from obatchd.burnin.run.run import Run
from obatchd.documents.burnin.plan import Plan
from obatchd.documents.burnin.report import (
    BurninBrief,
    BurninHead,
    BurninReport,
    BurninSeries,
    BurninStatus,
    ListedGpu,
    ListedRun,
)
from obatchd.errors import ConfigError, ControlError, StoreError
from obatchd.gpus.model import Gpu
from obatchd.tasks import TaskSet
from obatchd.words import misfit

_log = log.get(__name__)
_CLOSE_S = 10.0
_DAY_S = 86_400.0
_UNUSABLE = ("failed", "draining")  # states of a server that a run does not wait for


def as_asked(asked: dict[str, Any]) -> Asked:
    """The wish as a type. Raises ConfigError where it is none."""
    try:
        return msgspec.convert(asked, Asked)
    except msgspec.ValidationError as error:
        raise ConfigError(f"no such burn-in can be run: {misfit(error)}", code="bad_request") from None


def new_run(known: Collection[str] = ()) -> str:
    """An id for a run that begins now, none of those ``known``."""
    now_s = time.time()
    while (run := time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_s))) in known:
        now_s += 1
    return run


class Burnin:
    """Starts, stops and reports runs, whose journals are in ``directory``."""

    def __init__(self, directory: Path, host: RunHost) -> None:
        self._shelf = journal.Shelf(directory)
        self._host = host
        self._run: Run | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks = TaskSet(self)
        self._earlier: Ended | None = None  # of the latest run that ended before this one

    # --- life -------------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        """Go on with the run that an earlier daemon did not finish; an older unfinished one is closed."""
        unfinished = await asyncio.to_thread(self._unfinished)
        self._earlier = await asyncio.to_thread(self._latest_end)
        for records in unfinished[:-1]:
            run = journal.begun(records).plan.run
            await asyncio.to_thread(self._append, run, [Ended(time.time(), "failed", "a later run was begun")])
        for records in unfinished[-1:]:
            run = journal.begun(records).plan.run
            last_s = max(record.until_s if isinstance(record, Gap) else record.at_s for record in records)
            gap = Gap(last_s, max(last_s, time.time()), "obatchd was not running")
            _log.warning("burnin_resumed", run=run, gap_s=round(gap.until_s - gap.from_s))
            await asyncio.to_thread(self._append, run, [gap])
            self._begin([*records, gap])
        await asyncio.to_thread(self._prune)

    def _prune(self) -> None:
        ours, spared = self._host.settings().burnin, self.active.plan.run if self.active else ""
        try:
            if pruned := self._shelf.prune(ours.keep_runs, time.time() - ours.keep_days * _DAY_S, spared):
                _log.info("burnin_journals_deleted", runs=",".join(pruned))
        except OSError as error:
            _log.warning("burnin_journals_not_deleted", reason=str(error))

    def _unfinished(self) -> list[list[Record]]:
        found = []
        for run in self._shelf.runs():
            with contextlib.suppress(StoreError, msgspec.DecodeError, OSError):
                if self._shelf.ends(run)[1] is None and journal.ended(records := self._shelf.read(run)) is None:
                    found.append(records)
        return found

    def _latest_end(self) -> Ended | None:
        for run in reversed(self._shelf.runs()):
            with contextlib.suppress(StoreError, msgspec.DecodeError, OSError):
                if (ended := self._shelf.ends(run)[1]) is not None:
                    return ended
        return None

    async def close(self) -> None:
        """Leave a run as it is; the next daemon goes on with it."""
        if self._run is not None:
            self._run.leaving = True
        await self._tasks.stop()

    def task_failed(self, name: str, error: BaseException) -> None:
        """The end of a run could not be written down; a later daemon finds the run unfinished and goes on with it."""

    def _append(self, run: str, records: list[Record]) -> None:
        with contextlib.closing(journal.Journal(self._shelf.path(run))) as file:
            file.append(records)

    def _begin(self, records: list[Record]) -> None:
        run = journal.begun(records).plan.run
        file = journal.Journal(self._shelf.path(run))
        self._earlier = self.ended
        self._run = Run(records, file, self._host)
        self._task = self._tasks.start(self._carry_out(self._run, file), "burnin")

    async def _carry_out(self, run: Run, file: journal.Journal) -> None:
        try:
            await run.carry_out()
        except Exception as error:  # noqa: BLE001 - a defect in a test of GPUs must not end the work of the daemon
            _log.exception("burnin_failed", run=run.plan.run)
            ended = Ended(time.time(), "failed", f"a defect of obatchd: {type(error).__name__}: {error}")
            run.records.append(ended)
            await asyncio.to_thread(file.append, [ended])
        finally:
            await asyncio.to_thread(file.close)

    # --- commands ---------------------------------------------------------------------------------------------------

    @property
    def active(self) -> Run | None:
        """The run in progress."""
        return self._run if self._task is not None and not self._task.done() else None

    @property
    def ended(self) -> Ended | None:
        """The end of the latest run that is over; None: there was none, or nobody has looked yet."""
        ended = journal.ended(self._run.records) if self._run is not None and self.active is None else None
        return ended or self._earlier

    async def start(self, asked: dict[str, Any]) -> BurninStatus:
        """Begin a run; returns its status.

        Raises ConfigError where it cannot be carried out as asked, ControlError (``busy``) where there is one already.
        """
        wanted = as_asked(asked)
        if wanted.hosts:
            words = "no hosts join this machine: leave out --hosts, or set cluster.listen (docs/fleet.md)"
            raise ConfigError(words, code="usage")
        await self._start(wanted, None)
        return await self.status()

    async def start_part(self, wanted: Asked, whole: Plan) -> None:
        """Begin this host's part of a run over several; nothing where it has begun already. Raises as :meth:`start`."""
        known = whole.run in await asyncio.to_thread(self._shelf.runs)
        if known and (await asyncio.to_thread(self._shelf.ends, whole.run))[0].plan.over_hosts:
            return
        if known and self.active is None:
            raise ControlError(f"an earlier burn-in here is called {whole.run}, too: try again", code="busy")
        await self._start(wanted, whole)

    async def _start(self, wanted: Asked, whole: Plan | None) -> None:
        if self.active is not None:
            raise ControlError(
                f"burn-in {self.active.plan.run} is running; wait for it, or: obatchctl burnin stop", code="busy"
            )
        chosen = self._choose(wanted)
        units = self._as_units(chosen)
        gpus = [unit.uuid for unit in units]
        retest = [gpu.uuid for gpu, _ in chosen if self._host.quarantine_reason(gpu)]
        run, missing = new_run(), self._host.missing_loads()
        made = plan.make(run, wanted, gpus, self._host.settings(), retest, missing)
        made = made if whole is None else plan.of_host(made, whole)
        host = await asyncio.to_thread(describe)
        driver = next((unit.identity.driver for unit in units if unit.identity.driver), "")
        begun = Begun(time.time(), made, units, msgspec.structs.replace(host, driver=driver), __version__)
        await asyncio.to_thread(self._append, made.run, [begun])
        self._host.new_xids()  # earlier XIDs are no part of the run
        _log.info("burnin_started", run=made.run, profile=made.profile, gpus=",".join(made.gpus), model=made.model,
                  duration_s=made.duration_s, loads=",".join(made.loads), exclusive=made.exclusive,
                  with_jobs=made.with_jobs)  # fmt: skip
        self._begin([begun])
        await asyncio.to_thread(self._prune)

    async def stop(self, who: str) -> BurninHead:
        """End the run in progress now; returns its report's head."""
        if (run := self.active) is None or self._task is None:
            raise ControlError("no burn-in is running", code="not_running")
        run.stop(f"stopped {who}")
        await asyncio.wait({self._task}, timeout=_CLOSE_S)
        return report.head(await self.report(run.plan.run))

    def brief(self) -> BurninBrief | None:
        """The run in progress in a few words, for the status of the daemon."""
        if (run := self.active) is None:
            return None
        state = "loading" if run.loading else "preparing"
        elapsed_s, asked_s = round(run.elapsed_s, 1), run.plan.duration_s
        return BurninBrief(run.plan.run, state, elapsed_s, asked_s, run.plan.gpus, run.present_loads)

    async def status(self) -> BurninStatus:
        """The run in progress, or the latest: the head of its report and how far it is."""
        head = report.head(await self.report("latest"))
        return BurninStatus(**msgspec.structs.asdict(head), active=self.active is not None)

    async def report(self, run: str) -> BurninReport:
        """The report of a run, by its id, the beginning of it, or ``latest``."""
        return await asyncio.to_thread(report.build, await self.records(run))

    async def series(self, run: str, points: int) -> BurninSeries:
        """How a run, named in the same way, went so far."""
        found = await asyncio.to_thread(series.build, await self.records(run), points)
        found.active = self.active is not None and self.active.plan.run == found.run
        return found

    async def records(self, run: str) -> list[Record]:
        """Of a run, named in the same way, those so far."""
        if self._run is not None and run in ("latest", self._run.plan.run):
            return list(self._run.records)
        return await asyncio.to_thread(self._shelf.read, run)

    async def runs(self) -> list[ListedRun]:
        """All runs, newest first."""
        return await asyncio.to_thread(lambda: [self._listed(run) for run in reversed(self._shelf.runs())])

    def _listed(self, run: str) -> ListedRun:
        try:
            begun, ended = self._shelf.ends(run)
        except (StoreError, msgspec.DecodeError, OSError) as error:
            return ListedRun(run=run, state="damaged", end=str(error))
        active = self.active is not None and self.active.plan.run == run
        verdicts = ended.verdicts if ended else {}
        return ListedRun(
            run=run,
            state=ended.reason if ended else "active" if active else "unfinished",
            verdict=ended.verdict if ended else "",
            profile=begun.plan.profile,
            asked_s=begun.plan.duration_s,
            started_at=report.instant(begun.at_s),
            ended_at=report.instant_if(ended.at_s if ended else None),
            end=ended.text if ended else "",
            gpus=[ListedGpu(unit.uuid, unit.index, unit.name, verdicts.get(unit.uuid, "")) for unit in begun.units],
        )

    @property
    def has_gpus(self) -> bool:
        """Whether there is a GPU with a server here."""
        return bool(self._host.gpus_of)

    def units(self, wanted: Asked) -> list[Unit]:
        """All GPUs with a server here; where none is named only those that a run takes then."""
        named = [(gpu, name) for name, gpus in self._host.gpus_of.items() for gpu in gpus]
        return self._as_units([(g, n) for g, n in named if wanted.gpus or not self._host.quarantine_reason(g)])

    def _as_units(self, chosen: Sequence[tuple[Gpu, str]]) -> list[Unit]:
        return [Unit(gpu.uuid, gpu.name, gpu.index, name, self._host.identity(gpu)) for gpu, name in chosen]

    async def run_ids(self) -> list[str]:
        """Of all runs, oldest first."""
        return await asyncio.to_thread(self._shelf.runs)

    def _choose(self, asked: Asked) -> list[tuple[Gpu, str]]:
        """The GPUs meant, each with its server. Raises ConfigError where there is none, or one cannot be used now."""
        every = [(gpu, name) for name, gpus in self._host.gpus_of.items() for gpu in gpus]
        present = ", ".join(f"{gpu.index} = {gpu.uuid} ({name})" for gpu, name in every) or "none"
        chosen = [(gpu, name) for gpu, name in every if not asked.gpus and not self._host.quarantine_reason(gpu)]
        for wanted in asked.gpus:
            hits = [(g, name) for g, name in every if wanted in (g.uuid, g.parent_uuid, str(g.index), name)]
            if not hits:
                raise ConfigError(f"no GPU {wanted!r} with a server here; there are: {present}", code="usage")
            chosen += [hit for hit in hits if hit not in chosen]
        if not chosen:
            raise ConfigError("there is no GPU with a server here, so there is nothing to burn in", code="no_gpu")
        for gpu, name in chosen:
            server = self._host.servers[name]
            if asked.with_jobs and self._host.quarantine_reason(gpu):
                raise ConfigError(f"GPU {gpu.index} is in quarantine and gets no jobs", code="not_usable")
            if server.state in _UNUSABLE and not asked.with_jobs:
                raise ConfigError(
                    f"GPU {gpu.index}: its server {server.in_words}. Bring it back, or choose other GPUs with --gpus",
                    code="not_usable",
                )
        return sorted(chosen, key=lambda pair: (pair[0].index, pair[0].slice_index or 0))
