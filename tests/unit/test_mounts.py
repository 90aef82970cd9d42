"""A spool on several mounts: what rename(2) cannot move is copied, and no crash loses or doubles a drop.

Two mounts are played by a rename that refuses as the kernel does, also between two mounts of one file system.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from settings_support import in_force
from spool_support import Disk, two_mounts
from test_claim import TEXT, content, look, put

from obatchd.errors import DropRefused
from obatchd.jobs.model import JobIds
from obatchd.jobs.store import Store
from obatchd.spool.claim import claim, recover
from obatchd.spool.layout import Layout
from obatchd.spool.prune import discard, empty_trash
from obatchd.spool.refusal import refuse_claimed, refuse_drop


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    layout = Layout.open(tmp_path / "spool")
    monkeypatch.setattr(os, "rename", two_mounts(layout))
    return layout


@pytest.fixture
def store(layout: Layout) -> Iterator[Store]:
    store = Store(layout.work, in_force())
    yield store
    store.close()


def not_permitted(*_: Any) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def refusing(patch: pytest.MonkeyPatch, module: Any, name: str, layout: Layout) -> None:
    """Let a call not be allowed for what lies in the inbox."""
    real = getattr(module, name)

    def call(path: Any, *more: Any, **named: Any) -> None:
        if Path(path).parent == layout.inbox:
            not_permitted()
        real(path, *more, **named)

    patch.setattr(module, name, call)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_drop_on_another_mount_is_copied_and_is_its_owners(layout: Layout, store: Store) -> None:
    drop = put(layout, "a.jsonl")
    [intent] = claim([drop], layout, store.state, JobIds()).accepted
    assert (content(layout, intent.job), names(layout.inbox)) == (TEXT, [])
    assert (intent.name, intent.owner, intent.kind, intent.size) == (b"a.jsonl", drop.owner, "file", len(TEXT))
    assert names(layout.job_dir(intent.job)) == ["input", "name"]
    [row] = store.state.find([intent.job])
    assert (row.name, row.owner, row.size) == (b"a.jsonl", drop.owner, len(TEXT))


def test_a_folder_is_copied_with_all_that_lies_in_it(layout: Layout, store: Store) -> None:
    folder = layout.inbox / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.json", "deep/b.json"):
        (folder / name).write_text(TEXT)
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    [intent] = claim([look(folder)], layout, store.state, JobIds()).accepted
    target = layout.job_dir(intent.job) / "input"
    assert (intent.kind, intent.size, names(layout.inbox)) == ("folder", 2 * len(TEXT), [])
    assert names(target) == ["a.json", "deep", "link", "pipe"]
    assert (os.readlink(target / "link"), (target / "deep" / "b.json").read_text()) == ("/etc/passwd", TEXT)


def test_what_is_written_to_while_it_is_copied_is_left_to_the_next_scan(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = put(layout, "a.jsonl")

    def write_on(point: str) -> None:
        if point == "claim.after_copy":
            with drop.path.open("a") as file:
                file.write(TEXT)

    monkeypatch.setattr("obatchd.crash_points.reach", write_on)
    report = claim([drop], layout, store.state, JobIds())
    assert (report.accepted, report.not_taken, store.state.intents()) == ([], [], [])
    assert (drop.path.read_text(), names(layout.jobs)) == (2 * TEXT, [])


@pytest.mark.parametrize("swap", ["link", "other"])
def test_what_takes_the_place_of_a_drop_for_a_moment_is_not_run_for_its_owner(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, swap: str
) -> None:
    """Else who may write to the inbox could have any file answered that the daemon can read."""
    secret, drop = tmp_path / "secret", put(layout, "a.jsonl")
    secret.write_text(TEXT)
    aside, real, opened = layout.inbox / ".aside", os.open, []

    def swapped(path: Any, *more: Any, **named: Any) -> int:
        if path != drop.path or not store.state.intents() or opened:
            return real(path, *more, **named)
        opened.append(path)
        os.replace(path, aside)
        os.symlink(secret, path) if swap == "link" else os.link(secret, path)
        try:
            return real(path, *more, **named)
        finally:
            os.replace(aside, path)

    monkeypatch.setattr(os, "open", swapped)
    assert claim([drop], layout, store.state, JobIds()).accepted == []
    assert opened and (names(layout.inbox), names(layout.jobs)) == (["a.jsonl"], [])


@pytest.mark.parametrize("step", ["copy", "unlink", "room"])
def test_a_copy_that_cannot_be_made_or_its_original_not_deleted_leaves_the_drop_where_it_is(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    drop, other = put(layout, "a.jsonl"), put(layout, "b.jsonl", TEXT * 2)
    keep_free_bytes = 10**18 if step == "room" else 0

    with monkeypatch.context() as patch:
        if step == "copy":
            patch.setattr(shutil, "copyfileobj", not_permitted)
        elif step == "unlink":
            refusing(patch, os, "unlink", layout)
        report = claim([drop, other], layout, store.state, JobIds(), keep_free_bytes)
    assert report.accepted == [] and store.state.intents() == []
    assert [(stuck.label, error.errno) for stuck, error in report.not_taken] == [
        (name, errno.ENOSPC if step == "room" else errno.EPERM) for name in ("a.jsonl", "b.jsonl")
    ]
    assert (names(layout.inbox), names(layout.jobs)) == (["a.jsonl", "b.jsonl"], [])
    assert len(claim([drop, other], layout, store.state, JobIds()).accepted) == 2


def test_a_copy_is_durable_before_the_original_goes_and_that_before_the_job_is_accepted(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, missing = Disk(monkeypatch), []
    unlink, accept = os.unlink, store.state.accept

    def gone(path: Any, **named: Any) -> None:
        if Path(path).parent == layout.inbox:
            [directory] = layout.jobs.iterdir()
            wanted = [directory / "input", directory / "name", directory, layout.jobs]
            missing.extend(disk.missing(*wanted))
            disk.order.clear()
        unlink(path, **named)

    def accepted(intents: Any) -> None:
        assert layout.inbox in disk.order
        accept(intents)

    monkeypatch.setattr(os, "unlink", gone)
    monkeypatch.setattr(store.state, "accept", accepted)
    assert len(claim([put(layout, "a.jsonl")], layout, store.state, JobIds()).accepted) == 1
    assert missing == []


# Crashes.

_CRASHING = """
import os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
from settings_support import in_force
from spool_support import two_mounts
from test_claim import look
from obatchd.jobs.model import JobIds
from obatchd.jobs.store import Store
from obatchd.spool.claim import claim
from obatchd.spool.layout import Layout
layout = Layout.open(Path(sys.argv[1]))
os.rename = two_mounts(layout)
store = Store(layout.work, in_force())
claim([look(path) for path in sorted(layout.inbox.iterdir())], layout, store.state, JobIds())
"""
_INSTANTS = [
    "after_intents",
    "after_mkdir:2",
    "after_copy",
    "after_copy:2",
    "after_rename",
    "after_flush",
    "after_accept",
]


@pytest.mark.parametrize("point", _INSTANTS)
def test_a_crash_at_any_instant_of_a_copy_loses_and_doubles_nothing(layout: Layout, point: str) -> None:
    put(layout, "a.jsonl", "a")
    folder = layout.inbox / "folder"
    folder.mkdir()
    (folder / "b.jsonl").write_text("b")
    environment = {**os.environ, "OBATCHD_CRASH_AT": f"claim.{point}"}
    command = [sys.executable, "-c", _CRASHING, layout.root, Path(__file__).parent]
    assert subprocess.run(command, env=environment).returncode == -9
    store = Store(layout.work, in_force())
    recover(layout, store.state)
    left = [look(path) for path in sorted(layout.inbox.iterdir())]
    claim(left, layout, store.state, JobIds(max(store.state.jobs(), default="")))
    assert (names(layout.inbox), store.state.intents()) == ([], [])
    found = {row.name: layout.job_dir(row.job) / "input" for row in store.state.find(sorted(store.state.jobs()))}
    assert sorted(found) == [b"a.jsonl", b"folder"]
    assert (found[b"a.jsonl"].read_text(), (found[b"folder"] / "b.jsonl").read_text()) == ("a", "b")
    assert set(names(layout.jobs)) == store.state.jobs()
    assert recover(layout, store.state) == []
    store.close()


def test_an_original_that_cannot_be_deleted_after_a_crash_is_the_drop_and_its_copy_goes(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(layout, "a.jsonl")
    environment = {**os.environ, "OBATCHD_CRASH_AT": "claim.after_copy"}
    subprocess.run([sys.executable, "-c", _CRASHING, layout.root, Path(__file__).parent], env=environment)

    store = Store(layout.work, in_force())
    with monkeypatch.context() as patch:
        refusing(patch, os, "unlink", layout)
        assert recover(layout, store.state) == []
    assert names(layout.inbox) == ["a.jsonl"] and store.state.jobs() == set()
    assert len(claim([look(layout.inbox / "a.jsonl")], layout, store.state, JobIds()).accepted) == 1
    store.close()


@pytest.mark.parametrize("name", ["a.jsonl", "folder"])
def test_an_original_that_was_written_to_after_a_crash_is_the_drop_and_its_copy_goes(layout: Layout, name: str) -> None:
    file = layout.inbox / name / "b.jsonl" if name == "folder" else layout.inbox / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(TEXT)
    environment = {**os.environ, "OBATCHD_CRASH_AT": "claim.after_copy"}
    subprocess.run([sys.executable, "-c", _CRASHING, layout.root, Path(__file__).parent], env=environment)
    file.write_text(TEXT * 2)

    store = Store(layout.work, in_force())
    assert recover(layout, store.state) == []
    assert (file.read_text(), names(layout.jobs)) == (TEXT * 2, [])
    store.close()


def test_what_a_crash_left_of_a_folder_that_was_copied_is_deleted_at_the_start(layout: Layout, store: Store) -> None:
    [intent] = claim([put(layout, "a.jsonl")], layout, store.state, JobIds()).accepted
    for job in (intent.job, "20261123-133648-darg"):
        (layout.inbox / f".{job}.taken").mkdir()
    recover(layout, store.state)
    assert names(layout.inbox) == [".20261123-133648-darg.taken"], "nothing is known of this one's job"


# Refusals and deletion.


def test_refused_drops_go_to_failed_on_another_mount(layout: Layout, store: Store) -> None:
    (layout.inbox / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(layout.inbox / "pipe.json")
    for name in ("link.json", "pipe.json"):
        assert refuse_drop(look(layout.inbox / name), layout, DropRefused("it is no file")) is None
    [intent] = claim([put(layout, "a.jsonl")], layout, store.state, JobIds()).accepted
    for _ in range(2):
        refuse_claimed(intent.job, intent.name, intent.owner, layout, DropRefused("why"))
    assert names(layout.inbox) == names(layout.jobs) == []
    moved = {path.name: path for path in layout.failed.rglob("*") if not path.is_dir()}
    assert os.readlink(moved["link.json"]) == "/etc/passwd" and moved["a.jsonl"].read_text() == TEXT
    assert {f"{name}.error.txt" for name in ("link.json", "pipe.json", "a.jsonl")} <= moved.keys()


def test_results_on_another_mount_are_deleted_whole(layout: Layout) -> None:
    box = layout.outbox / "drop.20261123-133648-darg"
    (box / "responses").mkdir(parents=True)
    discard(layout, box)
    assert names(layout.outbox) == names(layout.work / "trash") == []
    (layout.outbox / f".{box.name}.gone" / "responses").mkdir(parents=True)  # the daemon was killed meanwhile
    empty_trash(layout)
    assert names(layout.outbox) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_an_inbox_on_another_file_system_is_copied_from(tmp_path: Path) -> None:
    """With the kernel's own refusal."""
    layout = Layout.open(tmp_path / "spool")
    layout.inbox = Path("/dev/shm") / f"obatchd-{os.getpid()}-{tmp_path.name}"
    layout.inbox.mkdir()
    store = Store(layout.work, in_force())
    try:
        if layout.inbox.stat().st_dev == layout.work.stat().st_dev:
            pytest.skip("it is the same")
        [intent] = claim([put(layout, "a.jsonl")], layout, store.state, JobIds()).accepted
        assert (content(layout, intent.job), names(layout.inbox)) == (TEXT, [])
    finally:
        store.close()
        layout.inbox.rmdir()
