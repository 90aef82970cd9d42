"""The audit log: every action has a record before it is done, whatever the disk, a crash or a name does to the file."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from engine_support import until
from operations_support import ADMIN, Desk, desk

from obatchd.backup.making import make
from obatchd.backup.restoring import restore
from obatchd.cli.audit import _lines
from obatchd.cli.obatchctl import main
from obatchd.control.auth import Caller, Origin
from obatchd.control.operations import NewKeyAsked
from obatchd.control.programs import FileTerms
from obatchd.documents.audit import HTTP, AuditAsked, AuditEntry
from obatchd.errors import ConfigError, ControlError, NotFoundError
from obatchd.gpus.monitor import Quarantine
from obatchd.live import audit as module
from obatchd.live.audit import AuditFile, AuditLog
from obatchd.operations.audit import QuarantinesByRules, entry_of, recorded
from obatchd.operations.files import Files
from obatchd.operations.keys import Keys
from obatchd.spool.layout import Layout

ALL = AuditAsked(10_000)
# By a key of an administrator, over the network.
FROM_AFAR = Caller(7, True, Origin(HTTP, "10.0.0.9", key="key-1", key_label="ops"))


@pytest.fixture
def audit(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


def entry(kind: str = "key_added", at: str = "2026-11-29T10:00:00.000Z", **more: Any) -> AuditEntry:
    return AuditEntry(**{"at": at, "kind": kind, "uid": 0, "door": "control", **more})


async def kinds(audit: AuditLog, asked: AuditAsked = ALL) -> list[str]:
    return [one.kind for one in (await audit.read(asked)).entries]


async def told(rig: Desk) -> list[tuple[Any, ...]]:
    found = (await rig.work.audit.read(ALL)).entries
    return [(one.uid, one.kind, one.target, one.owner) for one in found]


class Refusing:
    """A disk that refuses, in the place of the file's own writing."""

    def __init__(self, audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self._append = True, AuditFile.append
        monkeypatch.setattr(AuditFile, "append", lambda file, entries: self.append(file, entries))

    def append(self, file: AuditFile, entries: Sequence[AuditEntry]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._append(file, entries)


# What is recorded.


async def test_keys_are_recorded_with_who_when_and_from_where_and_without_the_key(rig: Desk) -> None:
    keys, began = Keys(rig.work), time.time()
    made = await keys.add(FROM_AFAR, NewKeyAsked(label="note", administrator=True))
    await keys.remove(ADMIN, made.about.id)
    added, removed = (await rig.work.audit.read(ALL)).entries
    assert (added.kind, added.uid, added.target, added.owner) == ("key_added", 7, made.about.id, 7)
    assert (added.door, added.address, added.key, added.key_label) == ("http", "10.0.0.9", "key-1", "ops")
    assert added.at[:10] == time.strftime("%Y-%m-%d", time.gmtime(began)) and added.at.endswith("Z")
    assert added.detail == "batches, inference, administrator"
    assert (removed.kind, removed.uid, removed.user, removed.owner) == ("key_removed", 0, "root", 7)
    kept = (rig.work.layout.work / "audit" / "audit.jsonl").read_text()
    assert made.key not in kept and made.key[4:] not in kept


async def test_what_operators_do_to_gpus_and_servers_and_the_host_is_recorded(rig: Desk) -> None:
    gpus, host = rig.operations.gpus, rig.operations.host
    await gpus.quarantine(ADMIN, "0", "it smells")
    await gpus.release(ADMIN, "0")
    await gpus.lend(ADMIN, "1", 3600)
    await gpus.take_back(ADMIN, "1")
    await gpus.share(ADMIN, "1", True)
    await gpus.share(ADMIN, "1", False)
    await rig.operations.servers.act(ADMIN, "gpu1", "drain")
    await rig.operations.servers.act(ADMIN, "gpu1", "resume")
    for act in (host.pause, host.resume, host.drain, host.undrain):
        await act(ADMIN)
    found = (await rig.work.audit.read(ALL)).entries
    assert [(one.kind, one.target) for one in found] == [
        ("gpu_quarantined", "GPU-0"), ("gpu_released", "GPU-0"), ("gpu_lent", "GPU-1"), ("gpu_taken_back", "GPU-1"),
        ("gpu_shared", "GPU-1"), ("gpu_unshared", "GPU-1"), ("server_drained", "gpu1"), ("server_resumed", "gpu1"),
        ("host_paused", ""), ("host_resumed", ""), ("host_drained", ""), ("host_undrained", ""),
    ]  # fmt: skip
    assert (found[0].detail, found[2].detail) == ("it smells", "for 1 h")


async def test_what_obatchd_takes_out_of_use_by_itself_is_recorded_as_its_own(rig: Desk) -> None:
    listener = QuarantinesByRules(rig.work.audit)
    listener.quarantined("GPU-0", Quarantine("asked", 0.0, "administrator"), False)
    listener.quarantined("GPU-1", Quarantine("ECC errors", 0.0, "rules"), True)
    await until(lambda: (rig.work.layout.work / "audit" / "audit.jsonl").exists())
    await rig.work.audit.record()
    [one] = (await rig.work.audit.read(ALL)).entries
    assert (one.kind, one.door, one.uid, one.detail) == (
        "gpu_quarantined",
        "obatchd",
        os.geteuid(),
        "rules: ECC errors",
    )


async def test_what_is_done_to_jobs_of_others_is_recorded_and_ones_own_is_nobodys_business(rig: Desk) -> None:
    jobs = rig.operations.jobs
    mine, other = await rig.take("a", owner=1000), await rig.take("b", owner=1000)
    owner = Caller(1000, False)
    await jobs.pause(owner, mine.row.job)
    await jobs.resume(owner, mine.row.job)
    await jobs.cancel(owner, mine.row.job)
    assert await told(rig) == []
    await jobs.pause(ADMIN, other.row.job)
    await jobs.resume(ADMIN, other.row.job)
    await jobs.cancel(ADMIN, other.row.job)
    await rig.published(other)
    await rig.published(mine)
    await jobs.remove(ADMIN, other.row.job)
    await jobs.remove_all(ADMIN, [mine.row.job])
    assert await told(rig) == [
        (0, kind, job.row.job, 1000)
        for kind, job in (
            ("job_paused", other), ("job_resumed", other), ("job_cancelled", other), ("job_removed", other),
            ("job_removed", mine),
        )
    ]  # fmt: skip


async def test_a_file_that_an_administrators_key_deletes_is_recorded(rig: Desk) -> None:
    files, owner = Files(rig.work), Caller(1000, False)
    await files.start()
    for caller in (owner, FROM_AFAR):
        upload = await files.begin(owner, "secret-name.jsonl")
        await upload.write(b"{}")
        file = await upload.finish(FileTerms("batch", None))
        await files.remove(caller, file.id)
    await files.stop()
    assert await told(rig) == [(7, "file_removed", file.id, 1000)]
    assert "secret-name" not in (rig.work.layout.work / "audit" / "audit.jsonl").read_text()


async def test_what_came_to_nothing_is_said_beside_what_was_asked(rig: Desk) -> None:
    with pytest.raises(NotFoundError):
        await rig.operations.gpus.lend(ADMIN, "9", 60)
    assert await told(rig) == []  # nothing was begun
    with pytest.raises(ControlError):
        async with recorded(rig.work.audit, entry_of(ADMIN, "gpu_lent", "GPU-0")):
            raise ControlError("no", code="still_bad")
    with pytest.raises(KeyError):
        async with recorded(rig.work.audit, entry_of(ADMIN, "gpu_lent", "GPU-0")):
            raise KeyError("x")
    await rig.work.audit.record()
    failed = [one.failed for one in (await rig.work.audit.read(ALL)).entries]
    assert [str(one) for one in failed if isinstance(one, str)] == ["still_bad", "internal"] and len(failed) == 4


# The file.


async def test_the_latest_are_found_by_number_time_and_kind(audit: AuditLog) -> None:
    for minute in range(10):
        kind = "gpu_lent" if minute % 2 else "key_added"
        await audit.record(entry(kind, f"2026-11-29T10:0{minute}:00.000Z", target=str(minute)))

    async def found(**asked: Any) -> str:
        entries = (await audit.read(AuditAsked(**{"limit": 100, **asked}))).entries
        return "".join(one.target for one in entries)

    at = 1795946400.0  # 2026-11-29 10:00 in UTC
    assert await found() == "0123456789" and await found(limit=3) == "789"
    assert await found(kinds=("gpu",)) == "13579" and await found(kinds=("key_added",), limit=2) == "68"
    assert await found(since_s=at + 300, until_s=at + 420) == "56"


async def test_it_is_its_daemons_alone(audit: AuditLog, tmp_path: Path) -> None:
    await audit.record(entry())
    path = tmp_path / "audit" / "audit.jsonl"
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)] == [0o600, 0o700]
    path.unlink()
    (tmp_path / "elsewhere").touch()
    path.symlink_to(tmp_path / "elsewhere")  # is not followed
    await audit.record(entry())
    assert audit.problem and (tmp_path / "elsewhere").read_bytes() == b""
    await audit.stop()


async def test_it_grows_to_its_bound_and_the_oldest_go(
    audit: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FILE_BYTES", 1000)
    for number in range(200):
        await audit.record(entry(target=str(number)))
    files = sorted(path.name for path in (tmp_path / "audit").iterdir())
    assert files == [*(f"audit.{number}.jsonl" for number in range(1, 8)), "audit.jsonl"]
    assert all((tmp_path / "audit" / name).stat().st_size < 1200 for name in files)
    numbers = [int(one.target) for one in (await audit.read(ALL)).entries]
    assert numbers == list(range(numbers[0], 200)) and 40 < len(numbers) < 100
    assert [one.target for one in (await audit.read(AuditAsked(1))).entries] == ["199"]


async def test_half_a_line_of_a_crash_costs_that_line_alone(audit: AuditLog, tmp_path: Path) -> None:
    await audit.record(entry(target="before"))
    path = tmp_path / "audit" / "audit.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"at":"2026-11-29T10:00:00.000Z","kin')  # the power went
    await AuditLog(tmp_path).record(entry(target="after"))
    with open(path, "ab") as file:
        file.write(b"\x00\xff\x00\n")
    found = await audit.read(ALL)
    assert ([one.target for one in found.entries], found.unreadable) == (["before", "after"], 2)


def test_writers_at_once_leave_whole_lines(tmp_path: Path) -> None:
    file = AuditFile(tmp_path)

    def write(writer: int) -> None:
        for number in range(50):
            file.append([entry(target=f"{writer}-{number}", detail="x" * 400)])

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found, unreadable = file.read(ALL)
    assert unreadable == 0
    assert {one.target for one in found} == {f"{writer}-{number}" for writer in range(8) for number in range(50)}


KILLED = """
import asyncio, sys
from pathlib import Path
from obatchd.documents.audit import AuditEntry
from obatchd.live.audit import AuditLog

async def main():
    audit = AuditLog(Path(sys.argv[1]))
    for number in range(100_000):
        at = "2026-11-29T10:00:00.000Z"
        await audit.record(AuditEntry(at=at, kind="key_added", uid=0, door="control", target=str(number)))
        print(number, flush=True)

asyncio.run(main())
"""


def test_a_kill_loses_no_record_of_what_was_begun(tmp_path: Path) -> None:
    """What was told as recorded is in the file, in its order, each once; at most one more is."""
    for turn in range(3):
        directory = tmp_path / str(turn)
        directory.mkdir()
        with subprocess.Popen([sys.executable, "-c", KILLED, directory], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            seen = [int(process.stdout.readline()) for _ in range(20 + 17 * turn)]
            process.send_signal(signal.SIGKILL)
            seen += [int(line) for line in process.stdout if line.strip()]
        found, unreadable = AuditFile(directory).read(AuditAsked(100_000))
        numbers = [int(one.target) for one in found]
        assert numbers == list(range(len(numbers))) and len(seen) <= len(numbers) <= len(seen) + 1 and unreadable <= 1


# A disk that refuses.


async def test_on_a_full_disk_the_action_goes_on_and_everybody_sees_that_the_log_lacks_it(
    rig: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)
    disk = Refusing(rig.work.audit, monkeypatch)
    shown = await rig.operations.gpus.quarantine(ADMIN, "0", "it burns")
    assert shown.health == "quarantine"
    notices = rig.operations.host.status(ADMIN).notices
    words = "the audit log cannot be written: No space left on device (errno 28); 1 entry kept in memory until it can"
    assert words in notices and words not in rig.operations.host.status(Caller(1000, False)).notices
    assert (await rig.operations.audit.entries(ALL)).problem == words
    disk.full = False
    await until(lambda: not rig.work.audit.problem)
    assert [one[1] for one in await told(rig)] == ["gpu_quarantined"]
    assert words not in rig.operations.host.status(ADMIN).notices


async def test_what_does_not_fit_into_memory_either_is_counted_in_the_log(
    audit: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)
    monkeypatch.setattr(module, "_WAITING", 3)
    disk = Refusing(audit, monkeypatch)
    for number in range(5):
        await audit.record(entry(target=str(number)))
    assert audit.problem.endswith("; 3 entries kept in memory until it can; 2 more are lost")
    disk.full = False
    await until(lambda: not audit.problem)
    found = (await audit.read(ALL)).entries
    assert [(one.kind, one.target) for one in found[:3]] == [("key_added", str(number)) for number in range(3)]
    assert [(one.kind, one.detail, one.door) for one in found[3:]] == [("records_lost", "2 entries", "obatchd")]


async def test_a_disk_that_says_nothing_holds_up_no_action(audit: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    goes_on, append = threading.Event(), AuditFile.append

    def hanging(file: AuditFile, entries: Sequence[AuditEntry]) -> None:
        goes_on.wait(20)
        append(file, entries)

    monkeypatch.setattr(AuditFile, "append", hanging)
    began_s = time.monotonic()
    await audit.record(entry())
    assert time.monotonic() - began_s < 5
    goes_on.set()
    await asyncio.to_thread(lambda: None)
    await audit.stop()
    assert await kinds(audit) == ["key_added"]


async def test_the_end_of_the_daemon_writes_what_waits_or_says_what_is_lost(
    audit: AuditLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Refusing(audit, monkeypatch)
    await audit.record(entry(), entry())
    await audit.stop()
    assert "audit_entries_lost" in caplog.text
    disk.full = False
    await audit.stop()
    assert await kinds(audit) == ["key_added"] * 2


# Backups, and people.


async def test_a_backup_takes_the_log_with_it(rig: Desk, tmp_path: Path) -> None:
    await rig.work.audit.record(entry(target="kept"))
    target, spool = tmp_path / "backup.tar", tmp_path / "restored"
    await asyncio.to_thread(make, rig.work.layout.root, target)
    restore(target, spool)
    again = AuditLog(Layout.open(spool).work)
    await again.record(entry(target="later"))
    assert [one.target for one in (await again.read(ALL)).entries] == ["kept", "later"]
    assert stat.S_IMODE((spool / "work" / "audit" / "audit.jsonl").stat().st_mode) == 0o600


async def test_texts_of_others_are_bounded_and_harmless_in_a_terminal(audit: AuditLog) -> None:
    bad = "\x1b]0;pwned\x07\n2026-11-29 root \u202eevil\udcff" + "x" * 9000
    origin = Origin(HTTP, "10.0.0.9", key="key-1", key_label=bad)
    await audit.record(entry_of(Caller(4_000_000, True, origin), "gpu_quarantined", bad, detail=bad))
    [one] = (await audit.read(ALL)).entries
    assert len(one.target) == len(str(one.detail)) == len(str(one.key_label)) == 500
    assert one.user == "4000000"
    [_, shown] = _lines({"entries": [msgspec.to_builtins(one)], "unreadable": 0, "problem": ""})
    assert shown.isprintable() and "http 10.0.0.9 key-1" in shown and shown.startswith(one.at[:19])


async def test_an_unknown_kind_is_told_with_those_there_are(rig: Desk) -> None:
    with pytest.raises(ConfigError, match=r"^jobs is no kind of entry; there are: .*job.*, key_added, "):
        await rig.operations.audit.entries(AuditAsked(1, kinds=("jobs",)))


def test_what_is_asked_reaches_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    document = {"schema": 1, "entries": [], "unreadable": 2, "problem": "the disk is full\x1b[31m"}

    def get(path: str, **query: Any) -> Any:
        asked.append((path, query))
        return document

    monkeypatch.setattr("obatchd.cli.command.Invocation.client", lambda _: SimpleNamespace(get=get))
    ran = CliRunner().invoke(
        main, ["audit", "--limit", "5", "--kind", "key", "--kind", "gpu_lent", "--since", "2026-11-29"]
    )
    assert ran.exit_code == 0 and ran.stdout == "Nothing is recorded.\n"
    assert "\x1b" not in ran.stderr and "2 lines of the log cannot be read" in ran.stderr
    [(path, query)] = asked
    assert (path, query["limit"], query["kind"], query["until"]) == ("audit", 5, "key,gpu_lent", None)
    assert isinstance(query["since"], float)
    assert json.loads(CliRunner().invoke(main, ["audit", "--json"]).stdout) == document
