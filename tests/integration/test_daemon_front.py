"""Servers behind a proxy that answers in their place: no request fails for it, and its owner reads why it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from daemon_support import Daemon, prompts, wait_for
from front_support import Front, Page, front_of

SERVERS: dict[str, Any] = {"gpus": {"use": "none"}, "servers": {"remote_slots": 2, "health_s": 0.3}}
Fronts = tuple[Daemon, list[Front]]


@pytest.fixture
def fronts(make_daemon: Callable[..., Daemon]) -> Iterator[Fronts]:
    """Two stand-in servers, each behind a proxy."""
    host = make_daemon(simulator={"service_s": {"kind": "fixed", "value": 0.02}}).start().ready()
    with ExitStack() as stack:
        yield host, [stack.enter_context(front_of(server["url"])) for server in host.servers()]


def test_a_server_behind_a_proxy_that_does_not_know_the_path_costs_no_request(
    fronts: Fronts, make_daemon: Callable[..., Daemon]
) -> None:
    _, (bad, good) = fronts
    bad.pages["/api/chat"] = Page(404)
    d = make_daemon({**SERVERS, "ollama_instances": {bad.url: 0, good.url: 0}}).start().ready()
    d.drop("job.jsonl", prompts(100))
    job = d.done("job.jsonl")
    job.check()
    assert {record["server"] for record in job.results} == {f"remote-127.0.0.1-{good.url.rpartition(':')[2]}"}
    assert {record["attempts"] for record in job.results} == {1}
    assert bad.asked["/api/chat"] < 20


def test_a_job_that_waits_for_the_only_proxy_says_why_and_goes_on_when_it_is_well(
    fronts: Fronts, make_daemon: Callable[..., Daemon]
) -> None:
    _, (front, _) = fronts
    front.pages["/api/chat"] = Page(502)
    d = make_daemon({**SERVERS, "ollama_instances": {front.url: 0}}).start().ready()
    d.drop("job.jsonl", prompts(20))
    words = f"{front.url}/api/chat answered 502 (not Ollama)"
    wait_for(lambda: any(words in reason for reason in d.status()["reasons"]))
    [job] = d.status()["jobs"]
    assert (job["failed"], job["succeeded"]) == (0, 0)
    assert any("[ollama_instances]" in note for note in job["notes"])
    front.pages.clear()
    done = d.done("job.jsonl")
    done.check()
    assert {record["attempts"] for record in done.results} == {1}
    assert done.summary["notes"] == []
