"""What administrators may ask about GPUs, on a monitor without servers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from operations_support import ADMIN
from test_gpu_monitor import Bench

from obatchd.documents.gpus import KernelLogState
from obatchd.errors import ControlError, NotFoundError
from obatchd.gpucare.cards import GpuCards
from obatchd.gpus.model import Identity, Reading
from obatchd.live.audit import AuditLog
from obatchd.operations.gpus import GpuService


class Duty:
    """The part of the real one that the service uses."""

    def __init__(self, bench: Bench) -> None:
        self.monitor = bench.monitor
        self.fleet = SimpleNamespace(servers={})
        self.watch = SimpleNamespace(
            kernel_log=SimpleNamespace(source="", problem="/dev/kmsg: Operation not permitted"),
            history=SimpleNamespace(events=lambda uuid, limit, serial: []),
            blind="",
        )

    def release(self, card: str) -> list[str]:
        return self.monitor.release(card)


def cards_of(bench: Bench, state: str = "ok", host_trouble: tuple[str, str] = ("", "")) -> GpuCards:
    probe: Any = SimpleNamespace(gpus=bench.gpus, state=state, message="words", host_trouble=host_trouble)
    policy: Any = Duty(bench)
    return GpuCards(policy, probe)


def service(bench: Bench, state: str = "ok", host_trouble: tuple[str, str] = ("", "")) -> GpuService:
    audit: Any = AsyncMock(AuditLog)
    return GpuService(cards_of(bench, state, host_trouble), audit)


async def test_a_known_warning_ends_by_a_release_and_what_is_well_needs_none() -> None:
    bench = Bench()
    bench.slow()
    bench.slow(gpu1={"pcie_fatal": 0})
    bench.slow(gpu1={"pcie_fatal": 1})
    bench.read()
    view = service(bench)
    assert [gpu.health for gpu in view.all().gpus] == ["ok", "warn", "ok", "ok"]
    released = await view.release(ADMIN, "1")
    assert (released.uuid, released.index, released.accepted) == ("GPU-1", 1, [])
    bench.slow(gpu1={"pcie_fatal": 1})
    bench.read()
    assert view.all().gpus[1].health == "ok"
    with pytest.raises(ControlError, match=r"^GPU 1 is not in quarantine, and nothing is found against it"):
        await view.release(ADMIN, "1")


async def test_a_release_is_refused_while_the_reason_holds() -> None:
    bench = Bench()
    bench.read(2, gpu2={"trouble": "lost"})
    with pytest.raises(ControlError, match=r"^GPU 2 cannot be released yet: .*does not find the GPU any more$"):
        await service(bench).release(ADMIN, "GPU-2")


async def test_gpus_are_named_by_index_uuid_or_serial_number() -> None:
    bench = Bench(count=2)
    bench.monitor.identities([Identity("GPU-1", "Test", 1, serial="1320")])
    view = service(bench)
    assert [(await view.one(name)).uuid for name in ("1", "GPU-1", "1320")] == ["GPU-1"] * 3
    for name, words in (("GPU", "several GPUs match"), ("7", "no GPU 7")):
        with pytest.raises(NotFoundError, match=words):
            await view.one(name)


async def test_a_whole_name_goes_before_the_beginning_of_another() -> None:
    view = service(Bench(count=11))
    assert [(await view.one(name)).uuid for name in ("GPU-1", "GPU-10", "1")] == ["GPU-1", "GPU-10", "GPU-1"]


async def test_without_a_probe_nobody_is_called_well() -> None:
    bench = Bench(count=2)
    bench.read()
    document = service(bench, state="unknown").all()
    assert [gpu.health for gpu in document.gpus] == ["unknown", "unknown"]
    assert document.kernel_log == KernelLogState(None, "/dev/kmsg: Operation not permitted")


async def test_what_nobody_reads_any_more_is_not_shown_as_if_it_were_of_now() -> None:
    bench = Bench(count=1)
    bench.monitor.readings([Reading("GPU-0", bench.now_s, temp_c=60, power_w=300.0, memory_total_bytes=2**36)])
    [seen] = service(bench).all().gpus
    assert (seen.temp_c, seen.power_w, seen.memory_total_bytes) == (60, 300.0, 2**36)
    [unseen] = service(bench, state="unknown").all().gpus
    assert (unseen.temp_c, unseen.power_w, unseen.memory_total_bytes) == (None, None, 2**36)


async def test_a_card_of_a_driver_that_is_gone_can_be_forgotten_for_good() -> None:
    bench = Bench(count=2)
    bench.monitor.save()
    bench.gpus.clear()
    view = service(bench, state="absent")
    assert [gpu.health for gpu in view.all().gpus] == ["unknown", "unknown"]
    released = await view.release(ADMIN, "1")
    assert (released.uuid, released.forgotten) == ("GPU-1", True)
    assert [gpu.uuid for gpu in view.all().gpus] == ["GPU-0"]


async def test_a_card_that_sleeps_is_shown_so_and_nothing_of_its_latest_reading() -> None:
    bench = Bench(count=2)
    bench.read()
    bench.monitor.readings([Reading("GPU-0", bench.now_s, asleep=True), Reading("GPU-1", bench.now_s, temp_c=60)])
    asleep, awake = service(bench).all().gpus
    assert (asleep.asleep, asleep.temp_c, asleep.health) == (True, None, "ok")
    assert (bool(awake.asleep), awake.temp_c) == (False, 60)


@pytest.mark.parametrize("for_s", [0.0, -5.0, 31 * 86_400.0, float("nan")])
async def test_a_loan_has_an_end(for_s: float) -> None:
    with pytest.raises(ControlError, match="30 days at most"):
        await service(Bench(count=1)).lend(ADMIN, "0", for_s)
