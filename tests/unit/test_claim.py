"""Claiming: whatever happens between the look and the acceptance, no drop is lost, doubled or run as another's."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from settings_support import in_force

from obatchd.errors import ControlError, DropRefused
from obatchd.jobs.model import JobIds
from obatchd.jobs.store import Store
from obatchd.spool import claim as claims
from obatchd.spool.claim import begin_submission, claim, commit_submission, recover
from obatchd.spool.drop import Drop
from obatchd.spool.layout import Layout
from obatchd.spool.refusal import refuse_claimed, refuse_drop

TEXT = '{"prompt": "hello"}\n'


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "spool")


@pytest.fixture
def store(layout: Layout) -> Iterator[Store]:
    store = Store(layout.work, in_force())
    yield store
    store.close()


def put(layout: Layout, name: str, text: str = TEXT) -> Drop:
    path = layout.inbox / name
    path.write_text(text)
    return look(path)


def look(path: Path) -> Drop:
    status = path.lstat()
    kind, size = ("folder", 0) if path.is_dir() else ("file", status.st_size)
    return Drop(
        os.fsencode(path.name), path, status.st_uid, status.st_dev, status.st_ino, size, kind, status.st_mtime_ns
    )


def content(layout: Layout, job: str) -> str:
    return (layout.job_dir(job) / "input").read_text()


@pytest.mark.parametrize("count", [1, 20])
def test_drops_become_jobs_in_the_order_given(layout: Layout, store: Store, count: int) -> None:
    drops = [put(layout, f"{number}.jsonl", f'{{"prompt": "{number}"}}') for number in range(count)]
    accepted = claim(drops, layout, store.state, JobIds()).accepted
    assert [intent.name for intent in accepted] == [drop.name for drop in drops]
    assert sorted(intent.job for intent in accepted) == [intent.job for intent in accepted]
    assert store.state.jobs() == {intent.job for intent in accepted}
    assert store.state.intents() == []
    assert list(layout.inbox.iterdir()) == []
    assert content(layout, accepted[-1].job) == f'{{"prompt": "{count - 1}"}}'
    assert accepted[0].owner == os.getuid()


def test_a_folder_is_claimed_as_a_whole_even_with_a_fifo_inside(layout: Layout, store: Store) -> None:
    folder = layout.inbox / "folder"
    folder.mkdir()
    (folder / "a.json").write_text(TEXT)
    os.mkfifo(folder / "pipe")
    (folder / "closed.json").touch(mode=0)
    [intent] = claim([look(folder)], layout, store.state, JobIds()).accepted
    assert (intent.kind, intent.size) == ("folder", len(TEXT))
    assert (layout.job_dir(intent.job) / "input" / "a.json").exists()


def test_what_changed_since_the_scan_is_left_to_the_next_one(layout: Layout, store: Store) -> None:
    grown, swapped, gone, linked = (put(layout, f"{name}.jsonl") for name in ("grown", "swapped", "gone", "linked"))
    with grown.path.open("a") as file:
        file.write(TEXT)
    new = layout.inbox / ".new"
    new.write_text(TEXT)
    new.rename(swapped.path)
    gone.path.unlink()
    linked.path.unlink()
    linked.path.symlink_to("/etc/passwd")
    assert claim([grown, swapped, gone, linked], layout, store.state, JobIds()).accepted == []
    assert store.state.intents() == []
    assert sorted(path.name for path in layout.inbox.iterdir()) == ["grown.jsonl", "linked.jsonl", "swapped.jsonl"]


def test_a_file_with_another_name_is_copied(layout: Layout, store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(TEXT)
    os.link(other, layout.inbox / "linked.jsonl")
    [intent] = claim([look(layout.inbox / "linked.jsonl")], layout, store.state, JobIds()).accepted
    other.write_text("changed afterwards")
    assert content(layout, intent.job) == TEXT
    assert list(layout.inbox.iterdir()) == []


def test_a_copy_that_was_cut_short_is_made_again_at_the_next_start(
    layout: Layout, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.write_text(TEXT)
    os.link(other, layout.inbox / "linked.jsonl")

    def cut_short(source: Path, target: Path, **_: object) -> None:
        target.write_text(TEXT[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(claims.shutil, "copyfile", cut_short)
        with pytest.raises(OSError, match="No space"):
            claim([look(layout.inbox / "linked.jsonl")], layout, store.state, JobIds())
    assert store.state.jobs() == set()
    [intent] = recover(layout, store.state)
    other.write_text("changed afterwards")
    assert content(layout, intent.job) == TEXT
    assert sorted(path.name for path in layout.job_dir(intent.job).iterdir()) == ["input", "name"]
    assert list(layout.inbox.iterdir()) == []


def test_one_that_cannot_be_renamed_does_not_hold_up_the_others(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, free = put(layout, "stuck.jsonl"), put(layout, "free.jsonl")
    rename = os.rename

    def refusing(source: Path, target: Path) -> None:
        if source == stuck.path:
            raise PermissionError(1, "Operation not permitted")
        rename(source, target)

    monkeypatch.setattr(claims.os, "rename", refusing)
    report = claim([stuck, free], layout, store.state, JobIds())
    accepted = report.accepted
    assert [intent.name for intent in accepted] == [b"free.jsonl"]
    assert [(drop, error.errno) for drop, error in report.not_taken] == [(stuck, 1)]
    assert store.state.intents() == []
    assert [path.name for path in layout.jobs.iterdir()] == [accepted[0].job]


def test_a_claim_that_the_disk_refused_is_settled_by_the_next(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    drops = [put(layout, "a.jsonl"), put(layout, "b.jsonl")]
    with monkeypatch.context() as patch:
        patch.setattr(claims, "sync_paths", full)
        with pytest.raises(OSError, match="No space"):
            claim(drops, layout, store.state, JobIds())
    assert store.state.jobs() == set()
    accepted = claim([], layout, store.state, JobIds()).accepted
    assert [intent.name for intent in accepted] == [b"a.jsonl", b"b.jsonl"]
    assert store.state.intents() == []


@pytest.mark.root
def test_a_swap_in_the_last_instant_is_run_for_its_own_owner(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = put(layout, "drop.jsonl")
    os.chown(drop.path, 1001, 1001)
    other = layout.inbox / ".other"
    other.write_text("somebody else's")
    os.chown(other, 1002, 1002)
    add_intents = store.state.add_intents

    def swap(intents: list[claims.Intent]) -> None:
        add_intents(intents)
        os.replace(other, drop.path)

    monkeypatch.setattr(store.state, "add_intents", swap)
    [intent] = claim([drop], layout, store.state, JobIds()).accepted
    assert intent.owner == 1002
    assert [row.owner for row in store.state.find([intent.job])] == [1002]


# Crashes.

_CRASHING = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[3], str(Path(sys.argv[3]).parent)]
from settings_support import in_force
from test_claim import look
from obatchd.jobs.model import JobIds
from obatchd.jobs.store import Store
from obatchd.spool.claim import begin_submission, claim, commit_submission
from obatchd.spool.layout import Layout
layout = Layout.open(Path(sys.argv[1]))
store = Store(layout.work, in_force())
if sys.argv[2] == "submit":
    import io
    incoming = begin_submission(layout, JobIds(), b"submitted.jsonl", 1234, "file")
    incoming.add("submitted.jsonl", io.BytesIO(b"{}"), 99)
    commit_submission(incoming, layout, store.state)
else:
    claim([look(path) for path in sorted(layout.inbox.iterdir())], layout, store.state, JobIds())
"""


def crash(layout: Layout, point: str, work: str = "claim") -> None:
    environment = {**os.environ, "OBATCHD_CRASH_AT": point}
    command = [sys.executable, "-c", _CRASHING, layout.root, work, Path(__file__).parent]
    assert subprocess.run(command, env=environment).returncode == -9


_INSTANTS = ["after_intents", "after_mkdir", "after_mkdir:3", "after_rename", "after_rename:2", "after_rename:3"]


@pytest.mark.parametrize("point", [*_INSTANTS, "after_flush", "after_accept"])
def test_a_crash_at_any_instant_loses_and_doubles_nothing(layout: Layout, point: str) -> None:
    names = [f"{number}.jsonl" for number in range(3)]
    for name in names:
        put(layout, name, name)
    crash(layout, f"claim.{point}")
    store = Store(layout.work, in_force())
    adopted = recover(layout, store.state)
    assert store.state.intents() == []
    left = sorted(path.name for path in layout.inbox.iterdir())
    jobs = store.state.jobs()
    assert {intent.job for intent in adopted} <= jobs
    assert sorted([*left, *(content(layout, job) for job in jobs)]) == names
    claim([look(layout.inbox / name) for name in left], layout, store.state, JobIds(max(jobs, default="")))
    assert sorted(content(layout, job) for job in store.state.jobs()) == names
    assert {path.name for path in layout.jobs.iterdir()} == store.state.jobs()
    assert recover(layout, store.state) == []
    store.close()


def test_a_submission_that_was_accepted_before_a_crash_is_completed(layout: Layout) -> None:
    crash(layout, "submit.after_accept", "submit")
    store = Store(layout.work, in_force())
    recover(layout, store.state)
    [job] = store.state.jobs()
    assert content(layout, job) == "{}"
    assert store.state.find([job])[0].owner == 1234
    store.close()


def test_a_submission_that_was_not_accepted_leaves_nothing(layout: Layout, store: Store) -> None:
    incoming = begin_submission(layout, JobIds(), b"half.jsonl", 1234, "file")
    incoming.add("half.jsonl", io.BytesIO(b'{"prom'), 99)
    assert recover(layout, store.state) == []
    assert list(layout.jobs.iterdir()) == []


def test_an_input_without_an_index_is_adopted_under_its_name(layout: Layout, store: Store, tmp_path: Path) -> None:
    [intent] = claim([put(layout, "drop.jsonl")], layout, store.state, JobIds()).accepted
    (tmp_path / "another-index").mkdir()
    fresh = Store(tmp_path / "another-index", in_force())
    [adopted] = recover(layout, fresh.state)
    assert (adopted.job, adopted.name, adopted.kind) == (intent.job, b"drop.jsonl", "file")
    fresh.close()


# Submissions and refusals.


def test_a_submitted_folder_takes_only_plain_names_once(layout: Layout, store: Store) -> None:
    incoming = begin_submission(layout, JobIds(), b"folder", 1234, "folder")
    for bad in ("../x.json", "/etc/passwd", "..", "", "a\0b"):
        with pytest.raises(ControlError, match="cannot be a file name"):
            incoming.add(bad, io.BytesIO(b"{}"), 99)
    incoming.add("a.json", io.BytesIO(b"{}"), 99)
    with pytest.raises(ControlError, match="twice"):
        incoming.add("a.json", io.BytesIO(b"{}"), 99)
    with pytest.raises(ControlError, match="more than the 99 bytes") as caught:
        incoming.add("b.json", io.BytesIO(b"x" * 98), 99)
    assert caught.value.code == "too_large"
    intent = commit_submission(incoming, layout, store.state)
    assert (intent.kind, intent.owner) == ("folder", 1234)
    assert (layout.job_dir(intent.job) / "input" / "a.json").read_bytes() == b"{}"


def test_a_submission_leaves_the_disk_what_it_is_to_keep(layout: Layout) -> None:
    incoming = begin_submission(layout, JobIds(), b"large.jsonl", 1234, "file")
    with pytest.raises(
        ControlError, match=r"no room for it: .* 1048576 MiB \(min_free_bytes in \[disk\]\) must stay free"
    ) as caught:
        incoming.add("large.jsonl", io.BytesIO(b"{}"), 99, keep_free_bytes=1024**4)
    assert caught.value.code == "no_room"
    incoming.abandon()
    assert list(layout.jobs.iterdir()) == []


def test_an_empty_submission_is_refused(layout: Layout, store: Store) -> None:
    incoming = begin_submission(layout, JobIds(), b"empty.jsonl", 1234, "file")
    incoming.add("empty.jsonl", io.BytesIO(b""), 99)
    with pytest.raises(ControlError, match="no request"):
        commit_submission(incoming, layout, store.state)
    incoming.abandon()
    assert list(layout.jobs.iterdir()) == []


def failed(layout: Layout) -> dict[str, str]:
    found = layout.failed.rglob("*")
    return {path.name: path.read_text() for path in found if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize("linked", [False, True])
def test_a_drop_that_its_owner_closes_in_the_last_instant_holds_up_nobody(
    linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        Path(directory).chmod(0o777)
        if os.geteuid() == 0:  # who may read everything
            os.seteuid(65534)
            stack.callback(os.seteuid, 0)
        layout = Layout.open(Path(directory) / "spool")
        store = Store(layout.work, in_force())
        stack.callback(store.close)
        drop = put(layout, "closed.jsonl")
        if linked:
            os.link(drop.path, Path(directory) / "other")

        def close(point: str) -> None:
            if point == "claim.after_mkdir":
                drop.path.chmod(0)

        monkeypatch.setattr(claims.crash_points, "reach", close)
        [intent] = claim([drop], layout, store.state, JobIds()).accepted
        assert store.state.jobs() == {intent.job}
        assert store.state.intents() == []


def test_a_refused_drop_lies_beside_its_reason(layout: Layout) -> None:
    drop = put(layout, "bad name\n.txt", "no prompts")
    refuse_drop(drop, layout, DropRefused("it is none of our formats", code="format"))
    assert list(layout.inbox.iterdir()) == []
    files = failed(layout)
    assert files["bad_name_.txt"] == "no prompts"
    assert "none of our formats" in files["bad_name_.txt.error.txt"]


def test_a_refused_drop_that_was_withdrawn_leaves_nothing(layout: Layout) -> None:
    drop = put(layout, "gone.txt")
    drop.path.unlink()
    refuse_drop(drop, layout, DropRefused("whatever"))
    assert failed(layout) == {}


def test_a_refused_drop_that_cannot_be_moved_stays_and_says_why(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = put(layout, "notes.txt")

    def refusing(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(claims.os, "rename", refusing)
    error = refuse_drop(drop, layout, DropRefused("whatever"))
    assert error is not None and error.errno == 1
    assert drop.path.exists()
    assert failed(layout) == {}


def test_a_link_is_moved_itself_and_not_followed(layout: Layout) -> None:
    (layout.inbox / "link.json").symlink_to("/etc/passwd")
    refuse_drop(look(layout.inbox / "link.json"), layout, DropRefused("it is a symbolic link", code="link"))
    [moved] = [path for path in layout.failed.rglob("*") if path.is_symlink()]
    assert os.readlink(moved) == "/etc/passwd"


def test_refusing_a_claimed_drop_twice_keeps_the_first_reason(layout: Layout, store: Store) -> None:
    [intent] = claim([put(layout, "drop.jsonl", "x")], layout, store.state, JobIds()).accepted
    refuse_claimed(intent.job, intent.name, intent.owner, layout, DropRefused("first"))
    refuse_claimed(intent.job, intent.name, intent.owner, layout, DropRefused("second"))
    files = failed(layout)
    assert files["drop.jsonl"] == "x"
    assert "first" in files["drop.jsonl.error.txt"]
    assert not layout.job_dir(intent.job).exists()
