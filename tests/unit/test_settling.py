"""Half an upload is never a job: what the inbox knows of a drop's writer, and how long it waits.

With real events and real open files; the clock stands unless a test moves it.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spool_support import unprivileged
from test_inbox import TEXT, Bench, EventBench
from test_watching import overflow

from obatchd.spool import settling
from obatchd.spool.drop import describe
from obatchd.spool.settling import hindrance, is_written
from obatchd.spool.watching import Watch

SETTINGS: dict[str, float] = {"settle_s": 2, "folder_settle_s": 5, "empty_s": 60}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[EventBench]:
    bench = EventBench(tmp_path / "spool", **SETTINGS)
    yield bench
    bench.inbox.stop()


@pytest.fixture
def foreign(watched: EventBench, monkeypatch: pytest.MonkeyPatch) -> EventBench:
    """Drops are of other users: the kernel does not tell who has their files open."""
    monkeypatch.setattr(settling, "is_written", lambda path: None)
    return watched


def still_open(bench: Bench, later_s: float = 0.0) -> dict[str, str]:
    return {drop.name: drop.reason for drop in bench.scan(later_s).blocked}


def until_closed(watched: EventBench, name: str = "a.jsonl") -> None:
    """Wait until the end of a writing is seen, and settling begins."""
    watched.until_closed(name)
    assert watched.ready() == []


# A writer that stalls.


@pytest.mark.parametrize("kernel_tells", [True, False])
def test_an_upload_that_stalls_at_the_end_of_a_line_is_waited_for(
    watched: EventBench, monkeypatch: pytest.MonkeyPatch, kernel_tells: bool
) -> None:
    if not kernel_tells:
        monkeypatch.setattr(settling, "is_written", lambda path: None)
    with (watched.path / "a.jsonl").open("w") as upload:
        upload.write(TEXT)
        upload.flush()
        watched.until_settling(1)
        for _ in range(10):
            assert watched.ready(4.0) == [], "it stalls for twice the time"
            assert watched.ready(40.0) == []
        upload.write(TEXT)
    until_closed(watched)  # its end begins the settling
    assert watched.ready(1.9) == []
    [drop] = watched.scan(0.1).ready
    assert drop.size == 2 * len(TEXT)


@pytest.mark.parametrize("kernel_tells", [True, False])
def test_the_end_of_a_first_writing_is_not_the_end_of_a_second(
    watched: EventBench, monkeypatch: pytest.MonkeyPatch, kernel_tells: bool
) -> None:
    """``echo … > a; echo … >> a`` closes the file twice."""
    if not kernel_tells:
        monkeypatch.setattr(settling, "is_written", lambda path: None)
    path = watched.put("a.jsonl")
    until_closed(watched)
    assert watched.ready(1.9) == []
    with path.open("a") as more:
        more.write(TEXT)
    until_closed(watched)
    assert watched.ready(1.9) == []
    [drop] = watched.scan(0.1).ready
    assert drop.size == 2 * len(TEXT)


def test_a_file_that_is_appended_to_with_pauses_is_taken_when_it_is_closed(watched: EventBench) -> None:
    """``tee -a`` of a file that was written and closed before: nothing tells that it is opened again."""
    path = watched.put("a.jsonl")
    until_closed(watched)
    with path.open("a") as tee:
        assert watched.ready(30.0) == []
        tee.write(TEXT)
        tee.flush()
        assert watched.ready(30.0) == []
    until_closed(watched)
    assert watched.ready(2.0) == ["a.jsonl"]


def test_an_upload_that_goes_on_over_a_restart_is_not_taken_half(tmp_path: Path) -> None:
    """With a stall of 30 s after the start, longer than ten times the settling time."""
    first = EventBench(tmp_path / "spool", **SETTINGS)
    with (first.path / "a.jsonl").open("w") as upload:
        upload.write(TEXT)
        upload.flush()
        first.until_settling(1)
        first.inbox.stop()
        second = EventBench(tmp_path / "spool", **SETTINGS)
        assert second.ready(30.0) == []
        upload.write(TEXT)
    until_closed(second)
    assert second.ready(2.0) == ["a.jsonl"]
    second.inbox.stop()


@pytest.mark.parametrize(("name", "needed_s"), [("a.jsonl", 20.0), ("folder/a.jsonl", 50.0)])
def test_what_was_there_before_the_start_needs_ten_times_as_long(tmp_path: Path, name: str, needed_s: float) -> None:
    """Nobody knows when the writer of another user, or on another host, comes back."""
    bench = Bench(tmp_path / "spool", **SETTINGS)
    (bench.path / name).parent.mkdir(exist_ok=True)
    bench.put(name)
    bench.scan()
    assert bench.ready(needed_s - 0.1) == []
    assert bench.ready(0.1) == [name.partition("/")[0]]


def test_after_an_overflow_a_file_that_was_open_needs_ten_times_as_long(foreign: EventBench) -> None:
    """Its end may be among the events that were lost."""
    watch = foreign.inbox._watch
    with (foreign.path / "a.jsonl").open("w") as upload:
        upload.write(TEXT)
        upload.flush()
        foreign.until_settling(1)
        foreign.now_s += 100
        overflow(watch)
        foreign.until(lambda report: report.next_s == 20.0)
        assert foreign.ready(19.9) == []
        upload.write(TEXT)
        upload.flush()
        assert foreign.ready(0.1) == []
    until_closed(foreign)
    assert foreign.ready(2.0) == ["a.jsonl"], "its end was seen"


def test_what_came_while_events_were_lost_needs_ten_times_as_long(
    watched: EventBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as lost:
        lost.setattr(Watch, "take_names", lambda self: {})
        watched.put("a.jsonl")
        assert watched.scan(3600).next_s == 20.0


def test_where_other_hosts_write_only_a_rename_is_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event tells of our own host's writer, and the kernel knows of no other's."""
    monkeypatch.setattr("obatchd.spool.layout.Layout.filesystem_kind", lambda self: "nfs4")
    monkeypatch.setattr(settling, "is_written", lambda path: True)  # as NFS says of each file
    bench = EventBench(tmp_path / "spool", **SETTINGS)
    bench.put("a.jsonl")
    bench.until_settling(1)
    assert bench.ready(19.9) == []
    assert bench.ready(0.1) == ["a.jsonl"]
    (bench.path / "a.jsonl").unlink()
    bench.move_in("b.jsonl")
    bench.until_ready("b.jsonl")
    bench.inbox.stop()


def test_a_folder_with_a_file_that_is_still_open_is_waited_for(watched: EventBench) -> None:
    (watched.path / "folder" / "deep").mkdir(parents=True)
    with (watched.path / "folder" / "deep" / "a.jsonl").open("w") as upload:
        upload.write(TEXT)
        upload.flush()
        watched.until_settling(1)
        assert watched.ready(5.0) == []
        assert watched.ready(300.0) == []
        [reason] = still_open(watched, 300.0).values()
        assert "a file in it" in reason
    assert watched.ready(0.0) == []
    assert watched.ready(5.0) == ["folder"]


def test_a_hard_link_is_no_open_file(foreign: EventBench) -> None:
    """``ln`` makes a name and opens nothing: no event tells of an end."""
    (foreign.outside / "a.jsonl").write_text(TEXT)
    os.link(foreign.outside / "a.jsonl", foreign.path / "a.jsonl")
    foreign.until_settling(1)
    assert foreign.ready(20.0) == ["a.jsonl"]


def test_a_file_that_was_linked_by_its_own_owner_and_lost_its_other_name_is_no_open_file(watched: EventBench) -> None:
    (watched.outside / "a.jsonl").write_text(TEXT)
    os.link(watched.outside / "a.jsonl", watched.path / "a.jsonl")
    (watched.outside / "a.jsonl").unlink()
    watched.until_settling(1)
    watched.scan(3600)  # a look at everything finds that nobody writes
    assert watched.ready(20.0) == ["a.jsonl"]


def test_a_time_that_is_set_after_the_end_does_not_make_a_file_unknown(watched: EventBench) -> None:
    """As ``scp -p`` does."""
    path = watched.put("a.jsonl")
    until_closed(watched)
    watched.now_s += 1
    os.utime(path, (1, 1))
    watched.until(lambda report: report.next_s == 2.0)
    assert watched.ready(2.0) == ["a.jsonl"]


# One that is never closed.


def test_a_file_that_is_never_closed_is_shown_after_ten_minutes_with_the_command_that_takes_it(
    foreign: EventBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    name = "it's mine.jsonl"
    with (foreign.path / name).open("w") as upload:
        upload.write(TEXT)
        upload.flush()
        foreign.until_settling(1)
        assert still_open(foreign, 599) == {}
        foreign.now_s += 3600  # so that everything is looked at
        for _ in range(3):
            [reason] = still_open(foreign, 1).values()
        assert reason.startswith("still open: ")
        assert caplog.text.count("event=drop_not_complete") == 1 and "mine" not in caplog.text
        assert subprocess.run(["sh", "-c", reason.partition("as it is: ")[2]]).returncode == 0
        foreign.until_ready(f"now-{name}")
    assert still_open(foreign, 3600) == {}


# Signs that it is not whole.


@pytest.mark.parametrize("content", [b"\0" * 4096, TEXT.encode() + b"\0" * 4096, b"\0", TEXT.encode() * 9 + b"\0" * 64])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.csv"])
def test_space_that_was_reserved_and_not_written_yet_is_neither_taken_nor_refused(
    watched: EventBench, name: str, content: bytes
) -> None:
    """Samba's clients, browsers and download managers give a file its full length first."""
    path = watched.path / name
    path.write_bytes(content)
    until_closed(watched, name)
    for _ in range(4):
        report = watched.scan(200)
        assert (report.ready, report.refused) == ([], [])
    [reason] = still_open(watched, 200).values()
    assert "zeros" in reason and "mv " in reason
    path.write_text(TEXT)
    until_closed(watched, name)
    assert watched.ready(2.0) == [name]


def test_zeros_elsewhere_or_few_of_them_are_content(watched: EventBench) -> None:
    (watched.path / "a.txt").write_bytes("\n".encode("utf-16-le") * 40)
    (watched.path / "b.txt").write_bytes(b"\0" * 100 + b"x")
    until_closed(watched, "b.txt")
    assert sorted(watched.ready(2.0)) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("swap", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_link_in_the_place_of_a_file_that_was_looked_at_holds_nobody_up(
    tmp_path: Path, swap: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(TEXT)
    drop = describe(b"a.jsonl", path, path.lstat())
    path.unlink()
    swap(path)
    looked: list[str] = []
    looking = threading.Thread(target=lambda: looked.append(hindrance(drop, False)), daemon=True)
    looking.start()
    looking.join(10)
    assert looked == [""], "its next look sees what it is"


@pytest.mark.parametrize("ending", [".aria2", ".part", ".filepart"])
def test_a_file_with_its_transfer_beside_it_is_waited_for(watched: EventBench, ending: str) -> None:
    """Firefox makes an empty file of the final name, aria2 one of the final length."""
    beside = watched.path / f"a.jsonl{ending}"
    beside.write_text("half")
    path = watched.put("a.jsonl", "" if ending == ".part" else TEXT)
    until_closed(watched)
    for _ in range(4):
        report = watched.scan(200)
        assert (report.ready, report.refused) == ([], [])
    [reason] = still_open(watched, 200).values()
    assert ending in reason
    beside.unlink()
    path.write_text(TEXT)
    until_closed(watched)
    assert watched.ready(2.0) == ["a.jsonl"]


# The kernel's word.


def test_the_kernel_tells_whether_a_file_is_open_for_writing_and_its_owner_alone(tmp_path: Path) -> None:
    with unprivileged() as directory:
        path = directory / "a"
        path.write_text(TEXT)
        with path.open() as reader:
            assert is_written(path) is False
            with path.open("a") as writer:
                assert is_written(path) is True
                again = os.dup(writer.fileno())
            assert is_written(path) is True, "another process may have it from this one"
            os.close(again)
            assert is_written(path) is False
            reader.read()
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # no lease is left that would keep it up
        os.mkfifo(directory / "fifo")
        (directory / "link").symlink_to(path)
        assert [is_written(directory / name) for name in ("fifo", "link", "nowhere", ".")] == [None] * 4
