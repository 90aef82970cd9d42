from __future__ import annotations

import pytest

from obatchd.errors import ConfigError
from obatchd.gpus.model import Gpu
from obatchd.gpus.selection import choose, given
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


LONG = [gpu(index) for index in range(4)] + [gpu(10)]  # GPU-1 is the beginning of GPU-10
MIG = [gpu(0, "GPU-0", 0), gpu(0, "GPU-0", 1), gpu(1, "GPU-1", 0), gpu(2)]


@pytest.mark.parametrize(
    ("gpus", "environ", "expected"),
    [
        (FOUR, {}, ["gpu0", "gpu1", "gpu2", "gpu3"]),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "2"}, ["gpu2"]),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "3, 1"}, ["gpu1", "gpu3"]),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-3,GPU-0"}, ["gpu0", "gpu3"]),
        (LONG, {"CUDA_VISIBLE_DEVICES": "GPU-10"}, ["gpu10"]),
        (LONG, {"CUDA_VISIBLE_DEVICES": "GPU-1"}, ["gpu1"]),
        (LONG[-1:] + FOUR[2:], {"CUDA_VISIBLE_DEVICES": "GPU-1,2"}, ["gpu10", "gpu2"]),  # the beginning of one UUID
        (FOUR, {"CUDA_VISIBLE_DEVICES": "GPU-"}, []),  # of several
        (FOUR, {"CUDA_VISIBLE_DEVICES": "0,9,1"}, ["gpu0"]),  # CUDA stops at what it does not know
        (FOUR, {"CUDA_VISIBLE_DEVICES": "9"}, []),
        (FOUR, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "-1"}, []),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "none"}, []),
        (FOUR, {"CUDA_VISIBLE_DEVICES": "all"}, ["gpu0", "gpu1", "gpu2", "gpu3"]),
        (MIG, {"CUDA_VISIBLE_DEVICES": "MIG-0-1"}, ["gpu0.mig1"]),
        (MIG, {"CUDA_VISIBLE_DEVICES": "0"}, ["gpu0.mig0", "gpu0.mig1"]),
        (MIG, {"NVIDIA_VISIBLE_DEVICES": "0:1,2"}, ["gpu0.mig1", "gpu2"]),
        (FOUR, {"NVIDIA_VISIBLE_DEVICES": "all"}, ["gpu0", "gpu1", "gpu2", "gpu3"]),
        (FOUR, {"NVIDIA_VISIBLE_DEVICES": "none"}, []),
        (FOUR, {"NVIDIA_VISIBLE_DEVICES": "void"}, ["gpu0", "gpu1", "gpu2", "gpu3"]),  # CDI gave them another way
        (FOUR, {"NVIDIA_VISIBLE_DEVICES": ""}, ["gpu0", "gpu1", "gpu2", "gpu3"]),
        (FOUR, {"NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices"}, ["gpu0", "gpu1", "gpu2", "gpu3"]),
        (FOUR, {"NVIDIA_VISIBLE_DEVICES": "1"}, ["gpu1"]),
        (FOUR, {"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, ["gpu1", "gpu2"]),
        (FOUR[:2], {"NVIDIA_VISIBLE_DEVICES": "2,3"}, ["gpu0", "gpu1"]),  # in a container, where they count anew
        (FOUR, {"SLURM_JOB_GPUS": "1-2"}, ["gpu1", "gpu2"]),
        (FOUR[:1], {"SLURM_JOB_GPUS": "3", "CUDA_VISIBLE_DEVICES": "0"}, ["gpu0"]),  # Slurm hides the others
        (FOUR, {"SLURM_JOB_GPUS": "1,2", "CUDA_VISIBLE_DEVICES": "2,3"}, ["gpu2"]),
        (FOUR, {"SLURM_JOB_GPUS": ""}, []),
        # On another node than the first of its job, whose GPUs have other numbers.
        (FOUR, {"SLURM_JOB_GPUS": "1", "SLURM_STEP_GPUS": "3", "CUDA_VISIBLE_DEVICES": "3"}, ["gpu3"]),
    ],
)
def test_the_environment_may_give_a_part_of_the_gpus(
    gpus: list[Gpu], environ: dict[str, str], expected: list[str]
) -> None:
    ours = given(gpus, environ)
    assert sorted(server.id for server in choose(gpus, GpuSettings(), (), ours)) == sorted(expected)
    assert bool(ours.by) == (len(expected) < len(gpus))
    assert all(f"{name}=" in ours.by for name in environ if len(environ) == 1 and ours.by)
    assert [server.id for server in choose(gpus, GpuSettings(use="simulated:9"), (), ours)] == [
        server.id for server in choose(gpus, GpuSettings())
    ]


def test_a_setting_that_leaves_what_is_given_is_refused_and_says_who_gave_it() -> None:
    ours = given(FOUR, {"CUDA_VISIBLE_DEVICES": "0,1"})
    words = r"gpus.use: GPU '3' .* CUDA_VISIBLE_DEVICES=0,1 gives obatchd only these: 0 = GPU-0 \(Test GPU\), 1 = GPU-1"
    with pytest.raises(ConfigError, match=words):
        choose(FOUR, GpuSettings(use=[1, 3]), (), ours)
    with pytest.raises(ConfigError, match=r"servers.group\[0\].gpus: GPU 'GPU-2' .* CUDA_VISIBLE_DEVICES=0,1"):
        choose(FOUR, GpuSettings(), [ServerGroup(gpus=[0, "GPU-2"])], ours)
    assert [server.id for server in choose(FOUR, GpuSettings(use=[1], exclude=[3]), (), ours)] == ["gpu1"]
