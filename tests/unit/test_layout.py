"""A spool that can be used, or an error that says what to do; and names that lead nowhere else."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from spool_support import unprivileged

from obatchd.errors import SpoolError
from obatchd.jobs.model import default_id
from obatchd.spool.layout import Layout, drop_stem, file_stem, safe_name, size_bytes


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


def test_everybody_may_pass_through_a_new_spool_to_what_was_opened_to_them(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        assert Layout.open(tmp_path / "spool").root.stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(mask)


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


def test_a_spool_that_may_not_be_written_is_refused_with_the_remedy() -> None:
    with unprivileged() as directory:
        layout = Layout.open(directory / "spool")
        for mode in (0o500, 0o300, 0o600):
            layout.inbox.chmod(mode)
            with pytest.raises(SpoolError, match="owner and mode") as caught:
                Layout.open(directory / "spool")
            assert caught.value.code == "permission"


def test_a_spool_that_may_not_be_created_is_refused_with_the_remedy() -> None:
    with unprivileged() as directory:
        directory.chmod(0o500)
        with pytest.raises(SpoolError, match="chown") as caught:
            Layout.open(directory / "spool")
        assert caught.value.code == "permission"


def test_a_spool_below_a_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SpoolError, match=r"cannot be created: Not a directory\. Choose another place with --spool"
    ) as caught:
        Layout.open(tmp_path / "file" / "spool")
    assert caught.value.code == "spool"


def test_an_inbox_that_was_closed_since_the_start_is_told_and_an_open_one_is_fine() -> None:
    with unprivileged() as directory:
        layout = Layout.open(directory / "spool")
        assert layout.inbox_problem() == ""
        layout.inbox.chmod(0o500)
        assert f"{layout.inbox} cannot be read and written" in layout.inbox_problem()


def test_a_spool_on_a_file_system_that_became_read_only_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, but there."""
    layout = Layout.open(tmp_path)
    flags(monkeypatch, os.ST_RDONLY)
    assert "not mounted read-only" in layout.inbox_problem()
    assert layout.free().read_only


def flags(monkeypatch: pytest.MonkeyPatch, flag: int, **more: int) -> None:
    """Let statvfs(2) say this of every file system."""
    said = {"f_flag": flag, "f_bavail": 10, "f_frsize": 4096, "f_favail": 7, "f_files": 100} | more
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**said))


@pytest.mark.root
@pytest.mark.parametrize("place", ["/dev/shm", "."])
def test_a_directory_may_be_a_mount_of_its_own_also_of_the_same_file_system(tmp_path: Path, place: str) -> None:
    layout = Layout.open(tmp_path)
    bound = subprocess.run(["mount", "--bind", place, layout.inbox], capture_output=True, cwd=layout.inbox)
    if bound.returncode:
        pytest.skip("may not mount here")
    try:
        assert Layout.open(tmp_path).inbox_problem() == ""
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


def test_a_file_system_without_locks_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two daemons on one spool would each answer every prompt."""
    layout = Layout.open(tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SpoolError, match=r"No locks available.*local disk") as caught, layout.lock():
        pass
    assert caught.value.code == "spool"
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_lock_names_its_holder_whoever_held_it_before(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path)
    (layout.work / ".lock").write_text("99999999999999\n")
    with layout.lock():
        assert (layout.work / ".lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(SpoolError, match=f"pid {os.getpid()}\\)"), layout.lock():
            pass


def test_free_space_is_what_we_may_use_and_inodes_only_where_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.open(tmp_path)
    flags(monkeypatch, 0)
    assert layout.free() == (40960, 7, False)
    flags(monkeypatch, 0, f_files=0, f_favail=0)  # btrfs
    assert layout.free() == (40960, -1, False)


@pytest.mark.parametrize(("number", "read_only"), [(errno.EROFS, True), (errno.ENOSPC, False), (errno.ENOTSUP, False)])
def test_a_disk_that_stopped_writing_without_a_flag_is_found_out_when_it_is_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, read_only: bool
) -> None:
    """ext4 from Linux 6.15 on; a disk that is merely full has to be told from it."""
    layout = Layout.open(tmp_path)
    assert not layout.free(doubtful=True).read_only
    assert sorted(path.name for path in layout.work.iterdir()) == ["jobs", "uuid"], "the trial leaves no file"
    real = os.open

    def refuse(path: Path, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert layout.free(doubtful=True).read_only == read_only
    assert not layout.free().read_only


@pytest.mark.parametrize(
    ("mounts", "kind", "remote"),
    [
        ([("/", "ext4")], "ext4", False),
        ([("/", "ext4"), ("{spool}", "nfs4")], "nfs4", True),
        ([("/", "ext4"), ("{inbox}", "xfs"), ("{inbox}", "fuse.sshfs")], "fuse.sshfs", True),  # the last one hides
        ([("{inbox}", "cifs"), ("/", "ext4")], "cifs", True),  # the deepest one, wherever it is listed
        ([("/", "ext4"), ("{inbox}/below", "nfs"), ("{spool}/in", "nfs")], "ext4", False),  # of other places
        ([], "unknown", False),
    ],
)
def test_the_file_system_of_the_inbox_is_that_of_the_mount_it_is_seen_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: list[tuple[str, str]], kind: str, remote: bool
) -> None:
    """After proc_pid_mountinfo(5), where a space in a path is written in octal."""
    layout = Layout.open(tmp_path / "my spool")
    places = {"spool": str(layout.root), "inbox": str(layout.inbox)}
    lines = [
        f"{number} 1 8:1 / {point.format(**places).replace(' ', chr(92) + '040')} rw - {name} dev rw\n"
        for number, (point, name) in enumerate(mounts)
    ]
    table = tmp_path / "mountinfo"
    table.write_text("".join(lines))

    def open_table(path: str, mode: str) -> Any:
        assert path == "/proc/self/mountinfo"
        return table.open("rb")

    monkeypatch.setattr("builtins.open", open_table)
    try:
        found = (layout.filesystem_kind(), layout.is_remote())
    finally:
        monkeypatch.undo()
    assert found == (kind, remote)


def test_the_size_of_a_directory_is_that_of_all_files_below_it_and_no_link(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"1" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"2" * 32)
    plain = size_bytes(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert (plain, size_bytes(tmp_path / "nowhere"), size_bytes(tmp_path / "a" / "one")) == (42, 0, 0)
    assert size_bytes(tmp_path / "a") == plain + (tmp_path / "a" / "loop").lstat().st_size


def test_a_folder_that_may_not_be_read_has_no_size_and_stops_nothing() -> None:
    """The publisher asks for the size of every job's directory, which holds a dropped folder as it came."""
    with unprivileged() as directory:
        (directory / "closed").mkdir()
        (directory / "one").write_bytes(b"1" * 10)
        (directory / "closed" / "two").write_bytes(b"2" * 32)
        (directory / "closed").chmod(0)
        try:
            assert size_bytes(directory) == 10
        finally:
            (directory / "closed").chmod(0o700)


def test_an_identity_that_a_crash_left_empty_is_made_again(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path)
    (layout.work / "uuid").write_text("\n")
    fresh = Layout.open(tmp_path).uuid
    assert re.fullmatch(r"[0-9a-f-]{36}", fresh) and Layout.open(tmp_path).uuid == fresh


def test_free_space_is_told_in_bytes_and_inodes(tmp_path: Path) -> None:
    free = Layout.open(tmp_path).free()
    assert free.bytes > 0
    assert free.inodes != 0


def test_a_directory_of_the_package_has_a_command_that_puts_it_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.open(tmp_path)
    (tmp_path / "package.conf").touch()
    monkeypatch.setattr("obatchd.spool.layout._TMPFILES", tmp_path / "package.conf")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert "check its owner and mode, and that" in layout.inbox_problem()
    monkeypatch.setattr("obatchd.spool.layout._SYSTEM_SPOOL", tmp_path)
    words = "check its owner and mode (sudo systemd-tmpfiles --create obatch.conf puts them right), and that its file"
    assert words in layout.inbox_problem()
