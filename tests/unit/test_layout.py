"""A spool that can be used, or an error that says what to do; and names that lead nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from obatchd.errors import SpoolError
from obatchd.jobs.model import default_id
from obatchd.spool.layout import Layout, drop_stem, file_stem, safe_name


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("plain-1.2_x", "plain-1.2_x"),
        ("a/b", "a_b"),
        ("../../etc/passwd", "_/.._etc_passwd".replace("/", "_")),
        (".hidden", "_hidden"),
        ("", "_"),
        ("..", "_"),
        ("line\nbreak", "line_break"),
        ("é", "_"),
        ("x" * 200, "x" * 100),
    ],
)
def test_a_label_becomes_a_harmless_name(label: str, name: str) -> None:
    assert safe_name(label) == (name, name != label)


@pytest.mark.parametrize("label", ["/", "\0", "a\\b", "\u2028", "💥" * 99, "-", "~", ". .", "con:"])
def test_every_name_stays_within_its_directory(label: str) -> None:
    name, _ = safe_name(label)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name)


def test_plain_ids_are_file_names_as_they_are() -> None:
    assert file_stem("2301.00001", 4) == "2301.00001"
    assert file_stem(None, 4) == file_stem(default_id(4), 4) == "0000004"


def test_no_two_requests_of_a_job_get_one_file() -> None:
    labels = [None, "0000001", "a/", "a_", "a_.3", "a_.5", "\u00e9", "_", "_.7", "0000002.1", "0000001.2", "x" * 101]
    labels += ["x" * 102, "x" * 100, "0000099", "_.3"]
    stems = {file_stem(label, line) for line, label in enumerate(labels, 1)}
    assert len(stems) == len(labels)


def test_a_drop_is_called_by_its_name_without_the_endings_of_formats() -> None:
    assert drop_stem(b"papers.jsonl.gz") == "papers"
    assert drop_stem(b"PAPERS.JSON") == "PAPERS"
    assert drop_stem(b"\xff/../x.json") == "___.._x".replace("___", "__")


def test_a_missing_spool_is_created_closed_to_others(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "new" / "spool")
    for path in (layout.inbox, layout.work, layout.jobs, layout.outbox, layout.failed):
        assert path.stat().st_mode & 0o777 == 0o700
    assert not layout.is_remote()


def test_an_inbox_keeps_the_mode_that_somebody_gave_it(tmp_path: Path) -> None:
    Layout.open(tmp_path).inbox.chmod(0o1777)
    assert Layout.open(tmp_path).inbox.stat().st_mode & 0o7777 == 0o1777


def test_the_identity_of_a_spool_lasts(tmp_path: Path) -> None:
    assert Layout.open(tmp_path).uuid == Layout.open(tmp_path).uuid != ""


def test_a_spool_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert Layout.open(tmp_path / "link").uuid == Layout.open(tmp_path / "real").uuid


def test_a_file_or_a_link_in_the_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inbox").write_text("")
    with pytest.raises(SpoolError, match="inbox is not a directory") as caught:
        Layout.open(tmp_path / "a")
    assert caught.value.code == "not_directory"
    (tmp_path / "b" / "elsewhere").mkdir(parents=True)
    (tmp_path / "b" / "inbox").symlink_to(tmp_path / "b" / "elsewhere")
    with pytest.raises(SpoolError, match="link"):
        Layout.open(tmp_path / "b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_spool_that_may_not_be_written_is_refused_with_the_remedy(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path)
    layout.inbox.chmod(0o500)
    with pytest.raises(SpoolError, match="owner and mode"):
        Layout.open(tmp_path)


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path("/tmp").stat().st_dev,
    reason="needs two file systems",
)
@pytest.mark.root
def test_directories_on_two_file_systems_are_refused(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path)
    bound = subprocess.run(["mount", "--bind", "/dev/shm", layout.inbox], capture_output=True)
    if bound.returncode:
        pytest.skip("may not mount here")
    try:
        with pytest.raises(SpoolError, match="another file system") as caught:
            Layout.open(tmp_path)
        assert caught.value.code == "two_filesystems"
    finally:
        subprocess.run(["umount", layout.inbox], check=True)


def test_one_daemon_per_spool(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path)
    other = (
        "import sys; from pathlib import Path; from obatchd.spool.layout import Layout\n"
        "layout = Layout.open(Path(sys.argv[1]))\n"
        "with layout.lock(): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", other, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(SpoolError, match=f"pid {process.pid}") as caught, layout.lock():
            pass
        assert caught.value.code == "locked"
        process.communicate()
    with layout.lock():
        pass


def test_free_space_is_told_in_bytes_and_inodes(tmp_path: Path) -> None:
    free = Layout.open(tmp_path).free()
    assert free.bytes > 0
    assert free.inodes != 0
