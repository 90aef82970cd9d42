"""Files of the spool that are damaged, lost or came back empty: done jobs stand, the others are answered once."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, Job, prompts, wait_for

Start = Callable[..., Daemon]
SLOW: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.1}}
# Two seconds of work: a job that is done within one may have no status.json before its end.
HALF = prompts(160, "half")


def reboot(d: Daemon) -> None:
    """Make the spool look as after another boot of the machine, which went down under the daemon."""
    (d.spool / "work" / "session").write_text("another boot\n")


def forget_boot(d: Daemon) -> None:
    """Let the index say that it was last used in another boot."""
    reboot(d)
    with closing(sqlite3.connect(d.spool / "work" / "state.db")) as state, state:
        state.execute("INSERT OR REPLACE INTO facts VALUES ('boot_id', 'another boot')")


def one_done_and_one_half(make_daemon: Start) -> tuple[Daemon, Job, bytes]:
    """A killed daemon whose spool holds a done job and one with some results; what the done one's summary says."""
    d: Daemon = make_daemon(simulator=SLOW).start().ready()
    d.drop("done.jsonl", prompts(8, "done"))
    job = d.done("done.jsonl")
    wait_for(lambda: d.client.get("jobs")["jobs"][0]["state"] == "done", 5, "the index knows it, too")
    d.drop("half.jsonl", HALF)
    d.job("half.jsonl")
    wait_for(lambda: (d.status()["jobs"] or [{"succeeded": 0}])[0]["succeeded"] >= 16, 20, "some are answered")
    d.kill()
    return d, job, (job.directory / "summary.json").read_bytes()


def response_files(job: Job) -> list[Path]:
    return [path for path in (job.directory / "responses").iterdir() if not path.name.startswith(".")]


def finish(d: Daemon, done: Job, summary: bytes) -> int:
    """Start again, see everything through; how many requests the servers saw since."""
    d.start().ready()
    d.done("half.jsonl").check(HALF)
    served = sum(s["served"] for s in d.seen())
    assert (done.directory / "summary.json").read_bytes() == summary
    done.check(prompts(8, "done"))
    d.drop("new.jsonl", prompts(8, "new"))
    d.done("new.jsonl").check(prompts(8, "new"))
    states = {job["name"]: job["state"] for job in d.client.get("jobs")["jobs"]}
    assert states.keys() == {"done.jsonl", "half.jsonl", "new.jsonl"}
    assert len(list(d.outbox.iterdir())) == 3
    assert d.stop() == 0
    return served


def remove(path: Path) -> None:
    for name in (path, *path.parent.glob(f"{path.name}-*")):
        name.unlink()


def overwrite(path: Path) -> None:
    for name in (path, *path.parent.glob(f"{path.name}-*")):
        name.write_bytes(b"\xff" * name.stat().st_size)


@pytest.mark.near
@pytest.mark.parametrize("lose", [remove, overwrite])
def test_the_index_is_lost(make_daemon: Start, lose: Callable[[Path], None]) -> None:
    d, done, summary = one_done_and_one_half(make_daemon)
    lose(d.spool / "work" / "state.db")
    served = finish(d, done, summary)
    assert served <= len(HALF) - 16, "results in the segment are results still"
    assert d.events("index_rebuilt")


def test_the_index_is_lost_with_a_jobs_own_settings(make_daemon: Start) -> None:
    d: Daemon = make_daemon({"model": ""}, simulator=SLOW).start().ready()
    files = {"job.toml": b'model = "tiny"\npriority = "high"\n'}
    files |= {f"{n}.json": b'{"prompt": "folder: what is %d?"}' % n for n in range(160)}
    d.drop("folder", files)
    d.job("folder")
    wait_for(lambda: d.succeeded() >= 8, 20, "some are answered")
    [owner] = {one["owner"] for one in d.status()["jobs"]}
    d.kill()
    remove(d.spool / "work" / "state.db")
    d.start()
    [shown] = d.status()["jobs"]
    assert (shown["priority"], shown["owner"], shown["name"]) == ("high", owner, "folder")
    assert d.done("folder").check()["succeeded"] == 160


def test_a_segment_is_damaged(make_daemon: Start) -> None:
    d, done, summary = one_done_and_one_half(make_daemon)
    [segment] = (d.spool / "work" / "segments").glob("*.db")
    overwrite(segment)
    finish(d, done, summary)
    assert list(segment.parent.glob("*.corrupt-*"))


def test_a_segment_is_damaged_behind_its_first_page_by_a_power_cut(make_daemon: Start) -> None:
    d, done, summary = one_done_and_one_half(make_daemon)
    assert d.start().stop() == 0  # everything is in the file itself now, nothing in its log
    [segment] = (d.spool / "work" / "segments").glob("*.db")
    content = segment.read_bytes()
    segment.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    reboot(d)
    finish(d, done, summary)
    assert list(segment.parent.glob("*.corrupt-*"))


def test_index_and_segment_are_lost_together(make_daemon: Start) -> None:
    d, done, summary = one_done_and_one_half(make_daemon)
    remove(d.spool / "work" / "state.db")
    [segment] = (d.spool / "work" / "segments").glob("*.db")
    remove(segment)
    finish(d, done, summary)


def test_a_torn_summary_after_a_reboot_is_written_again(make_daemon: Start) -> None:
    d, done, _ = one_done_and_one_half(make_daemon)
    (done.directory / "summary.json").write_bytes(b"")
    (done.directory / "results.jsonl").write_bytes(b"")
    for path in response_files(done):
        path.write_bytes(b"")
    forget_boot(d)
    d.start().ready()
    wait_for(lambda: (done.directory / "summary.json").stat().st_size, 20, "it is published again")
    done.check(prompts(8, "done"))
    assert all(path.stat().st_size for path in response_files(done))
    d.done("half.jsonl").check(HALF)
    assert sum(s["served"] for s in d.seen()) <= len(HALF) - 16


def test_results_that_their_owner_took_away_do_not_come_back(make_daemon: Start) -> None:
    d, done, _ = one_done_and_one_half(make_daemon)
    os.rename(done.directory, d.root / "taken")
    forget_boot(d)
    d.start().ready()
    d.done("half.jsonl").check(HALF)
    assert not done.directory.exists()


def test_response_files_that_came_back_empty_are_whole_in_the_end(make_daemon: Start) -> None:
    d, _, _ = one_done_and_one_half(make_daemon)
    half = d.job("half.jsonl")
    files = response_files(half)
    assert files
    for path in files:
        path.write_bytes(b"")
    reboot(d)
    d.start().ready()
    d.done("half.jsonl").check(HALF)
    assert len(response_files(half)) == 2 * len(HALF)
    assert all(path.stat().st_size for path in response_files(half))


def test_what_finished_jobs_leave_is_bounded(make_daemon: Start) -> None:
    d: Daemon = make_daemon({"disk": {"keep_done_bytes": 0, "prune_outbox_s": 3600}}).start().ready()
    d.drop_all({f"job{n}.jsonl": prompts(5, f"job{n}") for n in range(5)})
    d.drop("bad.jsonl", b"no json at all")
    jobs = [d.done(f"job{n}.jsonl") for n in range(5)]
    wait_for(lambda: list((d.spool / "failed").rglob("*.txt")), 10, "the bad one is refused")
    assert d.stop() == 0
    [refused] = [path.parent for path in (d.spool / "failed").rglob("*.txt")]
    old_s = time.time() - 7200
    for path in (jobs[0].directory / "summary.json", refused):
        os.utime(path, (old_s, old_s))
    d.start().ready()
    wait_for(lambda: not list((d.spool / "work" / "jobs").iterdir()), 10, "inputs are released")
    wait_for(lambda: not list((d.spool / "work" / "segments").iterdir()), 10, "the segment is deleted")
    wait_for(lambda: not jobs[0].directory.exists() and not refused.exists(), 10, "what is old is pruned")
    for job in jobs[1:]:
        job.check()
    assert not list((d.spool / "work" / "trash").iterdir())
