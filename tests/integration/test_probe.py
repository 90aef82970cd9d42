"""The probe as the daemon sees it. Its process is real, what it reads is scripted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fleet_support import wait_for
from process_support import alive
from task_support import Failures

from obatchd.child import End
from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.probe import REPLACEMENTS, Listener, Probe
from obatchd.gpus.probe_child import Absent, Beat
from obatchd.gpus.source import GpuSource
from obatchd.settings.tables.servers import GpuSettings
from obatchd.simulator.gpus import SimulatedGpus
from obatchd.simulator.timeline import GpuEvent, write_script

GPU = Gpu("GPU-1", "Test", 0, "00000000:01:00.0", 2**30, "1.0")


class Scripted(GpuSource):
    """Lists one GPU and does what its script says at the n-th reading of its process."""

    def __init__(self, script: Callable[[int], None]) -> None:
        self._script = script
        self._count = 0

    def gpus(self) -> list[Gpu]:
        return [GPU]

    def readings(self) -> list[Reading]:
        self._count += 1
        self._script(self._count)
        return [Reading(GPU.uuid, time.time(), temp_c=self._count)]


def hang_at_second(count: int) -> None:
    if count == 2:
        time.sleep(3600)


def die_at_second(count: int) -> None:
    if count == 2:
        os._exit(1)


def fine(count: int) -> None:
    pass


def scripted(script: Callable[[int], None]) -> Scripted:
    return Scripted(script)


def no_driver() -> Scripted:
    raise GpuError("No NVIDIA driver on this host.", code="no_driver")


def hang() -> Scripted:
    time.sleep(3600)
    return Scripted(fine)


def settings() -> GpuSettings:
    return GpuSettings(poll_s=0.02)


async def test_readings_arrive_and_the_process_ends_with_the_probe() -> None:
    probe = Probe(settings(), partial(scripted, fine), Failures())
    await probe.start()
    assert (probe.state, probe.gpus) == ("ok", [GPU])
    await wait_for(lambda: probe.readings and (probe.readings["GPU-1"].temp_c or 0) > 2)
    pid = probe.pid
    assert pid is not None
    await probe.stop()
    await wait_for(lambda: not alive(pid))


async def test_no_driver_is_absence() -> None:
    probe = Probe(settings(), no_driver, Failures())
    await probe.start()
    assert (probe.state, probe.code, probe.gpus) == ("absent", "no_driver", [])
    assert "No NVIDIA driver" in probe.message
    await probe.stop()


async def test_start_returns_when_the_driver_hangs() -> None:
    probe = Probe(settings(), hang, Failures(), start_timeout_s=0.3)
    await probe.start()
    assert (probe.state, probe.gpus) == ("unknown", [])
    pid = probe.pid
    await probe.stop()
    if pid is not None:
        await wait_for(lambda: not alive(pid))  # although the call into the driver has not returned


async def test_a_silent_probe_is_replaced_a_few_times_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obatchd.gpus.probe.REPLACEMENTS", 1)
    probe = Probe(GpuSettings(poll_s=0.02, silent_s=3.0), partial(scripted, hang_at_second), Failures())
    await probe.start()
    assert probe.state == "ok"
    first = probe.pid
    assert first is not None
    await wait_for(lambda: probe.replacements >= 1)
    await wait_for(lambda: not alive(first))
    await wait_for(lambda: "does not start it again" in probe.message)
    assert (probe.state, probe.replacements, probe.readings) == ("unknown", 1, {})
    await probe.stop()


async def test_a_probe_that_dies_is_replaced() -> None:
    probe = Probe(settings(), partial(scripted, die_at_second), Failures())
    await probe.start()
    await wait_for(lambda: "does not start it again" in probe.message)
    assert probe.replacements == REPLACEMENTS and "died" in probe.message
    await probe.stop()


def pause_at_second(count: int) -> None:
    if count == 2:
        time.sleep(1.0)


async def test_a_driver_that_is_slow_to_answer_is_unknown_meanwhile() -> None:
    probe = Probe(GpuSettings(poll_s=0.02, silent_warn_s=0.2), partial(scripted, pause_at_second), Failures())
    await probe.start()
    await wait_for(lambda: probe.code == "probe_late")
    assert probe.state == "unknown"
    await wait_for(lambda: probe.state == "ok")
    assert probe.replacements == 0
    await probe.stop()


class Heard(Listener):
    def __init__(self) -> None:
        self.cards: list[Identity] = []
        self.slow: list[SlowReading] = []
        self.events: list[XidEvent] = []

    def identities(self, identities: list[Identity]) -> None:
        self.cards = identities

    def slow_readings(self, readings: list[SlowReading]) -> None:
        self.slow = readings

    def xids(self, events: list[XidEvent]) -> None:
        self.events += events


async def test_a_listener_hears_everything(tmp_path: Path) -> None:
    settings = GpuSettings(poll_s=0.05, slow_poll_s=0.1)
    probe, heard = Probe(settings, partial(SimulatedGpus, tmp_path, 2), Failures()), Heard()
    probe.listen(heard)
    await probe.start()
    await wait_for(lambda: len(heard.cards) == 2)
    write_script(tmp_path, {"1": [GpuEvent("xid"), GpuEvent("lost")]})
    await wait_for(lambda: heard.events and heard.slow and heard.slow[1].trouble == "lost")
    assert [card.serial for card in heard.cards] == ["SIM0000000000", "SIM0000000001"]
    assert [(event.xid, event.uuid) for event in heard.events] == [(79, probe.gpus[1].uuid)]
    assert probe.readings[probe.gpus[1].uuid].trouble == "lost"
    await probe.stop()


async def test_a_driver_updated_underneath_is_told_while_readings_go_on(tmp_path: Path) -> None:
    probe = Probe(GpuSettings(poll_s=0.05, slow_poll_s=0.1), partial(SimulatedGpus, tmp_path, 1), Failures())
    await probe.start()
    write_script(tmp_path, {"0": [GpuEvent("mismatch")]})
    await wait_for(lambda: probe.host_trouble[0] == "driver_mismatch")
    assert probe.state == "ok" and "reboot" in probe.host_trouble[1]
    await probe.stop()


class Gone(Scripted):
    """A driver that is unloaded after its first use, and loaded again later."""

    def __init__(self, directory: Path) -> None:
        super().__init__(die_at_second)
        starts = len(list(directory.iterdir()))
        (directory / str(starts)).touch()
        if starts == 1:
            raise GpuError("unloaded", code="no_driver")


async def test_a_driver_that_goes_away_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obatchd.gpus.probe.RETRY_S", 0.3)
    probe = Probe(settings(), partial(Gone, tmp_path), Failures())
    await probe.start()
    await wait_for(lambda: probe.code == "no_driver")
    assert (probe.state, probe.gpus) == ("unknown", [GPU])
    await wait_for(lambda: probe.state == "ok")
    await probe.stop()


async def test_simulated_gpus(tmp_path: Path) -> None:
    probe = Probe(GpuSettings(poll_s=0.05), partial(SimulatedGpus, tmp_path, 3), Failures())
    await probe.start()
    assert probe.state == "ok" and [gpu.index for gpu in probe.gpus] == [0, 1, 2]
    await wait_for(lambda: len(probe.readings) == 3)
    await probe.stop()


async def test_a_process_that_nobody_keeps_any_more_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(probe: Probe, end: End) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Probe, "ended", ended)
    failures = Failures()
    probe = Probe(settings(), partial(scripted, die_at_second), failures)
    await probe.start()
    await wait_for(lambda: failures)
    assert failures == ["probe: RuntimeError: a defect"]
    await probe.stop()


class Late(Scripted):
    """A driver that is not loaded when it is asked at first, shows no GPU then, and is there the third time."""

    def __init__(self, directory: Path, first: str) -> None:
        super().__init__(fine)
        self._starts = len(list(directory.iterdir()))
        (directory / str(self._starts)).touch()
        if self._starts == 0 and first == "no_driver":
            raise GpuError("No NVIDIA driver on this host.", code="no_driver")

    def gpus(self) -> list[Gpu]:
        return [GPU] if self._starts > 1 else []


@pytest.mark.parametrize("first", ["no_driver", "no_gpu"])
async def test_a_driver_that_comes_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    monkeypatch.setattr("obatchd.gpus.probe.RETRY_S", 0.05)
    probe = Probe(settings(), partial(Late, tmp_path, first), Failures())
    await probe.start()
    assert (probe.state, probe.code, probe.present.is_set()) == ("absent", first, False)
    await wait_for(probe.present.is_set)
    assert (probe.state, probe.gpus) == ("ok", [GPU])
    await wait_for(lambda: probe.readings)
    await probe.stop()


async def test_the_driver_is_asked_again_for_ever_and_ever_more_seldom() -> None:
    probe = Probe(settings(), no_driver, Failures())
    pauses = []
    for _ in range(40):
        probe.heard(Absent("no_driver", ""))
        pauses.append(probe.ended(End("died", 0.1)))
    assert pauses[:3] == [2.0, 4.0, 8.0] and set(pauses[6:]) == {60.0}


async def test_a_driver_that_hangs_after_it_was_absent_is_not_asked_for_ever() -> None:
    """Each process that hangs in the driver may stay for ever."""
    probe = Probe(settings(), no_driver, Failures())
    probe.heard(Absent("no_driver", ""))
    assert probe.ended(End("died", 0.1)) == 2.0
    for pause_s in [*[0.0] * REPLACEMENTS, None]:
        probe.heard(Beat())
        assert probe.ended(End("said nothing for 60 s", 60.0)) == pause_s
        assert (probe.state, probe.code) == ("unknown", "probe_silent")
    assert "does not start it again" in probe.message


def not_installed() -> Scripted:
    raise ModuleNotFoundError("No module named 'pynvml'", name="pynvml")


class Unreadable:
    """A source of which the probe's process finds no module."""

    def __reduce__(self) -> tuple[object, ...]:
        return __import__, ("no_such_module",)

    def __call__(self) -> Scripted:
        raise AssertionError


@pytest.mark.parametrize("source", [not_installed, Unreadable()])
async def test_what_cannot_be_imported_is_no_fault_of_the_driver(source: Callable[[], Scripted]) -> None:
    probe = Probe(settings(), source, Failures())
    await probe.start()
    assert not probe.gpus and probe.state != "ok"
    assert "nvidia-smi" not in probe.message and "install" in probe.message
    await probe.stop()


async def test_a_process_that_cannot_be_started_is_no_fault_of_the_driver() -> None:
    probe = Probe(settings(), no_driver, Failures())
    for pause_s in (0.0, None):
        assert probe.ended(End("cannot be started: Too many open files", 0.1)) == pause_s
        assert "Too many open files" in probe.message and "nvidia-smi" not in probe.message


async def test_a_start_that_is_cut_short_leaves_no_process() -> None:
    probe = Probe(settings(), hang, Failures())
    starting = asyncio.create_task(probe.start())
    await wait_for(lambda: probe.pid)
    pid = probe.pid
    assert pid is not None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await wait_for(lambda: not alive(pid))
