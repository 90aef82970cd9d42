"""The inbox with real events: what is renamed in is seen at once, what is copied in is not taken half written."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.spool.drop import Drop
from obatchd.spool.inbox import Inbox
from obatchd.spool.layout import Layout

TEXT = '{"prompt": "hello"}\n'
# Rescans must not be what finds a drop in these tests, nor settling what makes it ready.
NEVER_S = 3600.0


class Watched:
    """An inbox that is watched, scanned whenever it wakes, and whose drops are taken away when they are ready."""

    def __init__(self, root: Path, **settings: float) -> None:
        self.layout = Layout.open(root / "spool")
        self.path = self.layout.inbox
        self.source = root / "source"
        self.source.mkdir()
        self.awake = threading.Event()
        self.inbox = Inbox(self.layout, Current(Settings.model_validate({"inbox": settings})))
        self.inbox.start(self.awake.set)
        self.taken: list[tuple[Drop, float]] = []
        self.look()

    def look(self) -> float | None:
        """One scan."""
        self.awake.clear()
        report = self.inbox.scan()
        for drop in report.ready:
            self.taken.append((drop, time.monotonic()))
            if drop.kind == "folder":
                shutil.rmtree(drop.path)
            else:
                drop.path.unlink()
        return report.next_s

    def until(self, done: Callable[[], bool], deadline_s: float = 10.0) -> None:
        """Scan at every wake and whenever something may have settled, until ``done``."""
        end_s = time.monotonic() + deadline_s
        while not done():
            next_s = self.look()
            assert time.monotonic() < end_s, "not in time"
            self.awake.wait(min(0.2, 0.2 if next_s is None else next_s))

    def prepare(self, name: str, text: str = TEXT) -> Path:
        path = self.source / name
        path.write_text(text)
        return path

    @property
    def names(self) -> list[str]:
        return [drop.label for drop, _ in self.taken]


@pytest.fixture
def make_watched(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(**settings: float) -> Watched:
        made.append(Watched(tmp_path, **settings))
        return made[-1]

    yield make
    for watched in made:
        watched.inbox.stop()


@pytest.fixture
def watched(make_watched: Callable[..., Watched]) -> Watched:
    return make_watched(settle_s=NEVER_S, folder_settle_s=NEVER_S, rescan_s=NEVER_S)


def test_a_file_renamed_in_is_seen_at_once(watched: Watched) -> None:
    delays_s: list[float] = []
    while not delays_s or (min(delays_s) >= 0.4 and len(delays_s) < 5):  # a busy machine can only make it slower
        file, begun_s = watched.prepare(f"{len(delays_s)}.jsonl"), time.monotonic()
        file.rename(watched.path / file.name)
        watched.until(lambda: len(watched.taken) > len(delays_s))
        delays_s.append(watched.taken[-1][1] - begun_s)
    assert min(delays_s) < 0.4  # less than watchdog's pairing of moves would take, 0.5 s; 1 ms when idle


def test_two_files_renamed_in_5_ms_apart_are_both_seen_at_once(watched: Watched) -> None:
    delays_s: list[float] = []
    while not delays_s or (min(delays_s) >= 0.4 and len(delays_s) < 5):  # a busy machine can only make it slower
        first, second = (watched.prepare(f"{name}{len(delays_s)}.jsonl") for name in "ab")
        first.rename(watched.path / first.name)
        watched.until(lambda: len(watched.taken) > 2 * len(delays_s))
        time.sleep(0.005)
        begun_s = time.monotonic()
        second.rename(watched.path / second.name)
        watched.until(lambda: len(watched.taken) > 2 * len(delays_s) + 1)
        delays_s.append(watched.taken[-1][1] - begun_s)
    assert min(delays_s) < 0.4  # a claim's own MOVED_FROM would hold it back for 0.5 s


def test_a_folder_renamed_in_is_seen_at_once(watched: Watched) -> None:
    (watched.source / "folder").mkdir()
    (watched.source / "folder" / "a.json").write_text(TEXT)
    (watched.source / "folder").rename(watched.path / "folder")
    watched.until(lambda: watched.names == ["folder"])


def test_a_temporary_name_that_becomes_the_real_one_is_complete(watched: Watched) -> None:
    temporary = watched.path / ".a.jsonl.Xy12"  # as rsync does
    temporary.write_text(TEXT)
    temporary.rename(watched.path / "a.jsonl")
    watched.until(lambda: watched.names == ["a.jsonl"])


def test_a_thousand_files_renamed_in_are_all_seen(watched: Watched) -> None:
    for number in range(1000):
        watched.prepare(f"{number}.json").rename(watched.path / f"{number}.json")
    watched.until(lambda: len(watched.taken) == 1000)
    assert len(set(watched.names)) == 1000


def test_a_slow_copy_is_not_taken_half_written(make_watched: Callable[..., Watched]) -> None:
    watched = make_watched(settle_s=0.5, rescan_s=NEVER_S)
    blocks = 20

    def copy() -> None:
        for _ in range(blocks):
            with (watched.path / "slow.jsonl").open("a") as file:  # every close is a CLOSE_WRITE
                file.write(TEXT)
            time.sleep(0.05)

    writer = threading.Thread(target=copy)
    writer.start()
    watched.until(lambda: bool(watched.taken))
    writer.join()
    assert [drop.size for drop, _ in watched.taken] == [blocks * len(TEXT)]


def test_a_folder_that_is_filled_slowly_is_not_taken_half_filled(make_watched: Callable[..., Watched]) -> None:
    watched = make_watched(folder_settle_s=0.5, rescan_s=NEVER_S)
    folder = watched.path / "folder"
    folder.mkdir()

    def fill() -> None:
        for number in range(10):
            (folder / f"{number}.json").write_text(TEXT)
            time.sleep(0.05)

    writer = threading.Thread(target=fill)
    (folder / "first.json").write_text(TEXT)
    writer.start()
    full_s: list[float] = []

    def done() -> bool:
        if not writer.is_alive() and not full_s:
            full_s.append(time.monotonic())
        return bool(watched.taken)

    watched.until(done)
    writer.join()
    assert full_s
    assert watched.names == ["folder"]


def test_a_file_that_becomes_readable_is_noticed(watched: Watched) -> None:
    path = watched.path / "a.jsonl"
    path.write_text(TEXT)
    watched.until(lambda: not watched.awake.is_set())
    watched.awake.clear()
    path.chmod(0o640)
    assert watched.awake.wait(5)


def test_files_that_were_there_before_and_missed_events_are_found_by_the_rescan(
    make_watched: Callable[..., Watched],
) -> None:
    watched = make_watched(settle_s=0.05, rescan_s=0.1)
    watched.inbox.stop()  # no more events
    (watched.path / "a.jsonl").write_text(TEXT)
    watched.until(lambda: watched.names == ["a.jsonl"])


def test_an_inbox_that_was_replaced_is_watched_again(
    make_watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obatchd.spool.watching._WATCH_AGAIN_S", 0.0)
    watched = make_watched(settle_s=0.05, rescan_s=NEVER_S)
    os.rmdir(watched.path)
    watched.until(lambda: bool(watched.inbox.scan().problem))
    watched.path.mkdir()
    for name in ("a.jsonl", "b.jsonl"):  # the first may be found by looking, the second only by its event
        watched.prepare(name).rename(watched.path / name)
        watched.until(lambda: name in watched.names)  # noqa: B023 - called in this turn of the loop
