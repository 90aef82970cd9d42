from __future__ import annotations

import pytest

from obatchd.errors import ConfigError
from obatchd.gpus.model import Gpu
from obatchd.gpus.selection import choose
from obatchd.settings.tables.servers import GpuSettings, ServerGroup


def gpu(index: int, parent: str | None = None, position: int | None = None) -> Gpu:
    uuid = f"GPU-{index}" if parent is None else f"MIG-{index}-{position}"
    return Gpu(uuid, "Test GPU", index, f"00000000:0{index}:00.0", 2**34, "1.0", parent, position)


FOUR = [gpu(index) for index in range(4)]
SLICED = [gpu(0), gpu(1, "GPU-1", 0), gpu(1, "GPU-1", 2)]


def ids(gpus: list[Gpu], groups: list[ServerGroup] | None = None, **settings: object) -> list[str]:
    return [server.id for server in choose(gpus, GpuSettings.model_validate(settings), groups or [])]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["gpu0", "gpu1", "gpu2", "gpu3"]),
        ({"use": "simulated:4"}, ["gpu0", "gpu1", "gpu2", "gpu3"]),
        ({"use": "none"}, []),
        ({"use": [2, "GPU-0", "2"]}, ["gpu2", "gpu0"]),
        ({"exclude": ["GPU-3", 0]}, ["gpu1", "gpu2"]),
        ({"use": [1, 2], "exclude": [2]}, ["gpu1"]),
    ],
)
def test_choice(settings: dict[str, object], expected: list[str]) -> None:
    assert ids(FOUR, **settings) == expected


def test_slices_get_servers_of_their_own_and_a_card_means_all_its_slices() -> None:
    assert ids(SLICED) == ["gpu0", "gpu1.mig0", "gpu1.mig2"]
    assert ids(SLICED, use=["GPU-1"]) == ids(SLICED, use=[1]) == ["gpu1.mig0", "gpu1.mig2"]
    assert ids(SLICED, use=["MIG-1-2"]) == ["gpu1.mig2"]


def test_a_group_takes_its_gpus_out_of_the_pool() -> None:
    planned = choose(FOUR, GpuSettings(), [ServerGroup(gpus=[1, "GPU-3"])])
    assert [(server.id, [g.index for g in server.gpus]) for server in planned] == [
        ("gpu0", [0]),
        ("gpu2", [2]),
        ("group0", [1, 3]),
    ]


@pytest.mark.parametrize("settings", [{"use": ["GPU-9"]}, {"use": [9]}, {"exclude": [9]}])
def test_an_unknown_gpu_is_named_with_those_that_exist(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"9.*0 = GPU-0 \(Test GPU\), 1 = GPU-1"):
        ids(FOUR, **settings)


def test_no_gpu_twice() -> None:
    with pytest.raises(ConfigError, match="already in a group"):
        ids(FOUR, [ServerGroup(gpus=[0, 1]), ServerGroup(gpus=[1, 2])])
    with pytest.raises(ConfigError, match="excluded"):
        ids(FOUR, [ServerGroup(gpus=[0, 1])], exclude=[1])
