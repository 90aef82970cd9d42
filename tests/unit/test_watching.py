"""Events of the inbox: which names they bring up, and when a scan must not rely on them.

The events are the kernel's own. The clock stands unless a test moves it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, WatchDescriptor

from obatchd.spool.layout import Layout
from obatchd.spool.watching import Sign, Watch

TEXT = '{"prompt": "hello"}\n'


class Rig:
    """A watched inbox, and what its events have told so far."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout.open(root / "spool")
        self.path = self.layout.inbox
        self.outside = root / "outside"
        self.outside.mkdir()
        self.now_s = 100.0
        self.awake = threading.Event()
        self.watch = Watch(self.layout, lambda: self.now_s)
        self.signs: dict[bytes, Sign] = {}

    def start(self) -> Rig:
        self.watch.start(self.awake.set)
        return self

    @property
    def named(self) -> set[bytes]:
        return set(self.signs)

    @property
    def renamed(self) -> set[bytes]:
        return {name for name, sign in self.signs.items() if sign is Sign.RENAMED}

    @property
    def inode(self) -> int:
        return self.path.stat().st_ino

    def until(self, done: Callable[[], bool], deadline_s: float = 10.0) -> None:
        """Collect names at every wake until ``done``."""
        end_s = time.monotonic() + deadline_s
        while not done():
            assert time.monotonic() < end_s, f"not in time; named {self.named}"
            self.awake.wait(0.1)
            self.awake.clear()
            self.signs |= self.watch.take_names()

    def until_named(self, *names: bytes) -> None:
        self.until(lambda: self.named >= set(names))

    def replace_inbox(self) -> None:
        """Another directory in its place, as when somebody clears the spool by hand."""
        os.rmdir(self.path)
        self.path.mkdir()


def overflow(watch: Watch) -> None:
    """Let watchdog hear from the kernel that its queue ran over, which takes 16,384 events that nobody reads."""
    assert watch._observer is not None
    for emitter in watch._observer.emitters:
        reader: Any = emitter
        reader._inotify_fd.handle_event(InotifyEvent(WatchDescriptor(-1), InotifyConstants.IN_Q_OVERFLOW, 0, b""))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.watch.stop()


def test_a_file_that_is_renamed_in_is_complete_and_one_that_is_written_is_not_known_to_be(rig: Rig) -> None:
    rig.start()
    (rig.outside / "moved.jsonl").write_text(TEXT)
    (rig.outside / "moved.jsonl").rename(rig.path / "moved.jsonl")
    (rig.path / "written.jsonl").write_text(TEXT)
    rig.until_named(b"moved.jsonl", b"written.jsonl")
    assert rig.renamed == {b"moved.jsonl"}


def test_names_are_told_once_and_again_only_when_they_are_given_back(rig: Rig) -> None:
    rig.start()
    (rig.outside / "a.jsonl").write_text(TEXT)
    (rig.outside / "a.jsonl").rename(rig.path / "a.jsonl")
    rig.until_named(b"a.jsonl")
    assert rig.watch.take_names() == {}
    rig.watch.add_names({b"a.jsonl": Sign.RENAMED, b"b.jsonl": Sign.CHANGED})
    rig.watch.add_names({b"a.jsonl": Sign.CREATED, b"c.jsonl": Sign.CLOSED})
    signs = {b"a.jsonl": Sign.RENAMED, b"b.jsonl": Sign.CHANGED, b"c.jsonl": Sign.CLOSED}
    assert rig.watch.take_names() == signs, "what came since is later"
    assert rig.watch.take_names() == {}


def test_temporary_names_are_not_told_and_their_last_name_is_that_of_a_complete_file(rig: Rig) -> None:
    rig.start()
    temporary = rig.path / ".a.jsonl.Xy12"  # as rsync does
    temporary.write_text(TEXT)
    temporary.rename(rig.path / "a.jsonl")
    (rig.path / "upload.part").write_text(TEXT)
    (rig.path / "last.jsonl").write_text(TEXT)
    rig.until_named(b"last.jsonl")
    assert (rig.named, rig.renamed) == ({b"a.jsonl", b"last.jsonl"}, {b"a.jsonl"})


def test_a_change_of_the_mode_is_told_because_it_may_let_us_read_the_file(rig: Rig) -> None:
    (rig.path / "a.jsonl").write_text(TEXT)
    rig.start()
    (rig.path / "a.jsonl").chmod(0o640)
    rig.until_named(b"a.jsonl")
    assert rig.renamed == set()


def test_events_tell_whether_a_file_is_still_being_written(rig: Rig) -> None:
    rig.start()
    with (rig.path / "open.jsonl").open("w") as file:
        file.write(TEXT)
        (rig.path / "closed.jsonl").write_text(TEXT)
        (rig.path / "folder").mkdir()
        os.link(rig.path / "closed.jsonl", rig.path / "linked.jsonl")
        rig.until_named(b"open.jsonl", b"closed.jsonl", b"folder", b"linked.jsonl")
    created = {b"open.jsonl", b"folder", b"linked.jsonl"}
    rig.until(lambda: rig.signs[b"open.jsonl"] is Sign.CLOSED)
    closed = {b"open.jsonl", b"closed.jsonl"}
    assert rig.signs == dict.fromkeys(created, Sign.CREATED) | dict.fromkeys(closed, Sign.CLOSED)


def test_after_an_overflow_events_are_not_relied_on_once(rig: Rig) -> None:
    rig.start()
    assert not rig.watch.tells_all(rig.inode)
    assert rig.watch.tells_all(rig.inode)
    overflow(rig.watch)
    rig.until(lambda: not rig.watch.tells_all(rig.inode))
    assert rig.watch.tells_all(rig.inode)
    (rig.path / "a.jsonl").write_text(TEXT)
    rig.until_named(b"a.jsonl")


def test_a_name_that_is_no_utf8_is_told_as_it_is(rig: Rig) -> None:
    rig.start()
    (rig.path / os.fsdecode(b"\xff.json")).write_text(TEXT)
    rig.until_named(b"\xff.json")


def test_what_was_there_before_gave_no_event_so_the_first_scan_looks_at_everything(rig: Rig) -> None:
    assert not rig.watch.tells_all(rig.inode), "nobody watches yet"
    rig.start()
    assert not rig.watch.tells_all(rig.inode)
    assert rig.watch.tells_all(rig.inode)
    rig.watch.stop()
    assert not rig.watch.tells_all(rig.inode)
    rig.now_s += 3600
    assert not rig.watch.tells_all(rig.inode), "what was stopped is not begun again"


def test_nobody_is_woken_after_the_end(rig: Rig) -> None:
    rig.start()
    (rig.path / "a.jsonl").write_text(TEXT)
    rig.until_named(b"a.jsonl")
    rig.watch.stop()
    rig.awake.clear()
    (rig.path / "b.jsonl").write_text(TEXT)
    assert not rig.awake.wait(0.05)
    rig.watch.stop()


def test_an_inbox_that_was_replaced_is_watched_again_after_a_while(rig: Rig) -> None:
    """The kernel may well give the new directory the inode of the old one."""
    rig.start()
    assert not rig.watch.tells_all(rig.inode)
    rig.replace_inbox()
    rig.until(lambda: not rig.watch.tells_all(rig.inode))
    rig.now_s += 4.9
    assert not rig.watch.tells_all(rig.inode), "it is tried every 5 s"
    assert not rig.watch.tells_all(rig.inode)
    rig.now_s += 0.2
    assert not rig.watch.tells_all(rig.inode), "what came before the new watch gave no event"
    assert rig.watch.tells_all(rig.inode)
    assert b"inbox" not in rig.named
    (rig.path / "a.jsonl").write_text(TEXT)
    rig.until_named(b"a.jsonl")


def test_another_directory_under_the_name_of_the_inbox_is_noticed_by_its_inode(rig: Rig) -> None:
    """Renamed away and not deleted, the old directory lives on, and so does its watch."""
    rig.start()
    assert not rig.watch.tells_all(rig.inode)
    assert rig.watch.tells_all(rig.inode)
    rig.path.rename(rig.outside / "old")
    rig.path.mkdir()
    assert not rig.watch.tells_all(rig.inode)
    rig.now_s += 5
    assert not rig.watch.tells_all(rig.inode)
    assert rig.watch.tells_all(rig.inode)
    (rig.outside / "old" / "not-ours.jsonl").write_text(TEXT)
    (rig.path / "a.jsonl").write_text(TEXT)
    rig.until_named(b"a.jsonl")
    assert b"not-ours.jsonl" not in rig.named


def test_an_inbox_that_cannot_be_watched_is_told_and_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    os.rmdir(rig.path)
    rig.start()
    assert caplog.text.count("event=inbox_not_watched") == 1
    rig.path.mkdir()
    assert not rig.watch.tells_all(rig.inode)
    rig.now_s += 5
    assert not rig.watch.tells_all(rig.inode)
    assert rig.watch.tells_all(rig.inode)
    assert caplog.text.count("event=inbox_not_watched") == 1


def test_an_inbox_on_a_remote_file_system_is_told_and_never_relied_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Other hosts' changes give no events there; our own do, and may still wake a scan."""
    monkeypatch.setattr(rig.layout, "filesystem_kind", lambda: "nfs4")
    rig.start()
    assert "event=inbox_polled" in caplog.text and "filesystem=nfs4" in caplog.text
    assert [rig.watch.tells_all(rig.inode) for _ in range(3)] == [False] * 3
    (rig.path / "a.jsonl").write_text(TEXT)
    rig.until_named(b"a.jsonl")
