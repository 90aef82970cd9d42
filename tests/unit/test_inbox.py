"""The edge table of the inbox: what is ready, what settles, what is refused, blocked or overlooked."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spool_support import unprivileged

from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.spool.drop import is_temporary
from obatchd.spool.inbox import Inbox, ScanReport
from obatchd.spool.layout import Layout
from obatchd.spool.prune import prune_refused
from obatchd.spool.refusal import refuse_drop
from obatchd.spool.watching import Sign, Watch

TEXT = '{"prompt": "hello"}\n'
# Where no event tells of the writing of a drop it settles for ten times as long: 2 s, and 5 s a folder.
UNSEEN: dict[str, float] = {"settle_s": 0.2, "folder_settle_s": 0.5, "empty_s": 60}


class Bench:
    """An inbox that nobody tells of events, with a clock of its own."""

    def __init__(self, root: Path, **settings: float) -> None:
        self.layout = Layout.open(root)
        self.path = self.layout.inbox
        self.now_s = 100.0
        self.settings = Current(Settings.model_validate({"inbox": settings}))
        self.inbox = Inbox(self.layout, self.settings, clock=lambda: self.now_s)

    def put(self, name: str, text: str = TEXT) -> Path:
        path = self.path / name
        path.write_text(text)
        return path

    def scan(self, later_s: float = 0.0) -> ScanReport:
        self.now_s += later_s
        return self.inbox.scan()

    def ready(self, later_s: float = 0.0) -> list[str]:
        return [drop.label for drop in self.scan(later_s).ready]

    def refused(self, later_s: float = 0.0) -> dict[str, str]:
        return {drop.label: refusal.code for drop, refusal in self.scan(later_s).refused}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "spool", **UNSEEN)


def test_a_file_is_ready_when_it_stayed_the_same_for_the_settling_time(bench: Bench) -> None:
    bench.put("a.jsonl")
    report = bench.scan()
    assert (report.ready, report.settling, report.next_s) == ([], 1, 2.0)
    assert bench.ready(1.9) == []
    report = bench.scan(0.1)
    assert [drop.label for drop in report.ready] == ["a.jsonl"]
    assert (report.settling, report.next_s) == (0, None)


def test_a_slow_copy_is_waited_for_however_long_it_takes(bench: Bench) -> None:
    path = bench.put("slow.jsonl")
    for _ in range(100):
        assert bench.ready(1.5) == []
        with path.open("a") as file:
            file.write(TEXT)
    assert bench.ready() == []
    assert bench.ready(2.0) == ["slow.jsonl"]


def test_a_file_whose_time_alone_changes_is_still_being_written(bench: Bench) -> None:
    path = bench.put("a.jsonl")
    bench.scan()
    os.utime(path, ns=(1, 1))
    assert bench.ready(2.0) == []
    assert bench.ready(2.0) == ["a.jsonl"]


def test_a_time_in_the_future_or_the_past_does_not_matter(bench: Bench) -> None:
    for name, seconds in (("future.jsonl", 4e9), ("past.jsonl", 0)):
        os.utime(bench.put(name), (seconds, seconds))
    bench.scan()
    assert bench.ready(2.0) == ["past.jsonl", "future.jsonl"]


def test_a_replaced_file_settles_anew(bench: Bench) -> None:
    bench.put("a.jsonl")
    bench.scan()
    other = bench.put(".other")
    os.utime(other, ns=((bench.path / "a.jsonl").stat().st_mtime_ns,) * 2)
    other.rename(bench.path / "a.jsonl")
    assert bench.ready(2.0) == []
    assert bench.ready(2.0) == ["a.jsonl"]


def test_first_come_first_served_with_names_to_break_ties(bench: Bench) -> None:
    for name, second in (("b", 5), ("c", 1), ("a", 5)):
        os.utime(bench.put(f"{name}.json"), (second, second))
    bench.scan()
    assert bench.ready(2.0) == ["c.json", "a.json", "b.json"]


def test_more_than_a_batch_comes_next_time_without_settling_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool", **UNSEEN, claim_batch=3)
    for number in range(7):
        os.utime(bench.put(f"{number}.json"), (number, number))
    bench.scan()
    taken = []
    for later_s in (2.0, 0.0, 0.0):
        batch = bench.scan(later_s).ready
        assert len(batch) <= 3
        for drop in batch:
            drop.path.unlink()
            taken.append(drop.label)
    assert taken == [f"{number}.json" for number in range(7)]
    assert bench.ready() == []


def test_what_was_not_taken_is_offered_again(bench: Bench) -> None:
    bench.put("a.json")
    bench.scan()
    assert bench.ready(2.0) == ["a.json"]
    assert bench.ready() == ["a.json"]


@pytest.mark.parametrize(
    "name",
    [".a.jsonl.Xy12", "a.jsonl~", "a.jsonl.tmp", "a.part", "a.jsonl.partial", "a.json.crdownload", ".a.json.swp",
     "a.swx", "#a.jsonl#", "4913", ".a.json.done", "a.jsonl.filepart", "a.temp", "a.json.download", "a.opdownload",
     "a.jsonl.aria2", "a.jsonl.uploading", "A.JSONL.PART", "Thumbs.db", "desktop.ini", "__MACOSX", "._a.json",
     "~$prompts.xlsx", "lost+found", "@eaDir", "a.jsonl.!qB"],
)  # fmt: skip
def test_temporary_names_are_overlooked(bench: Bench, name: str) -> None:
    bench.put(name)
    report = bench.scan()
    assert (report.settling, bench.refused(100), is_temporary(name.encode())) == (0, {}, True)


@pytest.mark.parametrize(
    "name", ["a.json", "a.JSONL", "a.ndjson", "a.json.gz", "a.jsonl.gz", "a.ndjson.gz", "ä\n.json"]
)
def test_the_endings_of_our_formats_are_taken(bench: Bench, name: str) -> None:
    bench.put(name)
    bench.scan()
    assert bench.ready(2.0) == [name]


def test_a_name_that_is_no_utf8_is_a_name(bench: Bench) -> None:
    bench.put(os.fsdecode(b"\xff.json"))
    bench.scan()
    [drop] = bench.scan(2.0).ready
    assert (drop.name, drop.label) == (b"\xff.json", "\\xff.json")


def test_another_ending_has_ten_minutes_to_become_one_of_ours_and_is_shown_meanwhile(bench: Bench) -> None:
    """Many programs write under a name of their own first: aws s3 cp, for one, under prompts.jsonl.6bBfB5Ab."""
    path = bench.put("prompts.jsonl.6bBfB5Ab")
    bench.put("notes.docx")
    assert bench.refused() == {}
    report = bench.scan(2.0)
    assert {drop.name: ".jsonl" in drop.reason for drop in report.blocked} == {path.name: True, "notes.docx": True}
    path.rename(bench.path / "prompts.jsonl")
    assert bench.refused(597.9) == {}
    report = bench.scan(0.1)
    assert [drop.label for drop, refusal in report.refused] == ["notes.docx"]
    assert (report.refused[0][1].code, report.blocked) == ("format", [])
    assert bench.ready(2.0) == ["prompts.jsonl"]


def test_an_empty_file_is_given_time_to_be_filled(bench: Bench) -> None:
    path = bench.put("a.json", "")
    bench.put("b.json", "")
    assert bench.refused() == {}
    assert bench.refused(59) == {}
    path.write_text(TEXT)
    assert bench.refused(1) == {"b.json": "empty"}
    assert bench.ready(2) == ["a.json"]


def test_links_fifos_and_sockets_are_refused_and_never_opened(bench: Bench) -> None:
    (bench.path / "link.json").symlink_to("/etc/passwd")
    (bench.path / "dangling.json").symlink_to("/nowhere")
    os.mkfifo(bench.path / "fifo.json")
    with socket.socket(socket.AF_UNIX) as server:
        directory = os.getcwd()
        os.chdir(bench.path)  # a socket's path has 107 bytes
        server.bind("socket.json")
        os.chdir(directory)
        codes = {"link.json": "link", "dangling.json": "link", "fifo.json": "not_a_file", "socket.json": "not_a_file"}
        assert bench.refused() == codes


def test_a_file_withdrawn_while_it_settles_is_forgotten(bench: Bench) -> None:
    path = bench.put("a.json")
    bench.scan()
    path.unlink()
    report = bench.scan(2.0)
    assert (report.ready, report.refused, report.settling) == ([], [], 0)


@pytest.fixture
def closed_bench() -> Iterator[Bench]:
    """An inbox of a daemon that is not root."""
    with unprivileged() as directory:
        yield Bench(directory / "spool", **UNSEEN)


def test_an_unreadable_file_is_blocked_until_it_can_be_read(
    closed_bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = closed_bench
    path = bench.put("a.json")
    path.chmod(0)
    [blocked] = bench.scan().blocked
    assert blocked.reason.endswith("give it the right with  chmod a+r")
    assert bench.scan(100).ready == []
    assert caplog.text.count("event=drop_blocked") == 1, "it is told once, not at every scan"
    path.chmod(0o600)
    assert bench.scan().blocked == []
    assert bench.ready(2.0) == ["a.json"]


def test_a_file_that_is_closed_while_it_settles_or_waits_its_turn_is_not_taken(closed_bench: Bench) -> None:
    bench = closed_bench
    settling, settled = bench.put("settling.json"), bench.put("settled.json")
    bench.scan()
    bench.now_s += 2
    settling.chmod(0)
    assert bench.ready() == ["settled.json"]
    settled.chmod(0)
    report = bench.scan()
    assert (report.ready, {blocked.name for blocked in report.blocked}) == ([], {"settling.json", "settled.json"})
    settling.chmod(0o600)
    assert bench.ready() == [], "it may have been changed while it was closed: it settles anew"


def test_a_blocked_drop_that_is_withdrawn_or_replaced_is_not_shown_any_longer(closed_bench: Bench) -> None:
    bench = closed_bench
    for name in ("withdrawn.json", "replaced.json"):
        bench.put(name).chmod(0)
    assert len(bench.scan().blocked) == 2
    (bench.path / "withdrawn.json").unlink()
    (bench.path / "replaced.json").unlink()
    (bench.path / "replaced.json").symlink_to("/etc/passwd")
    report = bench.scan()
    assert report.blocked == []
    assert [drop.label for drop, _ in report.refused] == ["replaced.json"]


def test_a_folder_needs_to_be_writable_because_its_parent_changes(closed_bench: Bench) -> None:
    """rename(2) of a directory into another one rewrites its "..", which needs write permission in it."""
    bench = closed_bench
    folder = bench.path / "folder"
    folder.mkdir()
    (folder / "a.json").write_text(TEXT)
    folder.chmod(0o500)
    [blocked] = bench.scan().blocked
    assert blocked.reason.endswith("give it the right with  chmod u+rwx")
    folder.chmod(0o700)
    bench.scan()
    assert bench.ready(5.0) == ["folder"]


@pytest.mark.root
def test_a_folder_of_another_user_is_blocked_and_says_how_else(closed_bench: Bench) -> None:
    """Even one that everybody may write: the sticky bit of the inbox keeps it to its owner."""
    folder = closed_bench.path / "folder"
    folder.mkdir()
    (folder / "a.json").write_text(TEXT)
    folder.chmod(0o777)
    os.seteuid(0)
    os.chown(folder, 1001, 1001)
    os.seteuid(65534)
    [blocked] = closed_bench.scan().blocked
    assert (blocked.owner, blocked.name) == (1001, "folder")
    assert "obatchctl submit" in blocked.reason
    os.seteuid(0)
    closed_bench.scan()
    assert closed_bench.ready(5.0) == ["folder"], "root may take everybody's"
    os.seteuid(65534)


def test_a_file_is_read_and_need_not_be_written(closed_bench: Bench) -> None:
    closed_bench.put("a.json").chmod(0o400)
    closed_bench.scan()
    assert closed_bench.ready(2.0) == ["a.json"]


def test_a_drop_that_cannot_be_renamed_away_is_blocked_and_offered_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put("a.jsonl")
    bench.scan()
    for _ in range(3):
        [drop] = bench.scan(2).ready
        bench.inbox.not_taken(drop, PermissionError(1, "Operation not permitted"))
    report = bench.scan(2)
    [blocked] = report.blocked
    assert blocked.name == "a.jsonl" and "Operation not permitted; mind the sticky bit" in blocked.reason
    assert caplog.text.count("drop_blocked") == 1
    [drop] = report.ready
    bench.inbox.taken(drop)
    assert bench.scan().blocked == []


def test_nothing_is_taken_or_refused_while_the_inbox_has_a_problem(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put("a.jsonl")
    bench.put("b.docx")
    bench.scan()
    with monkeypatch.context() as patch:
        patch.setattr(bench.layout, "inbox_problem", lambda: "it is on the moon")
        report = bench.scan(600)
        assert (report.ready, report.refused, report.problem) == ([], [], "it is on the moon")
    report = bench.scan(2)
    assert ([drop.label for drop in report.ready], report.problem) == (["a.jsonl"], "")
    assert [drop.label for drop, _ in report.refused] == ["b.docx"]


def test_a_folder_settles_with_all_it_contains(bench: Bench) -> None:
    folder = bench.path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.json").write_text(TEXT)
    bench.scan()
    (folder / "deep" / "b.json").write_text(TEXT)
    assert bench.ready(5.0) == []
    with (folder / "deep" / "b.json").open("a") as file:
        file.write(TEXT)
    assert bench.ready(5.0) == []
    [drop] = bench.scan(5.0).ready
    assert (drop.label, drop.kind) == ("folder", "folder")


def test_folders_in_one_another_without_end_are_refused_and_can_be_deleted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at a folder in a folder is a call within a call, of which Python makes a thousand."""
    (bench.path / "folder").mkdir()
    monkeypatch.chdir(bench.path / "folder")
    for _ in range(1200):
        os.mkdir("a")
        os.chdir("a")
    os.chdir(bench.path)
    [(drop, refusal)] = bench.scan().refused
    assert (drop.label, refusal.code) == ("folder", "too_deep")
    assert refuse_drop(drop, bench.layout, refusal) is None
    prune_refused(bench.layout, time.time() + 1)
    assert os.listdir(bench.layout.failed / str(drop.owner)) == os.listdir(bench.path) == []


def test_an_empty_folder_is_given_the_time_of_an_empty_file(bench: Bench) -> None:
    (bench.path / "folder").mkdir()
    bench.scan()
    assert bench.ready(59) == []
    assert bench.ready(1) == ["folder"]


def test_a_folder_has_changed_when_any_file_in_it_was_replaced_removed_or_touched(bench: Bench) -> None:
    folder = bench.path / "folder"
    (folder / "deep").mkdir(parents=True)
    file, other = folder / "deep" / "a.json", folder / "deep" / "b.json"
    for path in (file, other):
        path.write_text(TEXT)
    fixed_ns = file.stat().st_mtime_ns
    bench.scan()

    def rewrite() -> None:  # as many bytes, in another file, at the same time
        (bench.path / ".new").write_text(TEXT)
        os.utime(bench.path / ".new", ns=(fixed_ns, fixed_ns))
        (bench.path / ".new").rename(file)

    for change in (rewrite, other.unlink, lambda: os.utime(file, ns=(1, 1))):
        change()
        assert bench.ready(5.0) == []
    assert bench.ready(5.0) == ["folder"]


def test_a_folder_is_never_taken_as_soon_as_a_file_would_be(bench: Bench) -> None:
    (bench.path / "folder").mkdir()
    (bench.path / "folder" / "a.json").write_text(TEXT)
    bench.scan()
    assert bench.ready(4.9) == []
    assert bench.ready(0.1) == ["folder"]


def test_the_next_look_is_when_the_first_of_all_may_have_settled(bench: Bench) -> None:
    bench.put("empty.json", "")
    bench.scan(0.0)
    bench.put("a.json")
    report = bench.scan(1.0)
    assert (report.settling, report.next_s) == (2, 2.0)
    report = bench.scan(1.5)
    assert (report.settling, report.next_s) == (2, 0.5)
    assert bench.scan(0.5).next_s == 57.0


def test_a_file_that_grows_for_long_is_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody may wait for a file whose writer hangs."""
    caplog.set_level("INFO")
    path = bench.put("slow.jsonl")
    bench.put("empty.jsonl", "")  # that is waited for anyway
    for second in range(0, 100, 2):
        bench.scan(2.0)
        with path.open("a") as file:
            file.write(TEXT)
        assert caplog.text.count("drop_still_growing") == (second > 60)
    assert f"inode={path.stat().st_ino}" in caplog.text


def test_a_drop_that_waits_its_turn_and_is_withdrawn_or_written_again_is_not_offered(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool", **UNSEEN, claim_batch=1)
    for number, name in enumerate(("first", "withdrawn", "rewritten")):
        os.utime(bench.put(f"{name}.json"), (number, number))
    bench.scan()
    assert bench.ready(2.0) == ["first.json"]
    for name in ("first", "withdrawn"):
        (bench.path / f"{name}.json").unlink()
    bench.put("rewritten.json", TEXT * 2)
    assert bench.ready() == []
    assert bench.ready(2.0) == ["rewritten.json"]


def test_why_a_drop_cannot_be_renamed_away_is_told_again_only_when_the_reason_is_another(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put("a.jsonl")
    bench.scan()
    [drop] = bench.scan(2).ready
    for number in (errno.EROFS, errno.EROFS, errno.EPERM, errno.EPERM):
        bench.inbox.not_taken(drop, OSError(number, os.strerror(number)))
    assert caplog.text.count("event=drop_blocked") == 2
    [blocked] = bench.scan().blocked
    assert blocked.tried and "sticky bit" in blocked.reason


def test_the_sticky_bit_is_blamed_only_where_it_can_be_the_cause(bench: Bench) -> None:
    bench.put("a.jsonl")
    bench.scan()
    [drop] = bench.scan(2).ready
    bench.inbox.not_taken(drop, OSError(errno.EROFS, "Read-only file system"))
    [blocked] = bench.scan().blocked
    assert blocked.reason.endswith("Read-only file system")


def test_a_lost_inbox_is_reported_and_taken_up_again_when_it_is_back(bench: Bench) -> None:
    bench.path.rename(bench.path.with_name("elsewhere"))
    assert str(bench.path) in bench.scan().problem
    bench.path.mkdir()
    bench.put("a.json")
    assert bench.scan().problem == ""
    assert bench.ready(2.0) == ["a.json"]


# With events.


class EventBench(Bench):
    """An inbox that is watched and looks at everything once an hour only. Its clock stands unless it is moved."""

    def __init__(self, root: Path, **settings: float) -> None:
        super().__init__(root, **{"rescan_s": 3600.0, **settings})
        self.outside = root.parent
        self._awake = threading.Event()
        self.inbox.start(self._awake.set)
        self.scan()
        self.scan()  # the first that relies on events

    def move_in(self, name: str, text: str = TEXT) -> Path:
        (self.outside / name).write_text(text)
        return (self.outside / name).rename(self.path / name)

    def until_told(self) -> None:
        """Wait until an event has come since the last call."""
        assert self._awake.wait(10)
        self._awake.clear()

    def until(self, done: Callable[[ScanReport], bool]) -> ScanReport:
        """Scan at every event until ``done``."""
        while not done(report := self.scan()):
            self.until_told()
        return report

    def until_closed(self, name: str) -> None:
        """Wait until the end of a writing was told, and not looked at yet."""
        while self.inbox._watch._signs.get(os.fsencode(name)) is not Sign.CLOSED:
            self.until_told()

    def until_settling(self, count: int) -> None:
        self.until(lambda report: report.settling == count)

    def until_ready(self, name: str) -> None:
        assert [drop.label for drop in self.until(lambda report: bool(report.ready)).ready] == [name]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[EventBench]:
    bench = EventBench(tmp_path / "spool", settle_s=2, folder_settle_s=5, empty_s=60)
    yield bench
    bench.inbox.stop()


def test_what_is_renamed_in_is_ready_at_once(watched: EventBench) -> None:
    watched.move_in("a.jsonl")
    watched.until_ready("a.jsonl")
    (watched.path / "a.jsonl").unlink()
    (watched.outside / "folder").mkdir()
    (watched.outside / "folder").rename(watched.path / "folder")
    watched.until_ready("folder")


def test_an_empty_file_that_is_renamed_in_is_given_time_like_any_other(watched: EventBench) -> None:
    """Some programs reserve a name first."""
    watched.move_in("a.jsonl", "")
    watched.until_settling(1)
    assert watched.refused(59) == {}
    assert watched.refused(1) == {"a.jsonl": "empty"}


def test_what_is_renamed_in_and_then_written_to_settles(watched: EventBench) -> None:
    path = watched.move_in("first.jsonl")
    watched.until_ready("first.jsonl")  # and not taken, so that it is offered again
    path.write_text(TEXT * 2)
    watched.until_closed("first.jsonl")
    assert watched.scan().settling == 1
    assert watched.ready(1.9) == []
    assert watched.ready(0.1) == ["first.jsonl"]


def test_what_settles_is_found_by_the_clock_without_another_event(watched: EventBench) -> None:
    watched.put("a.jsonl")
    watched.until_closed("a.jsonl")
    watched.scan()
    assert watched.ready(1.9) == []
    assert watched.ready(0.1) == ["a.jsonl"]


def test_a_name_without_an_event_is_found_by_the_next_look_at_everything(
    watched: EventBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as lost:
        lost.setattr(Watch, "take_names", lambda self: {})  # the kernel's queue ran over
        watched.put("a.jsonl")
        assert watched.scan(3599.9).settling == 0
        assert watched.scan(0.1).settling == 1


def test_a_whole_look_that_takes_long_takes_at_most_a_tenth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inbox of a million files must not keep the daemon from its work."""
    bench = EventBench(tmp_path / "spool", settle_s=2, rescan_s=30)
    bench.put("first.jsonl")
    bench.until_settling(1)
    monkeypatch.setattr(Watch, "take_names", lambda self: {})
    problem = bench.layout.inbox_problem

    def slow() -> str:
        bench.now_s += 10
        return problem()

    with monkeypatch.context() as patch:
        patch.setattr(bench.layout, "inbox_problem", slow)
        bench.scan(30)  # looks at everything, for 10 s
    bench.put("second.jsonl")
    began_s = bench.now_s - 10
    assert bench.scan(began_s + 99.9 - bench.now_s).settling == 0
    assert bench.scan(0.1).settling == 1
    bench.inbox.stop()


def test_names_that_came_while_the_inbox_could_not_be_read_are_not_forgotten(
    watched: EventBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.move_in("a.jsonl")
    watched.until_told()

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        assert "Input/output error; put it back" in watched.scan().problem
    assert watched.ready() == ["a.jsonl"], "it is known to have been renamed in"


def test_a_drop_that_is_withdrawn_just_after_its_event_is_forgotten() -> None:
    """Whatever was known of it: that it is blocked, or that it only waits its turn."""
    with unprivileged() as directory:
        watched = EventBench(directory / "spool", settle_s=2, claim_batch=1)
        blocked, waiting = watched.put("blocked.jsonl"), watched.put("waiting.jsonl")
        first = watched.put("first.jsonl")
        os.utime(first, (0, 0))
        blocked.chmod(0)
        watched.until_closed("first.jsonl")
        watched.until(lambda report: len(report.blocked) == 1 and report.settling == 2)
        assert watched.ready(2.0) == ["first.jsonl"]
        first.unlink()
        watched.inbox.stop()
        for path in (blocked, waiting):
            path.unlink()
        with pytest.MonkeyPatch.context() as patch:
            told = dict.fromkeys((b"blocked.jsonl", b"waiting.jsonl"), Sign.CHANGED)
            patch.setattr(Watch, "take_names", lambda self: told)
            patch.setattr(Watch, "tells_all", lambda self, inode: True)
            report = watched.scan()
        assert (report.blocked, report.ready) == ([], [])
