"""What is deleted by age or on demand, what never is, and that nobody reads half of a job that goes."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from settings_support import in_force
from spool_support import unprivileged

from obatchd.engine.erasure import erase
from obatchd.jobs.model import Intent
from obatchd.jobs.store import Store
from obatchd.spool.layout import Layout
from obatchd.spool.owners import OwnerDirectories
from obatchd.spool.prune import discard, empty_trash, prune, prune_refused

NOW_S = 1_000_000.0
OLD_S = NOW_S - 1


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "spool")


@pytest.fixture
def nothing_left_behind(layout: Layout) -> Iterator[None]:
    yield
    assert not [path for path in (layout.work / "trash").glob("*")]


def results(layout: Layout, job: str, at_s: float, *, complete: bool = True, owner: int = 1000) -> Path:
    """A job's directory in the outbox, whose last file was written at ``at_s``."""
    box = layout.outbox_dir(job, b"drop.jsonl", owner)
    (box / "responses").mkdir(parents=True)
    for name in ("results.jsonl", "responses/0000001.txt", *(["summary.json"] if complete else [])):
        (box / name).write_text("{}")
        os.utime(box / name, (at_s, at_s))
    return box


def refusal(layout: Layout, job: str, at_s: float, owner: str = "1000") -> Path:
    """A refused drop with its reason."""
    directory = layout.failed / owner / f"drop.{job}"
    directory.mkdir(parents=True)
    (directory / "drop.jsonl.error.txt").write_text("why")
    os.utime(directory, (at_s, at_s))
    return directory


def left(*paths: Path) -> list[str]:
    return [path.name for path in paths if os.path.lexists(path)]


@pytest.mark.usefixtures("nothing_left_behind")
def test_results_and_refusals_are_deleted_when_they_are_older_than_asked(layout: Layout) -> None:
    kept = [results(layout, "at", NOW_S), results(layout, "after", NOW_S + 1), refusal(layout, "refused-at", NOW_S)]
    gone = [results(layout, "before", OLD_S), refusal(layout, "refused-before", OLD_S)]
    prune(layout, NOW_S)
    assert (left(*kept), left(*gone)) == ([path.name for path in kept], [])
    assert (kept[0] / "responses" / "0000001.txt").read_text() == "{}"


def test_a_job_that_is_not_complete_is_never_deleted_by_age(layout: Layout) -> None:
    """Its summary is written last: a job that runs for a month has old files, and somebody waits for it."""
    running = results(layout, "running", OLD_S, complete=False)
    os.utime(running, (OLD_S, OLD_S))
    prune(layout, NOW_S)
    assert left(running)


def test_what_is_no_directory_of_a_job_is_left_alone(layout: Layout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "drop.theirs"
    elsewhere.mkdir(parents=True)
    (layout.failed / "alice").symlink_to(elsewhere.parent)  # the name of an owner, beside the owner's uid
    note = layout.failed / "note.txt"
    mine = refusal(layout, "refused", OLD_S)
    stray = mine.parent / "stray.txt"
    for path in (note, stray):
        path.write_text("")
    for path in (note, stray, elsewhere):
        os.utime(path, (OLD_S, OLD_S))
    prune(layout, NOW_S)
    assert left(note, stray, elsewhere, mine) == ["note.txt", "stray.txt", "drop.theirs"]


def test_results_in_the_directories_of_their_owners_are_found(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path, OwnerDirectories(None))
    for owner in (4711, 4712):
        layout.make_owner(owner)
    old, new = results(layout, "old", OLD_S, owner=4711), results(layout, "new", NOW_S, owner=4712)
    prune(layout, NOW_S)
    assert left(old, new) == [new.name]
    assert old.parent.is_dir(), "a directory of an owner stays: it carries the access list"


def test_refused_drops_alone_are_deleted_where_results_are_to_stay(layout: Layout) -> None:
    old, refused, recent = results(layout, "old", OLD_S), refusal(layout, "a", OLD_S), refusal(layout, "b", NOW_S)
    prune_refused(layout, NOW_S)
    assert left(old, refused, recent) == [old.name, recent.name]


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_job_leaves_the_outbox_whole_before_anything_of_it_is_deleted(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box = results(layout, "20261123-133648-darg", OLD_S)
    rmtree, seen = shutil.rmtree, []

    def look(path: Path) -> None:
        seen.append((box.exists(), sorted(file.name for file in path.iterdir()), path.parent.stat().st_mode & 0o777))
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", look)
    with caplog.at_level("INFO"):
        discard(layout, box)
    assert seen == [(False, ["responses", "results.jsonl", "summary.json"], 0o700)]
    assert "event=deleted job=20261123-133648-darg" in caplog.text


@pytest.mark.usefixtures("nothing_left_behind")
def test_jobs_whose_drops_had_one_name_can_be_deleted_one_after_the_other(layout: Layout) -> None:
    for _ in range(3):
        discard(layout, results(layout, "job", time.time()))


def test_a_job_that_is_gone_already_is_no_error_and_not_told(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        discard(layout, layout.outbox / "drop.gone")
    assert caplog.text == ""


def test_a_disk_that_refuses_is_told_to_whoever_asked(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    box = results(layout, "job", OLD_S)

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    for delete in (lambda: discard(layout, box), lambda: prune(layout, NOW_S)):
        with pytest.raises(OSError, match="Read-only"):
            delete()
    assert (box / "summary.json").exists()


def test_what_a_killed_daemon_had_begun_to_delete_goes_at_the_next_start(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, other = results(layout, "job", OLD_S), results(layout, "other", OLD_S)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        discard(layout, box)
    assert list((layout.work / "trash").iterdir())
    empty_trash(layout)
    empty_trash(layout)
    assert left(box, layout.work / "trash", other, layout.jobs) == [other.name, "jobs"]


def close(folder: Path) -> None:
    """A folder with a prompt that its owner has closed, inside one that can be read."""
    for mode in (0o000, 0o500):
        inside = folder / f"{mode:o}" / "deeper"
        inside.mkdir(parents=True)
        (inside / "prompt.txt").write_text("secret")
        inside.chmod(mode)
        inside.parent.chmod(mode)


def test_nothing_of_an_erased_job_is_left_in_folders_that_were_closed() -> None:
    with unprivileged() as root:
        layout = Layout.open(root / "spool")
        store = Store(layout.work, in_force())
        store.state.accept([Intent(job, b"drop", 1000, 1, 2, 10, "folder", 0.0) for job in ("done", "refused")])
        done, refused = store.state.find(["done", "refused"])
        elsewhere = root / "elsewhere"
        elsewhere.mkdir(mode=0o500)
        close(layout.job_dir("done") / "input")
        (layout.job_dir("done") / "input" / "link").symlink_to(elsewhere)
        close(layout.failed_dir("refused", b"drop", 1000) / "drop")
        erase(layout, store, [done, refused])
        assert store.state.jobs() == set()
        store.close()
        places = (layout.jobs, layout.failed / "1000", layout.work / "trash")
        assert [path for place in places for path in place.iterdir()] == []
        assert elsewhere.stat().st_mode & 0o777 == 0o500, "a link in a drop opens nothing elsewhere"


def test_a_job_whose_files_the_disk_kept_is_not_called_deleted_the_second_time(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = results(layout, "job", OLD_S)

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                discard(layout, box)
    discard(layout, box)
    assert left(*(layout.work / "trash").iterdir()) == []
