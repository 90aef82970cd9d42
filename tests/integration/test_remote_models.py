"""Models that remote servers have to pull: one host's servers may share a store, and none may be left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daemon_support import Daemon, prompts

SERVERS: dict[str, Any] = {"gpus": {"use": "none"}, "servers": {"remote_slots": 2}, "model": "fresh"}


def test_servers_of_one_host_pull_once_and_all_work(make_daemon: Callable[..., Daemon]) -> None:
    host = make_daemon(
        {"gpus": {"use": "simulated:2"}},
        simulator={"pull_s": 0.5, "service_s": {"kind": "fixed", "value": 0.1}},
    )
    host.start().ready()
    addresses = {server["url"].removeprefix("http://"): 0 for server in host.servers()}
    user = make_daemon({**SERVERS, "ollama_instances": addresses}).start().ready()
    user.drop("job.jsonl", prompts(80))
    user.done("job.jsonl").check()
    assert all(server["served"] > 0 for server in host.seen())
    assert not user.events("profile_refused")
    assert len(user.events("pull_started")) == 1
