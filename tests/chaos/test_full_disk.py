"""A spool on a small file system that fills up, and one whose disk takes no more: dispatch waits, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, jsonl, prompts, wait_for

from obatchd.errors import DaemonDownError

Start = Callable[..., Daemon]
STEADY: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.05}}
NO_MARGIN = {"disk": {"min_free_bytes": 0, "min_free_inodes": 0}}
MEBIBYTE = 1024**2


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (MEBIBYTE, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return filler


def answers(d: Daemon) -> bool:
    with contextlib.suppress(DaemonDownError):
        return bool(d.status())
    return False


def degraded(d: Daemon) -> str:
    """The reasons, once the daemon says that it is degraded."""
    status = wait_for(lambda: s if (s := d.status())["state"] == "degraded" else None, 20, "it is degraded")
    assert status is not None
    return "; ".join(status["reasons"])


def running(d: Daemon) -> None:
    wait_for(lambda: d.status()["state"] == "running", 20, "it runs again")


@pytest.mark.near
@pytest.mark.root
def test_a_disk_that_fills_up_in_the_middle_of_a_job(make_daemon: Start, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=64m")
    d = make_daemon(NO_MARGIN, simulator=STEADY, spool=disk / "s").start().ready()
    asked = prompts(600, text="x" * 2000)
    d.root = disk  # drops are written beside the spool, on the same file system
    d.drop("job.jsonl", asked)
    job = d.job("job.jsonl")
    wait_for(lambda: d.succeeded() > 20, 20, "results come")
    later = disk / "later.jsonl"
    later.write_bytes(jsonl(prompts(20, "later")))
    filler = fill(disk)

    assert "cannot be written" in degraded(d)
    shown = d.control("status")
    assert shown.returncode == 1
    assert "degraded" in shown.stdout
    wait_for(lambda: all(s["in_flight"] == 0 for s in d.servers()), 10, "dispatch waits")
    served = sum(s["served"] for s in d.seen())
    assert served < 600
    os.rename(later, d.inbox / "later.jsonl")
    refused = d.control("submit", d.config_file)
    assert refused.returncode == 1
    assert not (job.directory / "summary.json").exists()
    assert (d.inbox / "later.jsonl").exists()

    filler.unlink()
    running(d)
    d.done("job.jsonl").check(asked)
    d.done("later.jsonl").check()
    # What was answered before the disk was full was kept in memory and written, not asked again.
    assert sum(s["served"] for s in d.seen()) == len(asked) + 20
    assert not d.events("defect")
    assert d.stop() == 0


@pytest.mark.root
@pytest.mark.parametrize("kept_bytes", [8 * MEBIBYTE, 0])
def test_a_submission_that_does_not_fit_is_refused_and_holds_up_nobody(
    make_daemon: Start, small_disk: Callable[[str], Path], kept_bytes: int, tmp_path: Path
) -> None:
    disk = small_disk("size=48m")
    d = make_daemon({"disk": {"min_free_bytes": kept_bytes, "min_free_inodes": 0}}, spool=disk / "s").start().ready()
    large = tmp_path / "large.jsonl"
    large.write_bytes(jsonl(prompts(50, text="x" * MEBIBYTE)))
    refused = d.control("submit", large)
    assert refused.returncode == 1
    assert f", {kept_bytes // MEBIBYTE} MiB (min_free_bytes in [disk]) must stay free" in refused.stderr
    assert not list((disk / "s" / "work" / "jobs").iterdir())
    fits = tmp_path / "fits.jsonl"
    fits.write_bytes(jsonl(asked := prompts(20)))
    assert d.control("submit", fits).returncode == 0
    d.done("fits.jsonl").check(asked)
    running(d)
    assert not d.events("submission_failed")


@pytest.mark.root
def test_a_daemon_started_on_a_full_disk_goes_on_when_there_is_space(
    make_daemon: Start, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=16m")
    d = make_daemon(NO_MARGIN, spool=disk / "s").start().ready()
    d.root = disk
    d.drop("job.jsonl", prompts(5, text="x" * 2000))
    d.done("job.jsonl")
    d.drop("half.jsonl", prompts(50))
    d.job("half.jsonl")
    d.kill()
    filler = fill(disk)
    process = d.launch()
    wait_for(lambda: process.poll() is not None or answers(d), 20, "it answers or ends")
    if process.poll() is None:
        assert degraded(d)
    else:
        assert "disk" in d.log().splitlines()[-1]
    filler.unlink()
    if process.poll() is not None:
        d.start()
    running(d)
    d.done("half.jsonl").check()


@pytest.mark.root
def test_few_inodes_stop_dispatch_and_claims_before_anything_fails(
    make_daemon: Start, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=24m,nr_inodes=4000")
    config = {"disk": {"min_free_bytes": 0, "min_free_inodes": 1000}}
    d = make_daemon(config, simulator=STEADY, spool=disk / "s").start().ready()
    d.root = disk
    litter = disk / "litter"
    litter.mkdir()
    for number in range(3200):
        (litter / str(number)).touch()
    assert "inodes" in degraded(d)
    d.drop("job.jsonl", prompts(20))
    assert d.status()["jobs"] == []
    assert (d.inbox / "job.jsonl").exists()
    for path in litter.iterdir():
        path.unlink()
    running(d)
    d.done("job.jsonl").check()
    assert not d.events("commit_failed")


def limit_file_size(d: Daemon, size_bytes: int) -> None:
    """From now on no file of the daemon may grow beyond this: writes fail with EFBIG as on a full disk.

    The log is one of them.
    """
    infinite = resource.RLIM_INFINITY
    for process in [d.pid, *(part.pid for part in d.parts())]:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (infinite if size_bytes < 0 else size_bytes, infinite))


@pytest.mark.near
def test_a_disk_that_takes_no_byte_more_and_then_does(daemon: Start) -> None:
    d = daemon(simulator=STEADY)
    asked = prompts(300)
    d.drop("job.jsonl", asked)
    job = d.job("job.jsonl")
    wait_for(lambda: d.succeeded() > 20, 20, "results come")
    limit_file_size(d, 0)
    assert "cannot be written" in degraded(d)
    assert d.control("status").returncode == 1
    d.drop("later.jsonl", prompts(5, "later"))
    assert not (job.directory / "summary.json").exists()
    limit_file_size(d, -1)
    running(d)
    d.done("job.jsonl").check(asked)
    d.done("later.jsonl").check()
    assert sum(s["served"] for s in d.seen()) == len(asked) + 5
    assert not d.events("defect")


def test_a_submission_that_the_disk_refuses_says_so_and_leaves_nothing(daemon: Start, tmp_path: Path) -> None:
    d = daemon()
    large = tmp_path / "large.jsonl"
    large.write_bytes(jsonl(prompts(10, text="x" * MEBIBYTE)))
    limit_file_size(d, 8 * MEBIBYTE)
    refused = d.control("submit", large)
    assert refused.returncode == 1
    assert refused.stderr.endswith("was not accepted: it cannot be copied: File too large\n")
    assert not list((d.spool / "work" / "jobs").iterdir())
    assert not d.events("submission_failed")


def test_drops_taken_while_the_disk_refuses_are_all_there_in_the_end(daemon: Start) -> None:
    d = daemon()
    d.drop("first.jsonl", prompts(1, "first"))
    d.done("first.jsonl")
    wait_for(lambda: d.client.get("jobs")["jobs"][0]["state"] == "done", 5, "the index knows it, too")
    limit_file_size(d, 0)
    names = d.drop_all({f"drop{n}.jsonl": prompts(3, f"drop{n}") for n in range(20)})
    assert "cannot be taken" in degraded(d)
    assert d.control("submit", d.config_file).returncode == 1
    limit_file_size(d, -1)
    running(d)
    for name in names:
        d.done(name).check()
    assert len(list(d.outbox.iterdir())) == 21
    assert list(d.inbox.iterdir()) == []
    assert list((d.spool / "failed").rglob("*.txt")) == []
