"""Effects of settings on burn-in runs: each has those with which it begins."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from burnin_bench import Bench
from burnin_support import Card, make_plan, simulate, uuid
from settings_support import in_force, reload
from test_burnin_verdict import judged

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Begun, Ended
from obatchd.burnin.run import plan as plans
from obatchd.burnin.run.manager import Burnin
from obatchd.daemon.burnin import BurninHost, StressFiles
from obatchd.gpus.model import Gpu
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

DAY_S = 86_400.0


def those_of_a_run(settings: Current[Settings]) -> Settings:
    """What a run asks its host for when it begins."""
    host: Any = SimpleNamespace(_settings=settings)
    return BurninHost.settings(host)


class Host(Bench):
    """A host with made-up servers and the settings of a daemon."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> None:
        super().__init__(directory, patch)
        self._current = settings
        self.checks = 0
        self.says = self._check

    def settings(self) -> Settings:
        return those_of_a_run(self._current)

    def _check(self, server: str) -> str:
        self.checks += server == "gpu0"
        return "the same"

    async def run(self) -> int:
        """A run of an hour, in a thousandth of its time; how many answers of a GPU were checked."""
        asked = plans.Asked(duration="1h")
        plan = plans.make("20261124-180000", asked, [uuid(number) for number in range(3)], self.settings())
        self.checks = 0
        (self.directory / "r.jsonl").unlink(missing_ok=True)
        await self.carry_out(canary_s=plan.canary_s / 1000, canary_runs=plan.canary_runs)
        return self.checks


Look = Callable[[Path, pytest.MonkeyPatch, Current[Settings]], Awaitable[Any]]


def verdict_of(signal: str, first: Card, *others: Card) -> Look:
    """What a run of an hour says of the first card."""

    async def look(directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> str:
        cards = [first, *others]
        asked = plans.Asked(duration="1h", profile="quick")
        plan = plans.make("20261124-180000", asked, [uuid(n) for n in range(len(cards))], those_of_a_run(settings))
        reasons = judged(simulate(cards, 1.0, plan=plan))[0].reasons
        return next((str(reason.consequence) for reason in reasons if reason.signal == signal), "")

    return look


async def model_loaded(directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> str:
    host = Host(directory, patch, settings)
    runs = Burnin(directory / f"runs-{time.monotonic_ns()}", host)
    await runs.start({"duration": "10s"})
    server = host.servers["gpu0"]
    async with asyncio.timeout(20):
        while server.loaded is None:
            await asyncio.sleep(0.01)
    await runs.close()
    return server.loaded.model


async def checked_often(directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> bool:
    return await Host(directory, patch, settings).run() > 3 + 4


async def calibrated_with_many(directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> bool:
    return await Host(directory, patch, settings).run() >= 30


async def runs_kept(directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> list[str]:
    """Of three that ended, one of them a year ago."""
    shelf = directory / "shelf"
    for name, age_s in (("20250101-000000", 365 * DAY_S), ("20261101-000000", 0.0), ("20261102-000000", 0.0)):
        plan = make_plan(1, 1.0, run=name)
        file = journal.Journal(journal.Shelf(shelf).path(name))
        file.append([Begun(1.0, plan, [], {}, "0"), Ended(2.0, "completed")])
        file.close()
        then_s = time.time() - age_s
        os.utime(journal.Shelf(shelf).path(name), (then_s, then_s))
    runs = Burnin(shelf, Host(directory, patch, settings))
    await runs.resume()
    return [run.run[:4] for run in await runs.runs()]


async def untested(directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> str:
    """Of a run whose only load is a model that leaves some memory."""
    asked = plans.Asked(duration="1h", load=["model"])
    plan = plans.make("20261124-180000", asked, [uuid(0)], those_of_a_run(settings))
    reasons = judged(simulate([Card()], 1.0, plan=plan))[0].reasons
    return next((str(reason.consequence) for reason in reasons if reason.signal == "vram_untested"), "")


async def memory_asked_for(directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> float:
    """The share of the free memory that a stress process is told to take."""
    host = Host(directory, patch, settings)
    runs = Burnin(directory / f"runs-{time.monotonic_ns()}", host)
    await runs.start({"duration": "10s", "load": ["memory"]})
    card = host.cards[uuid(0)]
    async with asyncio.timeout(20):
        while not card.memory_percent:
            await asyncio.sleep(0.01)
    await runs.close()
    return card.memory_percent


async def host_memory(directory: Path, patch: pytest.MonkeyPatch, settings: Current[Settings]) -> int:
    """The limit of a stress process, in bytes of the host's memory."""
    gpu = Gpu(uuid(0), "H100", 0, "00000000:01:00.0", None, "1-simulated")
    host: Any = SimpleNamespace(_settings=settings, gpus_of={"gpu0": (gpu,)}, _files=StressFiles(directory, ()))
    return BurninHost.stress(host, gpu.uuid, host)._memory_bytes


class Run(NamedTuple):
    """A setting before and after a reload, and what is seen of runs that begin with each."""

    old: Any
    new: Any
    look: Look
    seen: tuple[Any, Any]
    beside: dict[str, Any] = {}  # noqa: RUF012 - never changed


async def see_run(key: str, run: Run, directory: Path, patch: pytest.MonkeyPatch) -> None:
    """A run that begins after a reload has the new setting."""
    current = in_force(model="daemon", burnin={key.removeprefix("burnin."): run.old} | run.beside)
    assert await run.look(directory, patch, current) == run.seen[0]
    reload(current, key, run.new)
    assert await run.look(directory, patch, current) == run.seen[1]


def idle(at_s: float) -> bool:
    """For a tenth of the time."""
    return at_s % 600 < 60


def lazy(at_s: float, fields: dict[str, Any]) -> None:
    fields["utilisation_percent"] = 80


USUAL = (Card(), Card())
RUNS = {
    "burnin.model": Run("", "another", model_loaded, ("daemon", "another")),
    "burnin.canary_s": Run(600, 60, checked_often, (False, True), {"canary_runs": 3}),
    "burnin.canary_runs": Run(3, 30, calibrated_with_many, (False, True)),
    "burnin.slower_warn_percent": Run(9, 5, verdict_of("slow", Card(speed=0.93), *USUAL), ("", "warn")),
    "burnin.slower_fail_percent": Run(30, 10, verdict_of("slow", Card(speed=0.85), *USUAL), ("warn", "fail")),
    "burnin.stress_power_percent": Run(50, 95, verdict_of("low_stress", Card()), ("", "note")),
    "burnin.stress_utilisation_percent": Run(70, 90, verdict_of("low_stress", Card(reading=lazy)), ("", "note")),
    "burnin.stress_loaded_percent": Run(
        50, 95, verdict_of("low_stress", Card(busy=lambda at_s: not idle(at_s))), ("", "note"),
        {"stress_utilisation_percent": 10, "stress_power_percent": 10},
    ),
    "burnin.least_loaded_percent": Run(
        50, 99, verdict_of("short_load", Card(busy=lambda at_s: not idle(at_s))), ("", "inconclusive")
    ),
    "burnin.least_seen_percent": Run(50, 99, verdict_of("monitoring_lost", Card(blind=idle)), ("", "inconclusive")),
    "burnin.vram_target_percent": Run(80, 95, untested, ("", "note")),
    "burnin.covered_percent": Run(50, 99, verdict_of("low_stress", Card(), *USUAL), ("", "note")),
    "burnin.memory_percent": Run(50.0, 90.0, memory_asked_for, (50.0, 90.0)),
    "burnin.stress_memory_mib": Run(1000, 2000, host_memory, (1000 * 2**20, 2000 * 2**20)),
    "burnin.keep_runs": Run(100, 1, runs_kept, (["2026", "2026", "2025"], ["2026"])),
    "burnin.keep_days": Run(400, 30, runs_kept, (["2026", "2026", "2025"], ["2026", "2026"])),
}  # fmt: skip
