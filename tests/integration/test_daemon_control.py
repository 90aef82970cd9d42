"""Commands while jobs run: cancel, retry, pause, drain, servers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon_support import Daemon, Job, prompts, wait_for

Start = Callable[..., Daemon]
SLOW: dict[str, Any] = {"service_s": {"kind": "fixed", "value": 0.2}}


def done_requests(d: Daemon) -> int:
    return sum(s["requests_done"] for s in d.servers())


def test_cancel_keeps_what_is_answered(daemon: Start) -> None:
    d = daemon(simulator=SLOW)
    d.drop("job.jsonl", prompts(100))
    job = d.job("job.jsonl")
    wait_for(lambda: done_requests(d) >= 10, 10, "some answers")
    d.drop("other.jsonl", prompts(10, "other"))
    answer = d.control("cancel", job.id)
    assert answer.returncode == 0, answer.stderr
    done = d.done("job.jsonl", 5)
    succeeded = len(done.results)
    summary = done.check(failed=100 - succeeded)
    assert 10 <= succeeded < 60
    assert done.codes() == {"cancelled": 100 - succeeded}
    assert summary["cancelled"] == 100 - succeeded
    assert summary["cancelled_by_user"] is True
    d.done("other.jsonl").check()
    wait_for(lambda: all(s["in_flight"] == 0 for s in d.seen()), 5, "the servers were told")
    assert d.control("cancel", job.id).returncode == 1


def test_cancelled_while_a_restart_comes_between(daemon: Start) -> None:
    d = daemon(simulator=SLOW)
    d.drop("job.jsonl", prompts(60))
    job = d.job("job.jsonl")
    d.client.post("pause")
    d.client.post(f"jobs/{job.id}/cancel")
    d.kill()
    d.start()
    done = d.done("job.jsonl", 10)
    done.check(failed=60 - len(done.results))
    assert done.summary["cancelled"] == 60 - len(done.results)


def test_a_spool_is_backed_up_at_work_lost_and_restored(daemon: Start, tmp_path: Path) -> None:
    d, backup = daemon(simulator=SLOW), tmp_path / "spool.tar.gz"
    d.drop("job.jsonl", prompts(60))
    job = d.job("job.jsonl")
    wait_for(lambda: d.client.get(f"jobs/{job.id}")["succeeded"] >= 10, 10, "some answers")
    d.client.post("pause")  # it is open for as long as a backup may take
    made = d.control("backup", str(backup))
    assert made.returncode == 0 and "1 job, 1 of them open" in made.stdout, made.stderr
    refused = d.control("restore", str(backup))
    assert refused.returncode == 1 and "another obatchd" in refused.stderr
    assert d.stop() == 0
    refused = d.control("restore", str(backup))
    assert refused.returncode == 1 and "is not empty" in refused.stderr
    for folder in ("inbox", "work", "outbox", "failed"):
        shutil.rmtree(d.spool / folder)
    restored = d.control("restore", str(backup))
    assert restored.returncode == 0, restored.stderr
    d.start()
    d.client.post("resume")
    d.done("job.jsonl", 10).check()
    assert len(d.received()) <= 50  # what had its answer is not asked again


def test_retry_makes_a_new_job_of_what_failed(daemon: Start) -> None:
    d = daemon({"dispatch": {"max_attempts": 1, "strikes": 100}})
    d.faults({"kind": "status", "marker": "BAD"})
    asked = [*prompts(5), *prompts(3, "BAD", keep="me")]
    d.drop("job.jsonl", asked)
    job = d.done("job.jsonl")
    job.check(asked, failed=3)
    d.faults()
    answer = d.control("retry", job.id, "--json")
    assert answer.returncode == 0, answer.stderr
    new = json.loads(answer.stdout)
    assert new["retry_of"] == job.id
    again = Job(Path(new["outbox"]))
    wait_for((again.directory / "summary.json").exists, 10, "the retry is done")
    again.check(asked[5:])
    assert again.summary["retry_of"] == job.id
    assert all(r["input"] == {"keep": "me"} for r in again.results)
    assert len(job.errors) == 3  # a published outbox never changes
    whole = d.control("results", job.id, "--format", "jsonl")
    assert f"8 requests = 8 answered + 0 failed, 3 of them in {again.id}\n" in whole.stderr
    assert [json.loads(line)["attempt_job"] for line in whole.stdout.splitlines()] == [job.id] * 5 + [again.id] * 3
    nothing = d.control("retry", again.id)
    assert nothing.returncode == 1
    assert "no failed request" in nothing.stderr


def test_a_paused_job_waits_while_others_run(daemon: Start) -> None:
    d = daemon(simulator=SLOW)
    d.drop("first.jsonl", prompts(160, "first"))
    first = d.job("first.jsonl")
    wait_for(lambda: done_requests(d) >= 4, 10, "some answers")
    assert d.control("pause", first.id).returncode == 0
    wait_for(lambda: d.client.get(f"jobs/{first.id}")["in_flight"] == 0, 10, "nothing of it is in flight")
    answered = done_requests(d)
    wait_for(lambda: d.client.get(f"jobs/{first.id}")["succeeded"] == answered, 5, "its answers are committed")
    before = d.client.get(f"jobs/{first.id}")
    assert before["paused"]
    d.drop("second.jsonl", prompts(16, "second"))
    d.done("second.jsonl").check()
    assert d.client.get(f"jobs/{first.id}")["succeeded"] == before["succeeded"]
    assert d.control("resume", first.id).returncode == 0
    d.done("first.jsonl").check()


def test_the_host_stays_paused_over_a_restart(daemon: Start) -> None:
    d = daemon(simulator=SLOW)
    assert d.control("pause").returncode == 0
    d.drop("job.jsonl", prompts(5))
    d.job("job.jsonl")
    assert d.status()["state"] == "paused"
    assert d.stop() == 0
    d.start().ready()
    assert d.status()["state"] == "paused"
    time.sleep(0.3)
    assert done_requests(d) == 0
    assert d.control("resume").returncode == 0
    d.done("job.jsonl").check()


def test_drain_waits_until_nothing_is_in_flight(daemon: Start) -> None:
    d = daemon(simulator={"service_s": {"kind": "fixed", "value": 0.6}})
    d.drop("job.jsonl", prompts(30))
    wait_for(lambda: all(s["in_flight"] == 4 for s in d.servers()), 10, "every slot is in use")
    answer = d.control("drain", "--wait")
    assert answer.returncode == 0, answer.stderr
    assert "safe to reboot" in answer.stdout
    assert [s["in_flight"] for s in d.seen()] == [0, 0]
    assert d.status()["state"] == "drained"
    served = sum(s["served"] for s in d.seen())
    assert served < 30
    time.sleep(0.3)
    assert sum(s["served"] for s in d.seen()) == served
    assert d.control("undrain").returncode == 0
    d.done("job.jsonl").check()


def test_a_drained_server_gets_nothing_and_a_restarted_one_comes_back(daemon: Start) -> None:
    d = daemon(simulator=SLOW)
    d.drop("warm.jsonl", prompts(16, "warm"))
    d.done("warm.jsonl")
    answer = d.control("servers", "drain", "gpu0")
    assert answer.returncode == 0, answer.stderr
    assert d.servers()[0]["state"] == "draining"
    before = d.seen()[0]["served"]
    d.drop("job.jsonl", prompts(12))
    d.done("job.jsonl").check()
    assert d.seen()[0]["served"] == before
    assert d.control("servers", "resume", "gpu0").returncode == 0
    d.drop("again.jsonl", prompts(60, "again"))
    wait_for(lambda: d.servers()[0]["in_flight"] > 0, 10, "gpu0 works again")
    old = d.servers()[0]["pid"]
    assert d.control("servers", "restart", "gpu0").returncode == 0
    wait_for(lambda: d.servers()[0]["state"] == "ready" and d.servers()[0]["pid"] != old, 10, "gpu0 is back")
    job = d.done("again.jsonl")
    job.check()
    assert d.servers()[0]["restarts"] == 0  # asked for: nobody's fault


def test_priority_orders_one_owners_jobs(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}})
    d.client.post("pause")
    for name in ("low", "normal", "high"):
        d.drop(f"{name}.jsonl", prompts(20, name, priority=name))
        d.job(f"{name}.jsonl")
    d.client.post("resume")
    for name in ("low", "normal", "high"):
        d.done(f"{name}.jsonl").check()
    jobs = wait_for(lambda: len(done := d.client.get("jobs", state="done")["jobs"]) == 3 and done, 5)
    finished = [j["name"] for j in sorted(jobs, key=lambda j: j["finished_at"])]
    assert finished == ["high.jsonl", "normal.jsonl", "low.jsonl"]


def test_models_burn_ins_and_reloads_are_in_the_audit_log(daemon: Start) -> None:
    d = daemon(simulator={"pull_s": 0.1})
    for arguments, status in (
        (("models", "pull", "newcomer"), 0), (("models", "pull", "missing-one"), 1), (("models", "rm", "newcomer"), 0),
        (("burnin", "start", "--gpus", "1", "--duration", "10s"), 0), (("burnin", "start"), 1), (("burnin", "stop"), 0),
        (("reload",), 0),
    ):  # fmt: skip
        ran = d.control(*arguments)
        assert ran.returncode == status, ran.stdout + ran.stderr
    shown = d.control("audit", "--kind", "model", "--kind", "burnin", "--kind", "host", "--json")
    told = [
        (entry["kind"], entry["target"], entry.get("detail"), "failed" in entry)
        for entry in json.loads(shown.stdout)["entries"]
    ]
    assert told == [
        ("model_pulled", "newcomer", None, False), ("model_pulled", "missing-one", None, False),
        ("model_pulled", "missing-one", None, True), ("model_removed", "newcomer", None, False),
        ("burnin_started", "", "GPUs 1", False), ("burnin_started", "", None, False),
        ("burnin_started", "", None, True), ("burnin_stopped", "", None, False), ("host_reloaded", "", None, False),
    ]  # fmt: skip
