"""``skip_done``: what the same request was answered before is copied, not computed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from daemon_support import Daemon, Job, jsonl, prompts

pytestmark = pytest.mark.over_channel

Start = Callable[..., Daemon]


def asked(d: Daemon) -> int:
    """Requests that reached a server."""
    return sum(server["requests_done"] for server in d.servers())


def submitted(d: Daemon, name: str, requests: list[dict[str, object]], *arguments: str) -> Job:
    path = d.root / name
    path.write_bytes(jsonl(requests))
    done = d.control("submit", path, "--wait", *arguments)
    assert "Traceback" not in done.stderr
    return d.done(name)


def test_the_same_request_gets_its_earlier_answer_and_any_other_is_asked(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}, "inbox": {"dedupe": "allow"}})
    first = submitted(d, "first.jsonl", [*prompts(60), {"id": "bad"}])
    before = asked(d)
    requests = [{**request, "id": f"again-{i}", "note": i} for i, request in enumerate(prompts(60))]
    requests += [{"id": "other", "prompt": "something else"}, {**requests[0], "id": "hot", "options": {"top_k": 3}}]
    second = submitted(d, "second.jsonl", requests, "--skip-done")
    second.check(requests)
    assert asked(d) - before == 2
    summary = second.summary
    assert (summary["copied"], summary["succeeded"]) == (60, 62)
    assert sum(server["requests"] for server in summary["servers"].values()) == 2
    old, new = {r["prompt"]: r for r in first.results}, [r for r in second.results if "copied_from" in r]
    for record in new:
        assert record["response"] == old[record["prompt"]]["response"]
        assert record["copied_from"] == f"{first.id}/{old[record['prompt']]['line']}"
        assert record["input"] == {"note": int(record["id"].removeprefix("again-"))}
        assert (record["attempts"], record["duration_s"]) == (0, 0.0)
        text = json.loads((second.directory / "responses" / f"{record['id']}.json").read_bytes())
        assert text == record

    before = asked(d)  # a setting of the job that bears on the answers, and a job that does not ask for it
    submitted(d, "third.jsonl", requests, "--skip-done", "--system-message", "Be brief.")
    submitted(d, "fourth.jsonl", requests)
    assert asked(d) - before == 2 * len(requests)


def test_a_search_cut_short_by_a_kill_goes_on(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}})
    first = submitted(d, "first.jsonl", prompts(400))
    path = d.root / "again.jsonl"
    path.write_bytes(jsonl(prompts(400)))
    d.control("submit", path, "--skip-done")
    d.kill()
    d.start().ready()
    job = d.done("again.jsonl", 60)
    job.check(prompts(400))
    assert job.summary["copied"] == 400
    assert {r["response"] for r in job.results} == {r["response"] for r in first.results}
