"""What is flushed, in which order, and that a disk which refuses is believed."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest
from spool_support import Disk

from obatchd.spool import flush
from obatchd.spool.flush import sync_filesystem, sync_paths, tree


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_tree_is_everything_in_it_deepest_first_without_links(tmp_path: Path) -> None:
    """A directory is flushed after what it names, and a link could lead to a file that never can be."""
    root = tmp_path / "root"
    (root / "deep" / "deeper").mkdir(parents=True)
    for name in ("a", "deep/b", "deep/deeper/c"):
        (root / name).write_text(name)
    (root / "link").symlink_to("/etc/passwd")
    (root / "deep" / "loop").symlink_to(root)
    found = tree(root)
    assert {str(path.relative_to(root)) for path in found} == {
        ".", "a", "deep", "deep/b", "deep/deeper", "deep/deeper/c"
    }  # fmt: skip
    assert len(found) == 6 and found[-1] == root
    assert all(found.index(path) < found.index(path.parent) for path in found[:-1])


def test_a_file_is_a_tree_and_a_link_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path)
    assert tree(tmp_path / "a") == [tmp_path / "a"]
    assert tree(tmp_path / "link") == []


def test_paths_are_flushed_in_the_order_given_and_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    (tmp_path / "file").write_text("a")
    (tmp_path / "directory").mkdir()
    wanted = [tmp_path / "file", tmp_path, tmp_path / "directory"]
    before = descriptors()
    sync_paths(wanted)
    assert disk.order == wanted
    assert descriptors() == before


def test_a_link_is_never_flushed_instead_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError) as caught:
        sync_paths([tmp_path / "link"])
    assert caught.value.errno == errno.ELOOP


def test_a_whole_file_system_is_flushed_and_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    before = descriptors()
    sync_filesystem(tmp_path)
    assert disk.whole == 1
    assert descriptors() == before


def test_a_file_system_that_cannot_keep_what_was_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal that is not raised loses, at the next power cut, a job that was told to be safe."""

    def refuse(_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(flush._libc, "syncfs", refuse)
    before = descriptors()
    with pytest.raises(OSError) as caught:
        sync_filesystem(tmp_path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path))
    assert descriptors() == before


def test_a_file_that_the_disk_refuses_to_keep_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(os, "fsync", refuse)
    before = descriptors()
    with pytest.raises(OSError, match="Input/output"):
        sync_paths([tmp_path / "a"])
    assert descriptors() == before
