"""The edge table of the inbox: what is ready, what settles, what is refused, blocked or overlooked."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.spool.drop import is_temporary
from obatchd.spool.inbox import Inbox, ScanReport
from obatchd.spool.layout import Layout

TEXT = '{"prompt": "hello"}\n'


class Bench:
    """An inbox that nobody tells of events, with a clock of its own."""

    def __init__(self, root: Path, **settings: float) -> None:
        self.layout = Layout.open(root)
        self.path = self.layout.inbox
        self.now_s = 100.0
        self.inbox = Inbox(self.layout, Current(Settings.model_validate({"inbox": settings})), clock=lambda: self.now_s)

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
    return Bench(tmp_path / "spool", settle_s=2, folder_settle_s=5, empty_s=60)


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
    bench = Bench(tmp_path / "spool", settle_s=2, claim_batch=3)
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
     "a.swx", "#a.jsonl#", "4913", ".a.json.done"],
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


def test_another_ending_is_refused_only_when_it_settled(bench: Bench) -> None:
    path = bench.put("upload.part1")
    assert bench.refused() == {}
    path.rename(bench.path / "a.json")  # by a program that does not know our temporary names
    bench.put("notes.docx")
    assert bench.refused(2.0) == {}
    assert bench.refused(2.0) == {"notes.docx": "format"}


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_blocked_until_it_can_be_read(bench: Bench) -> None:
    path = bench.put("a.json")
    path.chmod(0)
    [blocked] = bench.scan().blocked
    assert "EACCES" in blocked.reason
    assert bench.scan(100).ready == []
    path.chmod(0o600)
    assert bench.scan().blocked == []
    assert bench.ready(2.0) == ["a.json"]


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
        report = bench.scan(2)
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


def test_an_empty_folder_is_given_the_time_of_an_empty_file(bench: Bench) -> None:
    (bench.path / "folder").mkdir()
    bench.scan()
    assert bench.ready(59) == []
    assert bench.ready(1) == ["folder"]


def test_a_lost_inbox_is_reported_and_taken_up_again_when_it_is_back(bench: Bench) -> None:
    bench.path.rename(bench.path.with_name("elsewhere"))
    assert str(bench.path) in bench.scan().problem
    bench.path.mkdir()
    bench.put("a.json")
    assert bench.scan().problem == ""
    assert bench.ready(2.0) == ["a.json"]
