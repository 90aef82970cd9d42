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


def test_servers_behind_proxies_that_answer_themselves_fail_no_request(
    fronts: Fronts, make_daemon: Callable[..., Daemon]
) -> None:
    _, (bad, good) = fronts
    bad.pages["/api/chat"], good.pages["/api/chat"] = Page(404), Page(502)
    d = make_daemon({**SERVERS, "ollama_instances": {bad.url: 0, good.url: 0}}).start().ready()
    d.drop("job.jsonl", prompts(100))
    words = [f"{front.url}/api/chat answered {front.pages['/api/chat'].status} (not Ollama)" for front in (bad, good)]
    wait_for(lambda: any(word in reason for word in words for reason in d.status()["reasons"]))
    [waiting] = d.status()["jobs"]
    assert (waiting["failed"], waiting["succeeded"]) == (0, 0)
    assert any("[ollama_instances]" in note for note in waiting["notes"])
    good.pages.clear()
    job = d.done("job.jsonl")
    job.check()
    assert {record["server"] for record in job.results} == {f"remote-127.0.0.1-{good.url.rpartition(':')[2]}"}
    assert {record["attempts"] for record in job.results} == {1}
    assert bad.asked["/api/chat"] < 20
    assert job.summary["notes"] == []
