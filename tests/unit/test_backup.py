"""Backups of a spool: made while a daemon works, restored, and gone on with; and what restore refuses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import pwd
import shutil
import sqlite3
import stat
import tarfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from engine_support import Street, lines, records_of, street, until
from settings_support import in_force
from test_job_commands import NO

from obatchd.backup import contents
from obatchd.backup.archive import Archive
from obatchd.backup.making import Made, make
from obatchd.backup.moment import Moment
from obatchd.backup.restoring import restore
from obatchd.cli.obatchctl import main
from obatchd.engine.erasure import erase
from obatchd.errors import SpoolError
from obatchd.jobs.model import Intent, JobState
from obatchd.jobs.store import KeyRow, Store
from obatchd.spool.layout import RESTORING, Layout

SLOW_INBOX = {"settle_s": 1000, "rescan_s": 0.01}  # a drop stays in it until somebody shortens that


def drop(rig: Street, name: str, *prompts: str, age_s: float = 60.0) -> Path:
    """A drop in the inbox."""
    path = rig.work.layout.inbox / name
    path.write_bytes(lines(*prompts))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def names(backup: Path) -> list[str]:
    with tarfile.open(backup) as tar:
        return tar.getnames()


async def backed_up(rig: Street, target: Path, **how: Any) -> Made:
    return await asyncio.to_thread(make, rig.work.layout.root, target, **how)


@contextlib.asynccontextmanager
async def at_its_moment(rig: Street, monkeypatch: pytest.MonkeyPatch, target: Path) -> AsyncIterator[None]:
    """The block runs between the moment of a backup and the copying of what belongs to it."""
    begun, may_go_on, write = threading.Event(), threading.Event(), Moment.write

    def waiting(self: Moment, *given: Any, **how: Any) -> None:
        begun.set()
        may_go_on.wait(30)
        write(self, *given, **how)

    monkeypatch.setattr(Moment, "write", waiting)
    making = asyncio.create_task(backed_up(rig, target))
    try:
        await until(begun.is_set)
        yield
    finally:
        may_go_on.set()
        await making
        monkeypatch.setattr(Moment, "write", write)


async def answered(rig: Street) -> dict[str, list[str]]:
    """Answer everything that is open, with "later"; the answers to each prompt over the whole outbox."""
    await until(rig.engine.intake.scanned.is_set)
    while rig.work.jobs:
        live = next(iter(rig.work.jobs.values()))
        await until(lambda live=live: live.indexed)
        await rig.answer(live, text="later")
        await rig.published(live)
    found: dict[str, list[str]] = {}
    for directory in rig.work.layout.outbox_dirs():
        assert (directory / "summary.json").exists()
        for record in records_of(directory):
            found.setdefault(record["prompt"], []).append(record["response"])
    return found


async def test_every_prompt_of_a_spool_is_answered_exactly_once_after_a_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path / "first", inbox=SLOW_INBOX) as rig:
        done = await rig.run("a", "b", label="study")
        half = await rig.take({"id": "x", "prompt": "c"}, "d", "e")
        await rig.answer(half, 1)
        rig.accept(lines("f"))  # it was not read yet
        folder = rig.accept_folder({"a.txt": b"g", "b.txt": b"h"})
        await rig.engine.intake.begin([folder])
        drop(rig, "waits.jsonl", "i")
        drop(rig, "uploading.jsonl", "j", age_s=0)
        (rig.work.layout.inbox / "half.jsonl.part").write_text("k")
        made = await backed_up(rig, tmp_path / "spool.tar")
        assert (made.manifest.jobs, made.manifest.open_jobs, made.drops) == (4, 3, 1)
        assert made.left_out == ["uploading.jsonl"]
        await rig.answer(half)  # the daemon goes on, and this is not in the backup
        kept = {path.name: path.read_bytes() for path in rig.work.outbox_of(done).rglob("*") if path.is_file()}
    manifest = restore(tmp_path / "spool.tar", tmp_path / "second" / "spool")
    assert (manifest.jobs, manifest.spool) == (4, str(tmp_path / "first" / "spool"))
    async with street(monkeypatch, tmp_path / "second") as rig:
        assert rig.work.layout.uuid != (tmp_path / "first/spool/work/uuid").read_text().strip()
        await until(lambda: len(rig.work.jobs) == 4)  # with the one of the inbox
        found = await answered(rig)
        assert found == {
            "a": ["yes"],
            "b": ["yes"],
            "c": ["yes"],
            **{prompt: ["later"] for prompt in "defghi"},
        }
        [again] = rig.work.store.state.find([done.job])
        assert again.job_label == "study" and again.state is JobState.DONE
        restored = {path.name: path.read_bytes() for path in rig.work.outbox_of(again).rglob("*") if path.is_file()}
        assert restored == kept


async def test_what_happens_after_its_moment_changes_no_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs end, are released and are erased; drops are claimed, come and are refused, while files are copied."""
    async with street(monkeypatch, tmp_path / "first", inbox=SLOW_INBOX) as rig:
        old, erased = await rig.run("a"), await rig.run("b", notify=["mail:ann@example.org"])
        ends, goes = await rig.take("c", "d"), await rig.take("e")
        await rig.answer(ends, 1)
        claimed, refused = drop(rig, "claimed.jsonl", "f"), drop(rig, "refused.xyz", "g")
        async with at_its_moment(rig, monkeypatch, tmp_path / "spool.tar"):
            await rig.answer(ends)
            await rig.published(ends)
            await rig.answer(goes)
            await rig.published(goes)
            for row in (rig.row(goes), rig.row(old)):  # as housekeeping does, a week later
                shutil.rmtree(rig.work.layout.job_dir(row.job))
                rig.work.store.release(row)
            assert erase(rig.work.layout, rig.work.store, [erased]) == []
            await rig.run("n")
            into = rig.work.layout.failed / "1000" / "refused.refused-1234"
            into.mkdir(parents=True)
            refused.rename(into / "refused.xyz")
            drop(rig, "comes.jsonl", "h")
            rig.work.settings.value = in_force(model="small", inbox={"settle_s": 0.01, "rescan_s": 0.01}).value
            rig.engine.settings_changed()
            await until(lambda: not claimed.exists() and len(rig.work.jobs) == 2)
    restore(tmp_path / "spool.tar", tmp_path / "second" / "spool")
    async with street(monkeypatch, tmp_path / "second") as rig:
        assert rig.work.store.state.find([erased.job]) == []
        assert rig.work.store.state.starting_with("notify/") == {}  # nobody is told of an erased job
        assert (rig.work.layout.failed / "1000" / "refused.refused-1234" / "refused.xyz").exists()
        assert not (rig.work.layout.inbox / "refused.xyz").exists()
        await until(lambda: any(live.row.name == b"claimed.jsonl" for live in rig.work.jobs.values()))
        found = await answered(rig)
        # What is in the backup of the job that ended meanwhile may have its second answer, or not yet.
        assert found.pop("d") in (["yes"], ["later"])
        assert found == {"a": ["yes"], "c": ["yes"], "e": ["yes"], "f": ["later"]}
        assert sorted(path.name for path in rig.work.layout.jobs.iterdir()) == sorted(
            row.job for row in rig.work.store.state.list_jobs(list(JobState)) if row.job not in (old.job, goes.row.job)
        )


async def test_answers_that_come_meanwhile_are_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backups in a row, while every answer is committed by itself."""
    async with street(monkeypatch, tmp_path / "first") as rig:
        prompts = [f"p{number}" for number in range(40)]
        live = await rig.take(*prompts)
        for turn in range(4):
            making = asyncio.create_task(backed_up(rig, tmp_path / f"{turn}.tar"))
            for line in range(turn * 10 + 1, turn * 10 + 11):
                await rig.answer(live, line)
            await making
    for turn in range(4):
        restore(tmp_path / f"{turn}.tar", tmp_path / f"again{turn}" / "spool")
        async with street(monkeypatch, tmp_path / f"again{turn}") as rig:
            found = await answered(rig)
            assert sorted(found) == sorted(prompts) and {len(answers) for answers in found.values()} == {1}
            assert sum(answers == ["later"] for answers in found.values()) >= 40 - (turn + 1) * 10


async def test_a_job_that_is_over_can_be_retried_after_a_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path / "first") as rig:
        live = await rig.take("a", "b")
        await rig.answer(live, 1)
        await rig.answer(live, 2, fault=NO)
        await rig.published(live)
        await backed_up(rig, tmp_path / "spool.tar.gz")
    restore(tmp_path / "spool.tar.gz", tmp_path / "second" / "spool")
    async with street(monkeypatch, tmp_path / "second") as rig:
        [row] = rig.work.store.state.find([live.row.job])
        assert [entry.line for entry in rig.work.store.of(row).finished_requests(row.key, succeeded=False)] == [2]
        assert rig.work.input_of(row).read_bytes() == lines("a", "b")


async def test_a_drop_that_is_being_claimed_is_answered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One intent was written and its drop is still in the inbox; of another the drop has left it."""
    layout, settings = Layout.open(tmp_path / "spool"), in_force(model="small")
    store = Store(layout.work, settings)
    intents = []
    for number, name in enumerate((b"here.jsonl", b"gone.jsonl")):
        path = layout.inbox / name.decode()
        path.write_bytes(lines(name.decode()))
        os.utime(path, (1.0, 1.0))
        status, job = path.stat(), f"20261128-101112-abc{number}"
        intents.append(Intent(job, name, 1000, status.st_dev, status.st_ino, status.st_size, "file", 1.0))
        layout.job_dir(job).mkdir()
    store.state.add_intents(intents)
    (layout.inbox / "gone.jsonl").rename(layout.job_dir(intents[1].job) / "input")
    make(layout.root, tmp_path / "spool.tar")
    store.close()
    found = names(tmp_path / "spool.tar")
    assert "inbox/here.jsonl" in found and f"work/jobs/{intents[0].job}" not in found
    assert f"work/jobs/{intents[1].job}/input" in found and "inbox/gone.jsonl" not in found
    restore(tmp_path / "spool.tar", tmp_path / "second" / "spool")
    async with street(monkeypatch, tmp_path / "second") as rig:
        await until(lambda: len(rig.work.jobs) == 2)
        assert await answered(rig) == {"here.jsonl": ["later"], "gone.jsonl": ["later"]}


async def test_a_backup_is_for_its_maker_alone_and_secrets_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path / "first") as rig:
        await rig.run("a")
        work, programs = rig.work.layout.work, rig.work.store.state.programs
        programs.add_key(KeyRow("key-1", 7, b"sha-of-a-key" * 3, "note", ["batches"], False, 1.0, None))
        (work / "files" / "file-1").mkdir(parents=True)
        (work / "files" / "file-1" / "content").write_text("uploaded")
        (work / "logs").mkdir(exist_ok=True)
        (work / "logs" / "gpu0.log").write_text("log")
        (work / "cluster").mkdir()
        (work / "cluster" / "certificate.pem").write_text("sha-of-a-key and the key of a head")
        without = await backed_up(rig, tmp_path / "without.tar")
        whole = await backed_up(rig, tmp_path / "whole.tar", secrets=True, results=False)
    for name in ("without.tar", "whole.tar"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert "work/files/file-1/content" in names(tmp_path / name)
        assert not [found for found in names(tmp_path / name) if "log" in found]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "whole.tar", "without.tar"]
    assert (without.manifest.secrets, whole.manifest.secrets, whole.manifest.results) == (False, True, False)
    assert not [name for name in names(tmp_path / "whole.tar") if name.startswith("outbox/")]
    assert "work/cluster/certificate.pem" in names(tmp_path / "whole.tar")
    assert b"sha-of-a-key" in (tmp_path / "whole.tar").read_bytes()
    assert b"sha-of-a-key" not in (tmp_path / "without.tar").read_bytes()


def made_of(tmp_path: Path) -> Path:
    """A backup of a spool with one drop."""
    layout = Layout.open(tmp_path / "first")
    Store(layout.work, in_force(model="small")).close()
    (layout.inbox / "a.jsonl").write_bytes(lines("a"))
    os.utime(layout.inbox / "a.jsonl", (1.0, 1.0))
    make(layout.root, tmp_path / "spool.tar")
    return tmp_path / "spool.tar"


def test_restore_refuses_a_spool_that_has_something(tmp_path: Path) -> None:
    backup = made_of(tmp_path)
    for place in ("inbox/b.jsonl", "outbox/x.20261128-101112-abcd/summary.json", "failed/0/x/y", "work/state.db"):
        spool = tmp_path / place.replace("/", "-")
        Layout.open(spool)
        (spool / place).parent.mkdir(parents=True, exist_ok=True)
        (spool / place).write_text("mine")
        with pytest.raises(SpoolError, match=r"is not empty: there is .*name another one with --spool") as refused:
            restore(backup, spool)
        assert refused.value.code == "not_empty" and (spool / place).read_text() == "mine"
        assert not (spool / "inbox" / "a.jsonl").exists()


def test_restore_refuses_a_spool_that_a_daemon_works_on(tmp_path: Path) -> None:
    backup = made_of(tmp_path)
    layout = Layout.open(tmp_path / "second")
    what_next = r"stop it first .* or use another one with --spool DIR"
    with layout.lock(), pytest.raises(SpoolError, match=what_next) as refused:
        restore(backup, tmp_path / "second")
    assert refused.value.code == "locked"


def test_only_root_restores_a_drop_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job, and the answers, would be of whoever restores it."""
    backup, rewritten = made_of(tmp_path), tmp_path / "other.tar"
    with tarfile.open(backup) as tar, tarfile.open(rewritten, "w") as other:
        for each in tar.getmembers():
            each.uid += each.name == "inbox/a.jsonl"
            other.addfile(each, tar.extractfile(each))
    monkeypatch.setattr("obatchd.backup.restoring.os.geteuid", lambda: 4321)
    with pytest.raises(SpoolError, match=r"inbox/a\.jsonl is of another user \(uid \d+\).* with sudo") as refused:
        restore(rewritten, tmp_path / "second")
    assert refused.value.code == "permission" and left_in(tmp_path / "second") == []
    assert restore(backup, tmp_path / "second").jobs == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root restores for another user")
def test_root_is_told_for_whom_a_spool_is_made_first(tmp_path: Path) -> None:
    """Before, the command had the word USER in it."""
    layout = Layout.open(tmp_path / "first")
    Store(layout.work, in_force(model="small")).close()
    nobody = pwd.getpwnam("nobody").pw_uid
    for path in (layout.root, *layout.root.rglob("*")):
        os.chown(path, nobody, nobody)
    make(layout.root, tmp_path / "spool.tar")
    place = tmp_path / "look"
    with pytest.raises(SpoolError, match=f"make it first:  sudo install -d -o nobody {place}$"):
        restore(tmp_path / "spool.tar", place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root restores for another user")
def test_a_restore_of_root_that_fails_leaves_the_daemon_its_spool(tmp_path: Path) -> None:
    backup, spool = made_of(tmp_path), tmp_path / "second"
    backup.write_bytes(backup.read_bytes()[:3000])
    with Layout.open(spool).lock():
        for path in (spool, *spool.rglob("*")):
            os.chown(path, 4321, 4321)
    with pytest.raises(SpoolError):
        restore(backup, spool)
    found = {path.relative_to(spool).as_posix(): path.stat().st_uid for path in spool.rglob("*")}
    assert "work/.lock" in found and set(found.values()) == {4321}, found


@pytest.mark.parametrize("left", ["link", "folder"])
def test_restore_goes_through_nothing_that_a_user_left_in_the_inbox(tmp_path: Path, left: str) -> None:
    """Root would write where a link leads, and a user can put one into their own folder at any time."""
    layout, second = Layout.open(tmp_path / "first"), Layout.open(tmp_path / "second")
    Store(layout.work, in_force(model="small")).close()
    (layout.inbox / "folder").mkdir()
    (layout.inbox / "folder" / "a.txt").write_text("a")
    for path in (layout.inbox / "folder" / "a.txt", layout.inbox / "folder"):
        os.utime(path, (1.0, 1.0))
    make(layout.root, tmp_path / "spool.tar")
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    if left == "link":
        (second.inbox / "folder").symlink_to(outside)
    else:
        (second.inbox / "folder").mkdir()
    with pytest.raises(SpoolError, match=r"is not empty: there is .*/inbox/folder\."):
        restore(tmp_path / "spool.tar", second.root)
    assert list(outside.iterdir()) == [] and stat.S_IMODE(outside.stat().st_mode) == 0o700
    assert os.path.lexists(second.inbox / "folder")


async def test_of_two_backups_into_one_file_neither_takes_the_others_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, write = made_of(tmp_path), Moment.write
    backup.unlink()
    begun: list[threading.Event] = []

    def waiting(self: Moment, *given: Any, **how: Any) -> None:
        begun.append(threading.Event())
        begun[-1].wait(30)
        write(self, *given, **how)

    monkeypatch.setattr(Moment, "write", waiting)
    making = []
    for number in (1, 2):
        making.append(asyncio.create_task(asyncio.to_thread(make, tmp_path / "first", backup)))
        await until(lambda number=number: len(begun) == number)
    for number in (0, 1):
        begun[number].set()
        await making[number]
        assert restore(backup, tmp_path / f"again{number}").jobs == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again0", "again1", "first", "spool.tar"]


def left_in(spool: Path) -> list[str]:
    return sorted(path.name for path in spool.rglob("*") if path.is_file() and path.name not in (".lock", "uuid"))


@pytest.mark.parametrize("kept", [0, 100, 3000, -1024], ids=str)
def test_a_backup_that_was_cut_off_restores_nothing(tmp_path: Path, kept: int) -> None:
    backup = made_of(tmp_path)
    content = backup.read_bytes()
    with tarfile.open(backup) as tar:
        end = tar.getmember(contents.END).offset
    backup.write_bytes(content[:kept] if kept >= 0 else content[:end])
    with pytest.raises(SpoolError) as refused:
        restore(backup, tmp_path / "second")
    assert refused.value.code == "no_backup"
    assert not (tmp_path / "second").exists()


def test_a_restore_that_fails_takes_away_what_it_made_and_nothing_that_was_there(tmp_path: Path) -> None:
    backup = made_of(tmp_path)
    backup.write_bytes(backup.read_bytes()[:3000])
    with pytest.raises(SpoolError):
        restore(backup, tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    there = tmp_path / "there"
    for name in ("inbox", "outbox/1000", "work/jobs", "notes"):
        (there / name).mkdir(parents=True)
    (there / "notes" / "mine.txt").write_text("mine")
    (there / "work" / "uuid").write_text("known\n")
    before = sorted(there.rglob("*"))
    with pytest.raises(SpoolError):
        restore(backup, there)
    assert sorted(there.rglob("*")) == before and (there / "work" / "uuid").read_text() == "known\n"


@pytest.mark.parametrize(
    "member",
    [
        ("../out", tarfile.REGTYPE, ""),
        ("/etc/out", tarfile.REGTYPE, ""),
        ("inbox/../../out", tarfile.REGTYPE, ""),
        ("elsewhere/out", tarfile.REGTYPE, ""),
        ("inbox", tarfile.REGTYPE, ""),
        ("inbox/device", tarfile.CHRTYPE, ""),
        ("inbox/hard", tarfile.LNKTYPE, "inbox/a.jsonl"),
    ],
    ids=lambda member: f"{member[0]}-{member[1]!r}",
)
def test_a_backup_with_what_no_spool_has_restores_nothing(tmp_path: Path, member: tuple[str, bytes, str]) -> None:
    backup = made_of(tmp_path)
    rewritten = tmp_path / "other.tar"
    with tarfile.open(backup) as tar, tarfile.open(rewritten, "w") as other:
        for each in tar.getmembers():
            if each.name == contents.END:
                strange = tarfile.TarInfo(member[0])
                strange.type, strange.linkname = member[1], member[2]
                other.addfile(strange, io.BytesIO())
            other.addfile(each, tar.extractfile(each))
    with pytest.raises(SpoolError):
        restore(rewritten, tmp_path / "second")
    assert left_in(tmp_path / "second") == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../out", "inbox/../../out", "work"])
def test_the_end_of_a_backup_deletes_nothing_that_it_has_not_brought(tmp_path: Path, name: str) -> None:
    backup = made_of(tmp_path)
    (tmp_path / "out").write_text("mine")
    rewritten = tmp_path / "other.tar"
    with tarfile.open(backup) as tar, tarfile.open(rewritten, "w") as other:
        for each in tar.getmembers():
            content = tar.extractfile(each)
            if each.name == contents.END:
                body = json.dumps({"unfinished": [name]}).encode()
                each.size, content = len(body), io.BytesIO(body)
            other.addfile(each, content)
    with pytest.raises(SpoolError, match="has a file that no spool has"):
        restore(rewritten, tmp_path / "second")
    assert left_in(tmp_path / "second") == [] and (tmp_path / "out").read_text() == "mine"


def test_links_are_restored_as_links_and_nothing_is_written_through_them(tmp_path: Path) -> None:
    backup, outside = made_of(tmp_path), tmp_path / "outside"
    outside.mkdir()
    rewritten = tmp_path / "other.tar"
    with tarfile.open(backup) as tar, tarfile.open(rewritten, "w") as other:
        for each in tar.getmembers():
            if each.name == contents.END:
                link = tarfile.TarInfo("inbox/link")
                link.type, link.linkname = tarfile.SYMTYPE, str(outside)
                other.addfile(link)
                through = tarfile.TarInfo("inbox/link/x")
                through.size = 1
                other.addfile(through, io.BytesIO(b"x"))
            other.addfile(each, tar.extractfile(each))
    with pytest.raises(SpoolError):
        restore(rewritten, tmp_path / "second")
    assert list(outside.iterdir()) == []


def test_a_folder_with_a_link_comes_back_as_it_was(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "first")
    Store(layout.work, in_force(model="small")).close()
    folder = layout.inbox / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("a")
    (folder / "b.txt").symlink_to("/etc/passwd")
    os.utime(folder / "inner" / "a.txt", (1.0, 1.0))
    for path in (folder / "b.txt", folder / "inner", folder):
        os.utime(path, (1.0, 1.0), follow_symlinks=False)
    assert make(layout.root, tmp_path / "spool.tar").drops == 1
    restore(tmp_path / "spool.tar", tmp_path / "second")
    again = tmp_path / "second" / "inbox" / "folder"
    assert (again / "inner" / "a.txt").read_text() == "a"
    assert os.readlink(again / "b.txt") == "/etc/passwd"


@pytest.mark.parametrize("trouble", ["gone", "closed"])
def test_a_folder_that_cannot_be_read_to_its_end_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """One whose files somebody takes out all the while, and one with a file that may not be read."""
    layout = Layout.open(tmp_path / "first")
    Store(layout.work, in_force(model="small")).close()
    folder = layout.inbox / "folder"
    folder.mkdir()
    for path in (folder / "a.txt", folder / "b0", layout.inbox / "whole.jsonl"):
        path.write_bytes(lines("a"))
        os.utime(path, (1.0, 1.0))
    os.utime(folder, (1.0, 1.0))
    add = Archive._add_file

    def adding(archive: Archive, name: str, descriptor: int, status: os.stat_result) -> bool:
        if name == "inbox/folder/a.txt" and trouble == "gone":
            [left] = folder.glob("b*")
            left.rename(folder / f"b{int(left.name[1:]) + 1}")
        if name == "inbox/folder/b0" and trouble == "closed":
            os.close(descriptor)
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return add(archive, name, descriptor, status)

    monkeypatch.setattr(Archive, "_add_file", adding)
    made = make(layout.root, tmp_path / "spool.tar")
    assert (made.left_out, made.unreadable) == ((["folder"], []) if trouble == "gone" else ([], ["folder"]))
    assert made.drops == 1
    restore(tmp_path / "spool.tar", tmp_path / "second")
    assert [path.name for path in (tmp_path / "second" / "inbox").iterdir()] == ["whole.jsonl"]


def test_a_folder_with_a_link_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    backup = made_of(tmp_path)
    folder = tmp_path / "first" / "inbox" / "folder"
    folder.mkdir()
    (folder / "b.txt").symlink_to("a.txt")
    backup.unlink()
    assert make(tmp_path / "first", backup).left_out == ["folder"]
    restore(backup, tmp_path / "second")
    assert [path.name for path in (tmp_path / "second" / "inbox").iterdir()] == ["a.jsonl"]


def test_no_daemon_takes_a_spool_that_is_half_restored(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "spool")
    (layout.work / RESTORING).touch()
    with pytest.raises(SpoolError, match=r"being restored into .*, or that was cut short: then delete") as refused:
        Layout.open(tmp_path / "spool")
    assert refused.value.code == "restoring"


def test_a_restored_index_knows_no_boot_and_no_port_of_the_other_spool(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "first")
    store = Store(layout.work, in_force(model="small"))
    for key in ("boot_id", "port/gpu0", "slots/L40S/small/4096", "paused"):
        store.state.set(key, "1")
    make(layout.root, tmp_path / "spool.tar")
    assert store.state.get("boot_id") == "1"
    store.close()
    restore(tmp_path / "spool.tar", tmp_path / "second")
    with closing(sqlite3.connect(tmp_path / "second" / "work" / "state.db")) as index:
        known = {key for (key,) in index.execute("SELECT key FROM facts")}
    assert {"slots/L40S/small/4096", "paused"} <= known and not known & {"boot_id", "port/gpu0"}
    assert (tmp_path / "second" / "work" / "session").read_text() == "restored\n"


def obatchctl(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_what_people_see_of_a_backup_and_a_restore(tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "first")
    Store(layout.work, in_force(model="small")).close()
    drops = [layout.inbox / name for name in ("a.jsonl", "b.jsonl")]
    for path in drops:
        path.write_bytes(lines("a"))
    os.utime(drops[0], (1.0, 1.0))
    backup = tmp_path / "spool.tar"
    said = obatchctl("--spool", layout.root, "backup", backup)
    assert said.exit_code == 0 and said.stdout.startswith(f"{backup}: 0 jobs, 0 of them open, 1 drop in the inbox, ")
    assert said.stdout.endswith("b.jsonl in the inbox is still being written, and is not in the backup\n")
    again = obatchctl("--spool", layout.root, "backup", backup)
    assert (again.exit_code, again.stderr) == (1, f"{backup} is there already; name another file\n")
    for name in ("e", "e.zip", "e.gz"):  # a tar, and not packed, whatever it is called
        other = obatchctl("--spool", layout.root, "backup", tmp_path / name)
        assert other.exit_code == 2 and "its name must end with .tar" in other.stderr
        assert not (tmp_path / name).exists()
    inside = obatchctl("--spool", layout.root, "backup", layout.work / "b.tar")
    assert inside.exit_code == 1 and "lies in the spool itself; name a file elsewhere" in inside.stderr
    none = obatchctl("--spool", tmp_path / "none", "backup", tmp_path / "c.tar")
    assert none.exit_code == 1 and "there is no spool with jobs at" in none.stderr
    (tmp_path / "second").mkdir()
    said = obatchctl("--spool", tmp_path / "second", "restore", backup)
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith(f"{tmp_path / 'second'}: 0 jobs, 0 of them open, as they were at 20")
    assert said.stdout.endswith(f"Now start the daemon:  obatchd --spool {tmp_path / 'second'}\n")
    assert sorted(path.name for path in (tmp_path / "second" / "inbox").iterdir()) == ["a.jsonl"]
    shown = json.loads(obatchctl("--json", "--spool", layout.root, "backup", tmp_path / "d.tar.gz").stdout)
    assert (shown["drops"], shown["secrets"], shown["left_out"]) == (1, False, ["b.jsonl"])
    wrong = obatchctl("--spool", tmp_path / "third", "restore", drops[0])
    assert wrong.exit_code == 1 and "is no backup of obatchd" in wrong.stderr


def test_the_end_of_a_backup_says_that_it_is_whole(tmp_path: Path) -> None:
    backup = made_of(tmp_path)
    with tarfile.open(backup) as tar:
        file = tar.extractfile(contents.END)
        assert file is not None and json.loads(file.read()) == {"unfinished": []}


def test_a_backup_of_a_service_that_is_restored_elsewhere_is_not_started_as_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # who need not ask an administrator
    made = contents.Manifest(
        1, "0.2.0", "2026-11-28T10:00:00Z", "/var/spool/obatch", 990, 990, 1, 0, False, True, service=True
    )
    monkeypatch.setattr("obatchd.backup.restoring.restore", lambda *_: made)
    (tmp_path / "spool.tar").touch()
    said = obatchctl("--spool", tmp_path / "look", "restore", tmp_path / "spool.tar").stdout
    assert said.startswith(f"{tmp_path / 'look'}: 1 job, 0 of them open, as they were at 2026-11-28T10:00:00Z\n")
    assert said.endswith(f"Now start the daemon:  obatchd --spool {tmp_path / 'look'}\n")
    (tmp_path / "look" / "inbox").mkdir(parents=True)
    (tmp_path / "look" / "inbox").chmod(0o3730)  # of the service
    said = obatchctl("--spool", tmp_path / "look", "restore", tmp_path / "spool.tar").stdout
    assert said.endswith("Now start the daemon:  sudo systemctl start obatchd\n")
