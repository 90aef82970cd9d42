"""Limits through the whole daemon: deadlines of jobs, the total time of a request, and what survives a restart."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from daemon_support import Daemon, jsonl, prompts, wait_for
from process_support import alive

pytestmark = pytest.mark.over_channel

Start = Callable[..., Daemon]
SLOW: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.4}}


def folder(job_toml: str, count: int) -> dict[str, bytes]:
    return {"job.toml": job_toml.encode(), "prompts.jsonl": jsonl(prompts(count))}


def test_what_is_not_answered_by_the_deadline_expires(daemon: Start) -> None:
    d = daemon(simulator=SLOW)
    for name in ("seconds", "time"):
        end = 3 if name == "seconds" else (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
        d.drop(name, folder(f"deadline = {end}", 300))
        assert d.job(name).status["expires_at"]
        job = d.done(name)
        summary = job.summary
        assert summary["succeeded"] > 8
        assert summary["expired"] == 300 - summary["succeeded"] > 0
        assert job.codes() == {"expired": summary["expired"]}
        assert {e["outcome"] for e in job.errors} == {"expired"}
        assert summary["failures"]["expired"]["advice"]
        assert not summary["cancelled_by_user"]
        assert summary["wall_s"] < 8
        assert d.status()["servers"][0]["in_flight"] == 0
    d.drop("next.jsonl", prompts(8, "next"))
    d.done("next.jsonl").check()
    path = d.root / "mine.jsonl"
    path.write_bytes(jsonl(prompts(200)))
    answer = d.control("submit", "--deadline", "2", path)
    assert answer.returncode == 0, answer.stderr
    assert d.done("mine.jsonl").summary["expired"] > 0


def test_a_deadline_passes_while_the_daemon_is_down(daemon: Start) -> None:
    d = daemon({"deadline": 3}, simulator=SLOW)
    d.drop("job.jsonl", prompts(300))
    job = d.job("job.jsonl")
    wait_for(lambda: job.status["succeeded"] > 0, 10, "something is answered")
    d.kill()
    accepted_s = datetime.fromisoformat(job.status["accepted_at"]).timestamp()
    wait_for(lambda: datetime.now(UTC).timestamp() > accepted_s + 3, 10, "the deadline is over")
    d.start()
    summary = d.done("job.jsonl").summary
    assert summary["expired"] + summary["succeeded"] == 300
    assert summary["expired"] > 0


def test_a_jobs_deadline_goes_before_the_daemons(daemon: Start) -> None:
    d = daemon({"deadline": 60})
    d.drop("old", folder('deadline = "2020-01-01T00:00:00Z"', 40))
    summary = d.done("old").summary
    assert (summary["expired"], summary["requests"]) == (40, 40)
    assert d.received() == []
    d.drop("quick.jsonl", prompts(20))
    assert d.done("quick.jsonl").summary["expired"] == 0
    d.drop("unlimited", folder("deadline = 0", 5))
    assert d.done("unlimited").status["expires_at"] is None
    d.drop("wrong", folder('deadline = "tomorrow"', 5))
    [path] = wait_for(lambda: list((d.spool / "failed").rglob("*.error.txt")), 10, "the drop is refused")
    assert "deadline" in path.read_text()
    assert "2026-12-31T18:00:00+01:00" in path.read_text()


def test_a_request_may_take_only_so_long_over_all_its_attempts(daemon: Start) -> None:
    limits = {"request_timeout_s": 1, "request_total_s": 1.5, "max_attempts": 9, "strikes": 1000}
    d = daemon({"dispatch": limits}, simulator={"service_s": {"kind": "fixed", "value": 0.1}})
    d.faults({"kind": "slow", "factor": 1000, "marker": "slow:"})
    d.drop("job.jsonl", [*prompts(20), *prompts(1, "slow")])
    job = d.done("job.jsonl")
    job.check(failed=1)
    [error] = job.errors
    assert (error["id"], error["code"], error["attempts"]) == ("slow-0", "timeout", 2)
    assert "request_total_s" in error["message"]
    assert len(error["servers"]) == 2
    assert job.summary["failures"]["timeout"]["advice"]


def test_attempts_crashes_and_time_spent_survive_a_restart(daemon: Start) -> None:
    settings: dict[str, Any] = {
        "dispatch": {"strikes": 1000, "max_attempts": 9},
        "servers": {"backoff_max_s": 0.1, "starts_limit": 1000},
    }
    crash = [{"kind": "runner_crash", "marker": "POISON", "after_tokens": 3}]
    d = daemon(settings, simulator={"service_s": {"kind": "fixed", "value": 0.3}, "faults": crash})
    asked = [*prompts(30), *prompts(1, "POISON")]
    d.drop("job.jsonl", asked)

    def recorded() -> list[float]:
        """Seconds spent in each ended attempt of the poisonous request that the store knows of."""
        found: list[tuple[float]] = []
        for path in (d.spool / "work").rglob("*.db"):
            database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            with contextlib.closing(database), contextlib.suppress(sqlite3.OperationalError):  # not every file has them
                query = "SELECT spent_s FROM attempts WHERE fault <> '' AND request % 4294967296 = ?"
                found += database.execute(query, (len(asked),)).fetchall()
        return [spent_s for (spent_s,) in found]

    wait_for(lambda: len(recorded()) >= 2, 20, "two crashes are recorded")
    parts = d.kill()
    wait_for(lambda: not any(alive(part.pid) for part in parts), 10, "everything of it has ended")
    assert all(spent_s > 0 for spent_s in recorded())
    d.start()
    job = d.done("job.jsonl", 60)
    job.check(asked, failed=1)
    [error] = job.errors
    assert error["code"] == "poison"
    assert "2 of these while they worked on nothing else" in error["message"]
    failures = [line for line in d.events("attempt_failed") if f" line={len(asked)} " in line]
    assert len(failures) - 1 <= error["attempts"] <= len(failures), "the last may have ended uncommitted"
    assert len(error["servers"]) >= error["attempts"]
