"""Servers of this machine and of joined hosts, as the parts of the daemon ask about them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hosts_support import HeadRig, StandInHost, heads, host_news, server_news, until

from obatchd.daemon.served import GpuLoads, ServedModels
from obatchd.documents.gpus import Reading
from obatchd.errors import ServerError
from obatchd.gpus.energy import EnergyMeters
from obatchd.gpus.model import Gpu
from obatchd.servers.fleet import Fleet

CARD = Gpu("GPU-1", "H100", 0, "0000:01:00.0", 80 * 2**30, "570")


@pytest.fixture
async def head() -> AsyncIterator[HeadRig]:
    async with heads() as made:
        yield made


def fleet(head: HeadRig) -> Fleet:
    return cast(Fleet, SimpleNamespace(guests=head.guests, all=head.guests, find=head.guests.get))


class Keeper:
    def info(self, model: str, server: Any = None) -> None:
        return None


async def test_energy_and_load_of_a_hosts_gpu_come_from_its_readings(head: HeadRig) -> None:
    host = StandInHost(servers={"gpu0": server_news(gpus=[CARD], gpu_label="GPU-1")}, clock_s=86400.0)
    own = EnergyMeters()
    own.add("GPU-1", 5.0, 0.0)  # a card of this machine that has the same name, as after a move
    served = ServedModels(cast(Any, Keeper()), fleet(head), own)
    loads = GpuLoads(cast(Any, None), fleet(head))
    async with host.joined(head.hosts):
        await until(lambda: head.guests)
        assert served.why_no_energy("node07.gpu0") == "GPU 0 does not tell its energy"
        for energy_j in (100.0, 350.0):
            told_s = time.time() + 86400.0
            host.say(host_news(readings=[Reading("GPU-1", told_s, utilisation_percent=83, energy_j=energy_j)]))
        await until(lambda: (told := served.energy("node07.gpu0")) and told.energy_j == 250.0)
        assert loads.utilisation("node07.gpu0") == 83
        assert served.why_no_energy("node07.gpu0") == ""
        assert served.gpus_per_slot("node07.gpu0") == 0.5
        assert served.server_version("node07.gpu0") == "0.24.0"
        host.say(host_news(readings=[Reading("GPU-1", time.time(), utilisation_percent=83)]))  # of yesterday
        await until(lambda: loads.utilisation("node07.gpu0") is None)


async def test_a_server_that_went_with_its_host_is_no_defect(head: HeadRig) -> None:
    served = ServedModels(cast(Any, Keeper()), fleet(head), EnergyMeters())
    assert served.digest_on("node07.gpu0", "small") == ""
    assert served.why_no_energy("node07.gpu0") == "the server is not there any more"
    with pytest.raises(ServerError, match="not there any more"):
        await served.ensure("node07.gpu0", "small")


def test_a_daemon_without_a_door_loads_nothing_of_it() -> None:
    program = "import sys, obatchd.daemon.life; print({'cryptography', 'obatchd.cluster.head.door'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
