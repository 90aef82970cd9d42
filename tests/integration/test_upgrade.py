"""Spools that earlier versions left with jobs in every state (``tests/fixtures``) are upgraded and finished."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
import tarfile
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, Document, Job, prompts, wait_for

from obatchd.jobs.store.schema import BACKUP_MARK

Start = Callable[..., Daemon]
FIXTURES = Path(__file__).parents[1] / "fixtures"
UPGRADE: Document = {
    "model": "tiny",
    "system_message": "Of the upgrade.",
    "options": {"top_k": 7},
    "max_response_tokens": 25,
    "outbox": {"response_files": "always"},
}
LATER: Document = {
    "model": "simulated",
    "system_message": "Of later.",
    "options": {"top_k": 9},
    "context_length": 20_000,
    "max_response_tokens": 35,
    "format": "json",
    "outbox": {"response_files": "never", "response_text": "md"},
}
IN_WORK = ("lanes.jsonl", "own", "paused.jsonl", "waiting.jsonl", "cancelling.jsonl", "publishing.jsonl")


def spool_of(store: str, make_daemon: Start, config: Document) -> tuple[Daemon, dict[str, list[Document]]]:
    """A daemon that is not started yet on a copy of a spool, and what was asked of the old one, by drop."""
    d: Daemon = make_daemon(config, simulator={"service_s": {"kind": "fixed", "value": 0.1}})
    with tarfile.open(FIXTURES / f"{store}.tar.xz") as archive:
        # Python before 3.11.4 has no filters, and from 3.14 on this one is the default.
        archive.extractall(d.root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (d.root / "spool").rename(d.spool)
    # Servers are found again by this mark, and other tests have a copy of the same spool.
    (d.spool / "work" / "uuid").write_text(f"{uuid.uuid4()}\n")
    asked: dict[str, list[Document]] = json.loads((d.spool / "asked.json").read_bytes())
    return d, asked


def answered_before(d: Daemon) -> set[str]:
    """Ids of the requests that have a result in the store."""
    found: set[str] = set()
    for path in (d.spool / "work" / "segments").glob("*.db"):
        with closing(sqlite3.connect(path)) as segment:
            found |= {json.loads(record)["id"] for (record,) in segment.execute("SELECT record FROM results")}
    return found


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return found


def with_family(segment: Path) -> int:
    """How many requests in a segment have a family."""
    with closing(sqlite3.connect(segment)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'families'").fetchall():
            return 0
        found: int = connection.execute("SELECT count(*) FROM families").fetchone()[0]
        return found


def upgrade_notes(job: Job) -> list[str]:
    return [note for note in job.summary["notes"] if "earlier version of obatchd accepted this job" in note]


def check_settings(job: Job, received: list[Document], settings: Document, system_message: str) -> None:
    """What is asked since the upgrade is asked in one way, which the summary names."""
    for request in received:
        assert request["system"] == system_message
        assert request["options"]["top_k"] == settings["options"]["top_k"]
        assert request["options"]["num_predict"] == settings["max_response_tokens"]
        assert request["format"] is None or settings is LATER
    used = job.summary["settings"]
    assert used["options"] == settings["options"]
    assert used["max_response_tokens"] == settings["max_response_tokens"]
    assert used["system_message_sha256"] == hashlib.sha256(system_message.encode()).hexdigest()
    assert used["model"] == settings["model"]


def states(d: Daemon) -> dict[str, str]:
    return {job["name"]: job["state"] for job in d.client.get("jobs")["jobs"]}


def test_every_promise_holds_over_the_upgrade(make_daemon: Start) -> None:
    d, asked = spool_of("store-0.1.0", make_daemon, UPGRADE)
    before = {path: path.read_bytes() for path in d.outbox.glob("*/summary.json")}
    old_results = answered_before(d)
    d.start().ready()
    work = d.spool / "work"
    [copy] = work.glob(f"*{BACKUP_MARK}*")
    assert (version(work / "state.db"), version(copy)) == (6, 1)
    assert not list(work.glob(f"segments/*{BACKUP_MARK}*")), "segments are not copied, and stay readable by 0.1.0"
    assert states(d)["paused.jsonl"] == "running" and states(d)["cancelled.jsonl"] == "done"

    wait_for(lambda: len(d.received()) >= 8, what="some are answered since the upgrade")
    d.configure(LATER)
    assert json.loads(d.control("reload", "--json").stdout)["next_job"]
    received = d.received()
    d.kill()  # the next start has another configuration, too
    d.start().ready()
    assert all(job["paused"] == (job["name"] == "paused.jsonl") for job in d.status()["jobs"])
    d.drop("new.jsonl", prompts(4, "new"))
    d.control("resume", d.job("paused.jsonl").id)
    for name in (*IN_WORK, "new.jsonl"):
        d.done(name, 60)
    received += d.received()

    assert not {request["prompt"] for request in received} & {
        request["prompt"] for requests in asked.values() for request in requests if request["id"] in old_results
    }
    for name in IN_WORK:
        job = d.done(name)
        cancelled = len(asked[name]) if name == "cancelling.jsonl" else 0
        summary = job.check(asked[name] if not cancelled else None, failed=cancelled)
        assert summary["cancelled"] == cancelled
        assert len(upgrade_notes(job)) == 1, job.summary["notes"]
        mine = {request["prompt"] for request in asked[name]}
        of_job = [request for request in received if request["prompt"] in mine]
        check_settings(job, of_job, UPGRADE, "Its own." if name == "own" else "Of the upgrade.")
        if not cancelled:
            files = {path.name for path in (job.directory / "responses").iterdir()}
            assert files == {f"{request['id']}{ending}" for request in asked[name] for ending in (".json", ".txt")}
    assert d.done("lanes.jsonl").summary["settings"]["context_length"] == [8192, 16384]
    assert d.done("own").summary["settings"]["context_length"] == [8192]
    assert not [request for request in received if request["prompt"].startswith(("publishing", "cancel", "done"))]

    new = d.done("new.jsonl")
    assert new.summary["notes"] == []
    check_settings(new, [r for r in received if r["prompt"].startswith("new")], LATER, "Of later.")
    assert {path: path.read_bytes() for path in before} == before
    assert len(before) == 2 and states(d)["refused"] == "refused"
    wait_for(lambda: set(states(d).values()) == {"done", "refused"}, what="the index has heard of all ends")
    assert d.stop() == 0


@pytest.mark.near
@pytest.mark.parametrize(("point", "settings"), [("before_commit", LATER), ("after_commit", UPGRADE)])
def test_a_kill_in_the_upgrade_freezes_once(make_daemon: Start, point: str, settings: Any) -> None:
    d, asked = spool_of("store-0.1.0", make_daemon, UPGRADE)
    assert d.launch(crash_at=f"schema.{point}").wait(20) == -signal.SIGKILL
    assert version(d.spool / "work" / "state.db") == (1 if point == "before_commit" else 6)
    d.configure({**LATER, "format": ""})
    d.start().ready()
    job = d.done("waiting.jsonl", 60)
    job.check(asked["waiting.jsonl"])
    assert len(upgrade_notes(job)) == 1
    received = [request for request in d.received() if request["prompt"].startswith("waiting")]
    assert len(received) == len(asked["waiting.jsonl"])
    check_settings(job, received, settings, settings["system_message"])
    d.done("lanes.jsonl", 60).check(asked["lanes.jsonl"])
    assert len(list((d.spool / "work").glob(f"*{BACKUP_MARK}*"))) == 1


@pytest.mark.near
@pytest.mark.parametrize("old", [2, 4])
def test_jobs_in_any_state_go_on_over_kills_in_the_migration(make_daemon: Start, old: int) -> None:
    d, asked = spool_of(f"store-schema-{old}", make_daemon, LATER)
    questions = [{**one, "prompt": f"{at // 5} {'about ' * 300}{one['prompt']}"} for at, one in enumerate(prompts(20))]
    state, old_results = d.spool / "work" / "state.db", answered_before(d)
    before = {path: path.read_bytes() for path in d.outbox.glob("*/summary.json")}
    assert version(state) == old
    points = (("before_flush", old), ("after_copy", old), ("before_commit", old), ("after_commit", 6))
    for point, reached in points:
        assert d.launch(crash_at=f"schema.{point}").wait(20) == -signal.SIGKILL
        assert version(state) == reached
    [copy] = state.parent.glob(f"*{BACKUP_MARK}*")
    assert version(copy) == old
    d.start().ready()
    # A job whose requests share beginnings, in the segment of jobs that were indexed before there were families.
    d.drop("families.jsonl", questions)
    assert all(job["paused"] == (job["name"] == "paused.jsonl") for job in d.status()["jobs"])
    d.control("resume", d.job("paused.jsonl").id)
    for name in IN_WORK:
        cancelled = len(asked[name]) if name == "cancelling.jsonl" else 0
        job = d.done(name, 60)
        assert job.check(asked[name] if not cancelled else None, failed=cancelled)["cancelled"] == cancelled
        assert job.summary["settings"]["options"] == {"top_k": 1}, "the settings with which it was accepted"
        assert upgrade_notes(job) == []
    assert d.done("families.jsonl", 60).summary["succeeded"] == len(questions)
    assert sum(with_family(path) for path in (d.spool / "work" / "segments").glob("*.db")) == len(questions)
    prompts_received = [request["prompt"] for request in d.received()]
    assert sum(" about " in prompt for prompt in prompts_received) == len(questions)
    prompts_received = [prompt for prompt in prompts_received if " about " not in prompt]  # cut in what is recorded
    assert len(prompts_received) == len(set(prompts_received)), "every request exactly once"
    assert not set(prompts_received) & {
        request["prompt"] for requests in asked.values() for request in requests if request["id"] in old_results
    }
    assert {path: path.read_bytes() for path in before} == before and len(before) == 2
    wait_for(lambda: set(states(d).values()) == {"done", "refused"}, what="the index has heard of all ends")
    sums = d.client.get("usage")["usage"]  # since version 4; jobs that ended before have no tokens in the index
    over = ("done.jsonl", "cancelled.jsonl") if old == 4 else ()
    requests = sum(len(asked[name]) for name in (*IN_WORK, *over)) + len(questions)
    assert sum(month["requests"] for month in sums) == requests
    assert all(month["response_tokens"] and month["gpu_s"] for month in sums)
    assert d.stop() == 0
