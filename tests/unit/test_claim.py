"""Claiming: whatever happens between the look and the acceptance, no drop is lost, doubled or run as another's."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from settings_support import in_force
from spool_support import Disk

from obatchd.errors import ControlError, DropRefused
from obatchd.jobs.model import JobIds
from obatchd.jobs.store import Store
from obatchd.spool import claim as claims
from obatchd.spool.claim import begin_submission, claim, commit_submission, identify, recover
from obatchd.spool.drop import Drop
from obatchd.spool.layout import Layout
from obatchd.spool.owners import OwnerDirectories
from obatchd.spool.refusal import refuse_claimed, refuse_drop

TEXT = '{"prompt": "hello"}\n'
ME = os.geteuid()


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


def test_an_intent_says_all_that_finds_the_drop_again(layout: Layout, store: Store) -> None:
    drop = put(layout, "drop.jsonl")
    status = drop.path.stat()
    before_s = time.time()
    [intent] = claim([drop], layout, store.state, JobIds()).accepted
    assert (intent.name, intent.owner, intent.kind) == (b"drop.jsonl", os.geteuid(), "file")
    assert (intent.device, intent.inode, intent.size) == (status.st_dev, status.st_ino, len(TEXT))
    assert before_s <= intent.at_s <= time.time()


def test_a_file_that_grew_while_its_time_stood_still_is_left_to_the_next_scan(layout: Layout, store: Store) -> None:
    """Copying programs set the time of a file back to that of its source."""
    drop = put(layout, "grown.jsonl")
    with drop.path.open("a") as file:
        file.write(TEXT)
    os.utime(drop.path, ns=(drop.mtime_ns, drop.mtime_ns))
    assert claim([drop], layout, store.state, JobIds()).accepted == []
    assert drop.path.exists()


@pytest.mark.timeout(10)
def test_a_fifo_in_the_place_of_a_drop_holds_up_nobody(layout: Layout, store: Store) -> None:
    """Opening one waits for a writer, who never comes."""
    swapped, other = put(layout, "swapped.jsonl"), put(layout, "other.jsonl")
    swapped.path.unlink()
    os.mkfifo(swapped.path)
    [intent] = claim([swapped, other], layout, store.state, JobIds()).accepted
    assert intent.name == b"other.jsonl"
    assert swapped.path.is_fifo()


def test_nothing_is_asked_of_the_ledger_or_the_disk_where_nothing_can_be_taken(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scans are many, and each transaction would be a flush of the disk."""
    gone = put(layout, "gone.jsonl")
    gone.path.unlink()
    disk = Disk(monkeypatch)
    for forbidden in ("add_intents", "accept", "forget"):
        monkeypatch.delattr(type(store.state), forbidden)
    assert claim([gone], layout, store.state, JobIds()).accepted == []
    assert (disk.whole, disk.order) == (0, [])


def in_the_last_instant(store: Store, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Carry out ``change`` after the look at a drop, just before it is renamed."""
    add_intents = store.state.add_intents

    def and_then(intents: list[claims.Intent]) -> None:
        add_intents(intents)
        change()

    monkeypatch.setattr(store.state, "add_intents", and_then)


def test_a_drop_that_is_withdrawn_in_the_last_instant_is_neither_a_job_nor_blocked(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = put(layout, "drop.jsonl")
    in_the_last_instant(store, monkeypatch, drop.path.unlink)
    report = claim([drop], layout, store.state, JobIds())
    assert (report.accepted, report.not_taken) == ([], [])
    assert (store.state.intents(), store.state.jobs(), list(layout.jobs.iterdir())) == ([], set(), [])


def test_what_the_owner_swaps_in_the_last_instant_is_run_as_what_it_is(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewrite under the same name: whoever did it wants the new content answered, as one job."""
    drop, other = put(layout, "drop.jsonl"), layout.inbox / ".other"
    other.write_text(TEXT * 3)
    inode = other.stat().st_ino
    in_the_last_instant(store, monkeypatch, lambda: os.replace(other, drop.path))
    before_s = time.time()
    [intent] = claim([drop], layout, store.state, JobIds()).accepted
    assert (intent.name, intent.owner, intent.inode, intent.size) == (b"drop.jsonl", ME, inode, len(TEXT) * 3)
    assert intent.at_s >= before_s, "when it came, not when it was written"
    assert content(layout, intent.job) == TEXT * 3
    assert [row.size for row in store.state.find([intent.job])] == [len(TEXT) * 3]


def test_a_folder_that_takes_the_place_of_a_file_is_run_as_a_folder(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = put(layout, "drop.jsonl")

    def swap() -> None:
        drop.path.unlink()
        drop.path.mkdir()
        for name in ("a.json", "b.json"):
            (drop.path / name).write_text(TEXT)

    in_the_last_instant(store, monkeypatch, swap)
    [intent] = claim([drop], layout, store.state, JobIds()).accepted
    assert (intent.kind, intent.size) == ("folder", 2 * len(TEXT))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("swapped", ["link", "fifo"])
def test_what_is_no_file_when_it_arrives_is_refused_and_never_opened(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    drop = put(layout, "drop.jsonl")

    def swap() -> None:
        drop.path.unlink()
        if swapped == "link":
            drop.path.symlink_to("/etc/passwd")
        else:
            os.mkfifo(drop.path)

    in_the_last_instant(store, monkeypatch, swap)
    report = claim([drop], layout, store.state, JobIds())
    assert (report.accepted, report.not_taken) == ([], [])
    assert (store.state.intents(), store.state.jobs(), list(layout.jobs.iterdir())) == ([], set(), [])
    [directory] = (layout.failed / str(ME)).iterdir()
    assert "(not_a_file)" in (directory / "drop.jsonl.error.txt").read_text()
    assert not (directory / "drop.jsonl").is_file() or (directory / "drop.jsonl").is_symlink()


def test_jobs_are_closed_to_others(layout: Layout, store: Store) -> None:
    """Prompts are private even where somebody opened the spool."""
    [intent] = claim([put(layout, "drop.jsonl")], layout, store.state, JobIds()).accepted
    submitted = [begin_submission(layout, JobIds(intent.job), b"drop", ME, kind) for kind in ("file", "folder")]
    places = [layout.job_dir(intent.job), *(incoming.directory for incoming in submitted), submitted[1].input]
    assert [path.stat().st_mode & 0o777 for path in places] == [0o700] * 4


def test_an_owner_has_a_place_for_results_before_the_job_is_accepted(tmp_path: Path) -> None:
    """A disk that refuses it must refuse the drop, not the answers to come."""
    layout = Layout.open(tmp_path / "service", OwnerDirectories(None))
    store = Store(layout.work, in_force())
    claim([put(layout, "drop.jsonl")], layout, store.state, JobIds())
    assert (layout.outbox / str(ME)).is_dir()
    incoming = begin_submission(layout, JobIds(), b"a.jsonl", 1234, "file")
    incoming.add("a.jsonl", io.BytesIO(b"{}"), 99)
    commit_submission(incoming, layout, store.state)
    assert (layout.outbox / "1234").is_dir()
    store.close()


# Power cuts.


def put_folder(layout: Layout) -> Drop:
    folder = layout.inbox / "folder"
    folder.mkdir()
    (folder / "a.json").write_text(TEXT)
    return look(folder)


def submit(layout: Layout, store: Store, kind: str) -> None:
    incoming = begin_submission(layout, JobIds(), b"submitted", ME, kind)
    incoming.add("a.json", io.BytesIO(b"{}"), 99)
    commit_submission(incoming, layout, store.state)


@pytest.mark.parametrize(
    ("files", "folder", "whole"), [(1, False, 0), (4, False, 0), (5, False, 1), (0, True, 1)],
    ids=["one", "few", "many", "folder"],
)  # fmt: skip
def test_a_claimed_drop_is_durable_before_it_is_accepted(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch, files: int, folder: bool, whole: int
) -> None:
    """An accepted job whose input a power cut takes away is a lost drop: it is in the inbox no more.

    A call for the whole file system also waits for what others write: it is for many files only.
    """
    drops = [put(layout, f"{number}.jsonl") for number in range(files)] + ([put_folder(layout)] if folder else [])
    disk, missing = before_acceptance(layout, store, monkeypatch)
    assert len(claim(drops, layout, store.state, JobIds()).accepted) == len(drops)
    assert (missing, disk.whole) == ([[]], whole)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_submission_is_durable_before_it_is_accepted(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """From then on the client deletes its own copy."""
    _, missing = before_acceptance(layout, store, monkeypatch)
    submit(layout, store, kind)
    assert missing == [[]]


def before_acceptance(layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[Disk, list[list[Path]]]:
    """What a power cut would take away at the instant of each acceptance."""
    disk, missing = Disk(monkeypatch), []
    accept = store.state.accept

    def look_at_disk(intents: list[claims.Intent]) -> None:
        missing.append(disk.missing(layout.jobs, layout.inbox, *layout.jobs.rglob("*")))
        accept(intents)

    monkeypatch.setattr(store.state, "accept", look_at_disk)
    return disk, missing


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


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_arrived_with_the_inode_of_another_kind_is_run_as_what_it_is(
    layout: Layout, store: Store, kind: str
) -> None:
    """ext4 gives the inode of a file that was just deleted to the next thing that is made, a folder for example."""
    directory = layout.job_dir(JobIds().new())
    directory.mkdir()
    if kind == "file":
        (directory / "input").write_text(TEXT)
    else:
        (directory / "input").mkdir()
        (directory / "input" / "a.json").write_text(TEXT)
    status = (directory / "input").stat()
    other = {"file": "folder", "folder": "file"}[kind]
    store.state.add_intents(
        [claims.Intent(directory.name, b"drop.jsonl", ME, status.st_dev, status.st_ino, 99, other, 1.0)]
    )
    [intent] = recover(layout, store.state)
    assert (intent.kind, intent.size, intent.name) == (kind, len(TEXT), b"drop.jsonl")
    assert [row.kind for row in store.state.find([intent.job])] == [kind]
    assert store.state.intents() == []


@pytest.mark.root
def test_what_arrived_with_the_inode_of_another_owner_is_run_for_its_own(layout: Layout, store: Store) -> None:
    directory = layout.job_dir(JobIds().new())
    directory.mkdir()
    (directory / "input").write_text(TEXT)
    os.chown(directory / "input", 1002, 1002)
    status = (directory / "input").stat()
    store.state.add_intents(
        [claims.Intent(directory.name, b"drop.jsonl", 1001, status.st_dev, status.st_ino, len(TEXT), "file", 1.0)]
    )
    [intent] = recover(layout, store.state)
    assert intent.owner == 1002


def test_what_is_no_job_is_left_alone_at_the_start(layout: Layout, store: Store) -> None:
    (layout.jobs / "note.txt").write_text("by an administrator")
    (layout.jobs / "unknown").mkdir()
    os.mkfifo(layout.jobs / "unknown" / "input")
    assert recover(layout, store.state) == []
    assert sorted(path.name for path in layout.jobs.iterdir()) == ["note.txt", "unknown"]
    assert identify(layout.jobs / "unknown") is None
    assert identify(layout.jobs / "nowhere") is None


@pytest.mark.parametrize("name", [None, b"", b"\xff.jsonl"])
def test_an_input_that_nothing_is_known_of_is_what_it_looks_like(layout: Layout, name: bytes | None) -> None:
    directory = layout.job_dir("20261123-133648-darg")
    (directory / "input").mkdir(parents=True)
    for inside, content_ in (("a.json", "12345"), ("b.json", "678")):
        (directory / "input" / inside).write_text(content_)
    (directory / "input" / "link.json").symlink_to("a.json")
    (directory / "input" / "below").mkdir()
    if name is not None:
        (directory / "name").write_bytes(name)
    os.utime(directory / "input", (1000, 1000))
    intent = identify(directory)
    assert intent is not None
    assert (intent.job, intent.name, intent.kind) == (directory.name, name or b"recovered.jsonl", "folder")
    assert (intent.owner, intent.size, intent.at_s) == (ME, 8, 1000)


def test_a_job_whose_input_was_deleted_is_not_touched_at_the_start(layout: Layout, store: Store) -> None:
    """It is answered and published already; only its directory is still there."""
    [intent] = claim([put(layout, "drop.jsonl")], layout, store.state, JobIds()).accepted
    (layout.job_dir(intent.job) / "input").unlink()
    assert recover(layout, store.state) == []
    assert [path.name for path in layout.job_dir(intent.job).iterdir()] == ["name"]


# Submissions and refusals.


def test_a_submitted_folder_takes_only_plain_names_once(layout: Layout, store: Store) -> None:
    incoming = begin_submission(layout, JobIds(), b"folder", 1234, "folder")
    for bad in ("../x.json", "/etc/passwd", "..", "", "a\0b", "b/../x.json", "b//x.json", "b/"):
        with pytest.raises(ControlError, match="cannot be a file name"):
            incoming.add(bad, io.BytesIO(b"{}"), 99)
    incoming.add("a.json", io.BytesIO(b"{}"), 99)
    incoming.add("b/c/d.json", io.BytesIO(b"{}"), 99)
    with pytest.raises(ControlError, match="twice"):
        incoming.add("a.json", io.BytesIO(b"{}"), 99)
    with pytest.raises(ControlError, match="more than the 99 bytes") as caught:
        incoming.add("b.json", io.BytesIO(b"x" * 98), 99)
    assert caught.value.code == "too_large"
    intent = commit_submission(incoming, layout, store.state)
    assert (intent.kind, intent.owner) == ("folder", 1234)
    assert (layout.job_dir(intent.job) / "input" / "b" / "c" / "d.json").read_bytes() == b"{}"
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


@pytest.mark.parametrize(("keep_free_bytes", "fits"), [(6, True), (7, False)])
def test_a_submission_may_take_all_that_need_not_stay_free(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, keep_free_bytes: int, fits: bool
) -> None:
    incoming = begin_submission(layout, JobIds(), b"a.jsonl", ME, "file")
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: SimpleNamespace(f_bavail=2, f_frsize=5))
    with contextlib.nullcontext() if fits else pytest.raises(ControlError, match="no room"):
        incoming.add("a.jsonl", io.BytesIO(b"1234"), 99, keep_free_bytes)
    assert incoming.input.read_bytes() == (b"1234" if fits else b"")


def test_the_limit_of_a_submission_is_for_all_its_files_together(layout: Layout, store: Store) -> None:
    incoming = begin_submission(layout, JobIds(), b"folder", ME, "folder")
    incoming.add("a.json", io.BytesIO(b"1" * 60), 100)
    incoming.add("b.json", io.BytesIO(b"2" * 40), 100)
    with pytest.raises(ControlError, match="more than the 100 bytes"):
        incoming.add("c.json", io.BytesIO(b"3"), 100)
    assert commit_submission(incoming, layout, store.state).size == 100


def test_a_file_is_submitted_once_under_whatever_name(layout: Layout, store: Store) -> None:
    incoming = begin_submission(layout, JobIds(), b"a.jsonl", ME, "file")
    incoming.add("../a.jsonl", io.BytesIO(b"{}"), 99)
    with pytest.raises(ControlError, match="twice") as caught:
        incoming.add("a.jsonl", io.BytesIO(b"{}"), 99)
    assert caught.value.code == "bad_name"
    intent = commit_submission(incoming, layout, store.state)
    assert (intent.name, intent.size, content(layout, intent.job)) == (b"a.jsonl", 2, "{}")
    assert [path.name for path in layout.root.rglob("a.jsonl")] == []


def test_a_submission_without_any_file_is_refused_and_accepted_by_nobody(layout: Layout, store: Store) -> None:
    incoming = begin_submission(layout, JobIds(), b"nothing.jsonl", ME, "file")
    with pytest.raises(ControlError, match="no request") as caught:
        commit_submission(incoming, layout, store.state)
    assert caught.value.code == "empty"
    assert store.state.jobs() == set()


def test_a_submission_that_cannot_get_its_final_name_is_a_job_and_gets_it_at_the_next_start(
    layout: Layout, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is accepted: an error now would make the client submit it a second time."""
    incoming = begin_submission(layout, JobIds(), b"a.jsonl", ME, "file")
    incoming.add("a.jsonl", io.BytesIO(b"{}"), 99)
    (incoming.directory / "input").mkdir()
    intent = commit_submission(incoming, layout, store.state)
    assert store.state.jobs() == {intent.job}
    assert f"event=submission_not_renamed job={intent.job}" in caplog.text
    (incoming.directory / "input").rmdir()
    assert recover(layout, store.state) == []
    assert content(layout, intent.job) == "{}"


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


def test_a_refusal_that_the_disk_cut_short_is_completed_with_its_first_reason(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    [intent] = claim([put(layout, "drop.jsonl", "x")], layout, store.state, JobIds()).accepted

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(OSError, match="No space"):
            refuse_claimed(intent.job, intent.name, intent.owner, layout, DropRefused("first"))
    assert layout.job_dir(intent.job).exists()
    refuse_claimed(intent.job, intent.name, intent.owner, layout, DropRefused("second"))
    files = failed(layout)
    assert (sorted(files), files["drop.jsonl"]) == (["drop.jsonl", "drop.jsonl.error.txt"], "x")
    assert "first" in files["drop.jsonl.error.txt"]


@pytest.mark.parametrize("claimed", [True, False])
def test_the_reason_is_durable_before_the_drop_is_moved_beside_it(
    layout: Layout, store: Store, monkeypatch: pytest.MonkeyPatch, claimed: bool
) -> None:
    """A drop that lies in failed/ without a reason is a riddle to its owner."""
    drop = put(layout, "drop.jsonl", "x")
    if claimed:
        [intent] = claim([drop], layout, store.state, JobIds()).accepted
    disk, missing = Disk(monkeypatch), []
    rename = os.rename

    def moved(source: Path, target: Path) -> None:
        missing.extend(disk.missing(target.with_name("drop.jsonl.error.txt"), target.parent, target.parent.parent))
        disk.order.clear()
        rename(source, target)

    monkeypatch.setattr(os, "rename", moved)
    if claimed:
        refuse_claimed(intent.job, intent.name, intent.owner, layout, DropRefused("why"))
    else:
        assert refuse_drop(drop, layout, DropRefused("why")) is None
    assert missing == []
    [directory] = (layout.failed / str(ME)).iterdir()
    assert directory in disk.order, "the move is durable, too"
    assert claimed or layout.inbox in disk.order


def test_drops_that_are_refused_under_one_name_lie_apart(layout: Layout) -> None:
    for number in range(3):
        refuse_drop(put(layout, "notes.txt", f"{number}"), layout, DropRefused("whatever"))
    directories = list((layout.failed / str(ME)).iterdir())
    assert sorted((directory / "notes.txt").read_text() for directory in directories) == ["0", "1", "2"]


def test_a_refusal_goes_to_a_place_that_its_owner_can_read(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "service", OwnerDirectories(None))
    refuse_drop(put(layout, "notes.txt"), layout, DropRefused("whatever"))
    assert os.getxattr(layout.failed / str(ME), "system.posix_acl_default")


def test_a_reason_names_the_drop_the_slug_and_what_to_do(layout: Layout) -> None:
    refuse_drop(put(layout, os.fsdecode(b"\xff notes.txt")), layout, DropRefused("it is no format", code="format"))
    [text] = [text for name, text in failed(layout).items() if name.endswith(".error.txt")]
    assert text.splitlines() == [
        "\\xff notes.txt could not become a job.", "", "Reason (format): it is no format", "",
        "Mend it and drop it again.",
    ]  # fmt: skip
