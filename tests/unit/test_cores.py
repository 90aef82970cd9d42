"""The cores that a server on the CPU may use: affinity, hyperthreads, and quotas of control groups of both versions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from settings_support import in_force

from obatchd.jobs.model import Profile
from obatchd.servers import managed
from obatchd.servers.cores import cpu_threads, usable_cores
from obatchd.servers.managed import Host, ManagedServer

Tree = Callable[..., int]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Cores seen by a process on 16 CPUs without hyperthreads, with these files of control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))

    def cores(groups: str, mounts: list[str], siblings: str = "", **files: str) -> int:
        process, cpus = tmp_path / "self", tmp_path / "cpu"
        process.mkdir()
        (process / "cgroup").write_text(groups)
        lines = ["21 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts]
        (process / "mountinfo").write_text("\n".join(lines).replace(" /@", f" {tmp_path}/") + "\n")
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        for cpu in range(16) if siblings else ():
            place = cpus / f"cpu{cpu}" / "topology"
            place.mkdir(parents=True)
            (place / "thread_siblings_list").write_text(siblings.format(cpu % 8, cpu % 8 + 8))
        return usable_cores(process, cpus)

    return cores


V2 = "30 21 0:26 / /@cg rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 21 0:30 / /@cg/cpu rw - cgroup cgroup rw,cpu,cpuacct"


def test_without_control_groups_the_affinity_counts(tree: Tree) -> None:
    assert tree("", []) == 16


def test_hyperthreads_of_one_core_count_once_within_a_cpuset(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 9, 10})
    assert tree("0::/\n", [V2], siblings="{},{}") == 2


def test_a_quota_of_version_2(tree: Tree) -> None:
    found = tree(
        "0::/system.slice/obatchd.service\n", [V2], **{"cg/system.slice/obatchd.service/cpu.max": "350000 100000"}
    )
    assert found == 3


def test_the_smallest_of_nested_quotas_counts(tree: Tree) -> None:
    files = {"cg/a/b/c/cpu.max": "max 100000", "cg/a/b/cpu.max": "100000 50000", "cg/a/cpu.max": "800000 100000"}
    assert tree("0::/a/b/c\n", [V2], **files) == 2


def test_a_quota_of_version_1_beside_an_empty_version_2(tree: Tree) -> None:
    unified = "41 21 0:40 / /@cg/unified rw - cgroup2 cgroup2 rw"
    groups = "9:cpuset:/\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n"
    files = {"cg/cpu/docker/cpu.cfs_quota_us": "-1", "cg/cpu/docker/abc/cpu.cfs_quota_us": "400000"}
    files |= {"cg/cpu/docker/cpu.cfs_period_us": "100000", "cg/cpu/docker/abc/cpu.cfs_period_us": "100000"}
    assert tree(groups, [unified, V1], **files) == 4


def test_a_container_that_sees_only_its_own_group_under_the_hosts_path(tree: Tree) -> None:
    mount = "33 21 0:30 /docker/abc /@cg/cpu ro - cgroup cgroup rw,cpu"
    files = {"cg/cpu/cpu.cfs_quota_us": "150000", "cg/cpu/cpu.cfs_period_us": "100000"}
    assert tree("3:cpu:/docker/abc\n", [mount], **files) == 1


def test_a_path_that_is_not_below_the_mounted_group_means_the_mounted_group(tree: Tree) -> None:
    mount = "30 21 0:26 /kubepods/pod1 /@cg ro - cgroup2 cgroup2 rw"
    assert tree("0::/../other\n", [mount], **{"cg/cpu.max": "250000 100000", "other/cpu.max": "100000 100000"}) == 2


@pytest.mark.parametrize("text", ["max 100000", "max", "", "100000 0", "many few"])
def test_what_is_no_quota_limits_nothing(tree: Tree, text: str) -> None:
    assert tree("0::/\n", [V2], **{"cg/cpu.max": text}) == 16


def test_part_of_a_core_is_one_thread(tree: Tree) -> None:
    assert tree("0::/\n", [V2], **{"cg/cpu.max": "50000 100000"}) == 1


def test_a_server_on_the_cpu_has_the_same_threads_for_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ollama loads a model again where an option of loading differs."""
    anything, cores = cast(Any, SimpleNamespace()), 4
    monkeypatch.setattr(managed, "usable_cores", lambda: cores)
    host = Host(in_force(), tmp_path, "mine", anything, anything, {}, anything, cpu_servers=2, models_dir=tmp_path)
    server = ManagedServer("cpu0", [], 1, host)
    cores = 2
    assert server.load_options(Profile("small", 4096))["num_thread"] == 2


@pytest.mark.parametrize(("cores", "servers"), [(1, 1), (2, 1), (2, 2), (8, 1), (8, 3), (4, 9)])
def test_threads_never_exceed_the_cores(cores: int, servers: int) -> None:
    threads = cpu_threads(cores, servers)
    assert threads >= 1
    assert threads * servers <= max(cores, servers)


def test_a_cpu_server_alone_leaves_a_core_to_the_others() -> None:
    assert [cpu_threads(cores, 1) for cores in (1, 2, 8)] == [1, 1, 7]
