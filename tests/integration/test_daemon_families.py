"""A whole daemon keeps requests that share a beginning together; their owner sees it by the time alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_support import Daemon, Document, jsonl, wait_for

pytestmark = pytest.mark.over_channel

Start = Callable[..., Daemon]
# Two servers of two slots, which compute 1,000 words of a prompt in 0.25 s.
SIMULATOR: Document = {"prompt_tokens_per_s": 4000.0, "tokens_per_s": 2000.0, "answer": {"tokens": 4}}
CONFIG: Document = {"servers": {"slots": 2}}
SHARED = " ".join(["about"] * 1000)


def questions(name: str, documents: int = 8, each: int = 5) -> list[Document]:
    asked: list[Document] = [
        {"id": f"{name}-{document}-{number}", "prompt": f"{name} {document} {SHARED} {number}"}
        for document in range(documents)
        for number in range(each)
    ]
    random.Random(1).shuffle(asked)
    return asked


def reused(job_summary: Document) -> float:
    share: float = job_summary["prompt_tokens_reused_estimate"] / job_summary["prompt_tokens"]
    return share


@pytest.mark.near
def test_families_share_what_slots_have_and_results_stay_in_order(make_daemon: Start) -> None:
    d = make_daemon(CONFIG, simulator=SIMULATOR).start().ready()
    asked = questions("a")
    d.drop("a.jsonl", asked)
    job = d.done("a.jsonl", 60)
    assert job.check(asked)["succeeded"] == 40
    assert [result["id"] for result in job.results] == [request["id"] for request in asked]
    assert reused(job.summary) > 0.6, "of 40 prompts some 8 to 11 were computed"
    assert (
        sum(result.get("prompt_tokens_reused_estimate", 0) for result in job.results)
        == (job.summary["prompt_tokens_reused_estimate"])
    )
    d.configure({**CONFIG, "dispatch": {"families": "off"}})
    d.control("reload")
    asked = questions("b")
    d.drop("b.jsonl", asked)
    job = d.done("b.jsonl", 60)
    assert job.check(asked)["succeeded"] == 40 and reused(job.summary) == 0
    assert d.stop() == 0


def test_families_after_a_kill_in_a_retry_and_beside_answers_of_earlier_jobs(make_daemon: Start) -> None:
    faults = [{"kind": "status", "status": 400, "marker": "a 3 ", "count": 4}]
    d = make_daemon(CONFIG, simulator={**SIMULATOR, "faults": faults}).start().ready()
    asked = questions("a")
    d.drop("a.jsonl", asked)
    wait_for(lambda: sum(server["requests_done"] for server in d.servers()) >= 10, what="some are answered")
    assert any(server.get("families") for server in d.servers())
    d.kill()
    d.start().ready()
    job = d.done("a.jsonl", 60)
    failed = {error["id"] for error in job.errors}
    assert len(job.results) + len(failed) == 40 and failed
    d.control("retry", job.id)
    d.control("submit", write(d, "more.jsonl", [*asked, *questions("b")]), "--skip-done", "--wait")
    more = d.done("more.jsonl", 60)
    not_answered = {error["id"] for error in more.errors}
    assert not_answered <= failed and more.summary["copied"] >= 40 - len(failed)
    wanted = [one["id"] for one in [*asked, *questions("b")]]
    assert [result["id"] for result in more.results] == [one for one in wanted if one not in not_answered]
    [again] = [other for other in d.client.get("jobs")["jobs"] if other["retry_of"] == job.id]
    wait_for(lambda: d.client.get("jobs", again["job"])["state"] == "done", what="the retry is done")
    assert d.client.get("jobs", again["job"])["requests"] == len(failed)
    assert d.stop() == 0


def write(d: Daemon, name: str, requests: list[Document]) -> Path:
    path = d.root / name
    path.write_bytes(jsonl(requests))
    return path
