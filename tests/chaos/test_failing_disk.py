"""A disk that refuses: errors of single system calls, and a file system that turns read-only. Nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, Document, prompts, wait_for
from disk_support import STRACE, refusing

Start = Callable[..., Daemon]
STEADY: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.1}}


def degraded(d: Daemon) -> Document:
    """The status, once it says that the daemon is degraded."""
    found = wait_for(lambda: s if (s := d.status())["state"] == "degraded" else None, 20, "it is degraded")
    assert found is not None
    return found


@pytest.mark.near
@pytest.mark.skipif(STRACE is None, reason="needs strace")
@pytest.mark.parametrize(
    ("error", "calls"),
    [
        ("EIO", "fsync,fdatasync,syncfs"),
        ("EIO", "pwrite64,ftruncate"),
        ("EROFS", "rename,renameat,renameat2,mkdir,mkdirat,unlink,pwrite64,fdatasync"),
    ],
    ids=["EIO on flush", "EIO on write", "EROFS"],
)
def test_what_is_answered_while_the_disk_refuses_is_kept_and_written(daemon: Start, error: str, calls: str) -> None:
    d = daemon(simulator=STEADY)
    asked = prompts(240)  # three seconds of work
    d.drop("job.jsonl", asked)
    job = d.job("job.jsonl")
    wait_for(lambda: d.succeeded() > 20, 20, "results come")
    with refusing(d, error, calls):
        assert "cannot be written" in "; ".join(degraded(d)["reasons"])
        shown = d.control("status")
        assert (shown.returncode, "degraded" in shown.stdout) == (1, True)
        wait_for(lambda: all(s["in_flight"] == 0 for s in d.servers()), 10, "dispatch waits")
        assert sum(s["served"] for s in d.seen()) < len(asked)
        d.drop("later.jsonl", prompts(5, "later"))
        assert not (job.directory / "summary.json").exists()
    wait_for(lambda: d.status()["state"] == "running", 20, "it goes on by itself")
    d.done("job.jsonl").check(asked)
    d.done("later.jsonl").check(prompts(5, "later"))
    assert sum(s["served"] for s in d.seen()) == len(asked) + 5, "nothing was asked twice"
    assert not d.events("defect")
    assert d.stop() == 0


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Mounts the same small ext4 again and again."""
    image, path = tmp_path / "image", tmp_path / "disk"
    if not shutil.which("mkfs.ext4"):
        pytest.skip("needs mkfs.ext4")
    path.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 * 1024**2)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)

    def mount() -> Path:
        command = ["mount", "-o", "loop,errors=remount-ro", image, path]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.decode()}")
        return path

    yield mount
    subprocess.run(["umount", "-l", path], check=False, capture_output=True)


@pytest.mark.root
def test_a_file_system_that_turns_read_only(make_daemon: Start, small_ext4: Callable[[], Path]) -> None:
    disk = small_ext4()
    config = {"disk": {"min_free_bytes": 0, "min_free_inodes": 0}}
    d = make_daemon(config, simulator=STEADY, spool=disk / "s").start().ready()
    log_and_drops, d.root = d.root, disk
    asked = prompts(240)  # three seconds of work
    d.drop("job.jsonl", asked)
    d.job("job.jsonl")
    wait_for(lambda: d.succeeded() > 20, 20, "results come")
    # What ext4 does by itself when it meets damage and errors=remount-ro (ext4(5), "abort").
    subprocess.run(["mount", "-o", "remount,abort", disk], check=True)
    found = wait_for(lambda: s if "read-only" in str((s := degraded(d))["reasons"]) else None, 10, "it says why")
    assert found is not None
    shown = d.control("status")
    assert (shown.returncode, "read-only" in shown.stdout) == (1, True)
    wait_for(lambda: all(s["in_flight"] == 0 for s in d.servers()), 10, "dispatch waits")
    assert d.stop(timeout_s=40) == 1
    [lost] = d.events("results_not_committed")
    assert "results=0" not in lost
    subprocess.run(["umount", disk], check=True)
    small_ext4()
    d.root = log_and_drops
    d.start().ready()
    d.done("job.jsonl").check(asked)
    assert [path.name for path in (d.spool / "work").rglob("*.corrupt-*")] == []
    assert d.stop() == 0
